"""What lies in a checkout of the project beside the package."""

from pathlib import Path

import lesion_d2


def find_in_checkout(name: str) -> Path:
    """A file or folder of the project's root, such as ``configs``.

    Raises:
        FileNotFoundError: it is not beside the package, which was installed without the project.
    """
    path = Path(lesion_d2.__file__).parents[1] / name
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: not found, expected it in a checkout of the project (pip install -e .)"
        )
    return path
