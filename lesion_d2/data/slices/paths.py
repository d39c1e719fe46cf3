"""Paths of slices that lie in a file of a volume: ``<file>/<slice number>.png``, not on disk."""

import os

from ...utils.values import are_digits


def split_slice_path(path: str | os.PathLike) -> tuple[str, int]:
    """The file and the number of a slice.

    Raises:
        ValueError: the path does not end with a number and an ending.
    """
    file, name = os.path.split(path)
    stem = os.path.splitext(name)[0]
    if not are_digits(stem):
        raise ValueError(f"{path}: found the name {name!r}, expected <slice number>.png")
    return file, int(stem)
