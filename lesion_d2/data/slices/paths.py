"""Virtual paths of slices inside a volume's file: ``<file>/<slice number>.png``."""

import os

from ...utils.values import are_digits


def split_slice_path(path: str | os.PathLike) -> tuple[str, int]:
    """Split a path into the file and the slice number.

    Raises:
        ValueError: the path does not end with a number and a suffix.
    """
    file, name = os.path.split(path)
    stem = os.path.splitext(name)[0]
    if not are_digits(stem):
        raise ValueError(f"{path}: found the name {name!r}, expected <slice number>.png")
    return file, int(stem)
