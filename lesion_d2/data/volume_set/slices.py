"""Slices of a voxel file, read like a folder of PNG files.

A slice has the path ``<file>.b2nd/<slice number>.png``, which does not exist on disk; numbers start
at 0.
"""

import os
from collections.abc import Iterable, Sequence

import numpy as np

from ..slices.paths import split_slice_path
from .voxels import BLOCKS, EXTENSION, read_voxels, voxels_shape


def is_voxels(file: str | os.PathLike) -> bool:
    """Whether a path names a voxel file."""
    return os.fspath(file).endswith(EXTENSION)


def voxels_slice_path(file: str | os.PathLike, number: int) -> str:
    """Return the path of a slice."""
    return os.path.join(file, f"{number:03d}.png")


def voxels_slices(file: str | os.PathLike) -> dict[int, str]:
    """Slice number -> path for all slices, sorted.

    Raises:
        FileNotFoundError, ValueError: see :func:`~lesion_d2.data.volume_set.voxels.read_voxels`.
    """
    return {n: voxels_slice_path(file, n) for n in range(voxels_shape(file)[0])}


def voxels_slice_exists(path: str | os.PathLike) -> bool:
    """Whether a slice's path is one of :func:`voxels_slices`."""
    file, number = split_slice_path(path)
    return os.path.isfile(file) and number < voxels_shape(file)[0]


def read_voxels_slice(path: str | os.PathLike) -> np.ndarray:
    """Read one slice, H x W int16 in HU, as a copy.

    Raises:
        FileNotFoundError: the file or the slice does not exist.
        ValueError: the file is damaged.
    """
    file, number = split_slice_path(path)
    return read_voxels_slices(file, [number])[number]


def read_voxels_slices(file: str | os.PathLike, numbers: Iterable[int]) -> dict[int, np.ndarray]:
    """Read several slices; neighboring ones are read together.

    Returns:
        Slice number -> H x W int16 in HU, as a copy.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_voxels_slice`.
    """
    depth = voxels_shape(file)[0]
    slices: dict[int, np.ndarray] = {}
    for run in _runs(sorted(set(numbers))):
        if run[-1] >= depth:
            raise FileNotFoundError(f"{voxels_slice_path(file, run[-1])}: no such CT slice")
        volume = read_voxels(file, run[0], run[-1] + 1)
        slices |= {number: volume[number - run[0]] for number in run}
    return slices


def read_voxels_block(
    paths: Sequence[str | os.PathLike], rows: tuple[int, int], columns: tuple[int, int]
) -> np.ndarray:
    """Read a block of consecutive slices of one file.

    Args:
        paths: paths of the slices, in order.
        rows, columns: first index and end (exclusive).

    Returns:
        (d, h, w) int16 in HU, as a copy.

    Raises:
        FileNotFoundError, ValueError: see :func:`~lesion_d2.data.volume_set.voxels.read_voxels`.
    """
    file, first = split_slice_path(paths[0])
    return read_voxels(file, first, first + len(paths), *rows, *columns)


def _runs(numbers: list[int]) -> list[list[int]]:
    """Group numbers whose blocks are adjacent."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number // BLOCKS[0] - runs[-1][-1] // BLOCKS[0] <= 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
