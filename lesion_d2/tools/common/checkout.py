"""What lies beside the package in a checkout of the project, and below it where it is installed."""

from pathlib import Path

import lesion_d2
from lesion_d2._programs import project_folder


def find_in_checkout(name: str) -> Path:
    """A file or folder of the project's root, such as ``configs``.

    Raises:
        FileNotFoundError: it is not there: an installation has no tests, for instance.
    """
    path = project_folder(Path(lesion_d2.__file__).parent) / name
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: not found, expected it in a checkout of the project (pip install -e .)"
        )
    return path
