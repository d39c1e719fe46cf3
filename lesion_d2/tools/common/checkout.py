"""Paths of the project's files: beside the package in a checkout, below it in an installation."""

from pathlib import Path

import lesion_d2
from lesion_d2._programs import project_folder


def find_in_checkout(name: str) -> Path:
    """The path of a file or folder of the project's root, such as ``configs``.

    Raises:
        FileNotFoundError: it does not exist: an installation has no tests, for instance.
    """
    path = project_folder(Path(lesion_d2.__file__).parent) / name
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: not found, expected it in a checkout of the project (pip install -e .)"
        )
    return path
