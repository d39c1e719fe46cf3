"""Storage formats of slices on disk, in one table; the format follows from a slice's folder."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...scans.nifti import is_nifti
from ...scans.png import check_same_size, png_size, read_png_slice
from ...utils.values import are_digits
from ..prepared.slices import (
    is_prepared,
    prepared_slice_exists,
    prepared_slice_size,
    prepared_slices,
    read_prepared_slice,
    read_prepared_slices,
)
from ..volume_set.slices import (
    is_voxels,
    read_voxels_block,
    read_voxels_slice,
    read_voxels_slices,
    voxels_slice_exists,
    voxels_slices,
)
from ..volume_set.voxels import BLOCKS, voxels_shape
from .nifti import nifti_geometry, nifti_slice_exists, nifti_slices, read_nifti_slice
from .pictures import (
    is_picture,
    picture_slice_exists,
    picture_slice_size,
    picture_slices,
    read_picture_slice,
)

Path = str | os.PathLike
_Range = tuple[int, int]
_Size = tuple[int, int]


@dataclass(frozen=True)
class SliceFormat:
    """How slices with the path ``<folder>/<slice number>.png`` are read.

    Args:
        holds: returns whether a folder has this format.
        read: function of a slice's path, and its height and width or None, returning (H, W) int16
            in HU; raises ValueError for another size.
        size: function of a slice's path, returning (height, width) in pixels from the header.
        exists: returns whether a slice's path exists.
        files: function of a folder, returning slice number -> path for all slices in it, sorted.
        read_several: function of a folder and numbers, returning number -> (H, W), if that is
            faster than one by one.
        read_block: function of the paths of consecutive slices, and of the ranges of rows and
            columns (ends exclusive), returning (d, h, w); if that is faster than whole slices.
        depth: number of slices that are decompressed together, starting at a multiple of it.
    """

    holds: Callable[[Path], bool]
    read: Callable[[Path, _Size | None], np.ndarray]
    size: Callable[[Path], _Size]
    exists: Callable[[Path], bool]
    files: Callable[[Path], dict[int, str]]
    read_several: Callable[[Path, Sequence[int]], dict[int, np.ndarray]] | None = None
    read_block: Callable[[Sequence[Path], _Range, _Range], np.ndarray] | None = None
    depth: int = 1


def format_of(folder: Path) -> SliceFormat:
    """Return the format of a slice's folder; by default a folder of PNG files."""
    return next((f for f in _FORMATS if f.holds(folder)), _PNG_FOLDER)


def _sized(
    read: Callable[[Path], np.ndarray], size_of: Callable[[Path], _Size] | None = None
) -> Callable[[Path, _Size | None], np.ndarray]:
    """A reader that checks the size with ``size_of`` before decoding."""

    def read_sized(path: Path, size: _Size | None) -> np.ndarray:
        if size is not None and size_of is not None:
            check_same_size(path, size_of(path), size)
        hu = read(path)
        if size is not None:
            check_same_size(path, hu.shape, size)
        return hu

    return read_sized


def _nifti_size(file: Path) -> _Size:
    return nifti_geometry(os.path.dirname(file))[0]


def _voxels_size(file: Path) -> _Size:
    return voxels_shape(os.path.dirname(file))[1:]


def _png_files(folder: Path) -> dict[int, str]:
    stems = [name[:-4] for name in os.listdir(folder) if name.endswith(".png")]
    numbers = sorted((int(stem), stem) for stem in stems if are_digits(stem))
    return {number: os.path.join(folder, f"{stem}.png") for number, stem in numbers}


_PNG_FOLDER = SliceFormat(os.path.isdir, read_png_slice, png_size, os.path.isfile, _png_files)
# A picture's path may end like a volume's file after its "#", so it comes first.
_FORMATS = (
    SliceFormat(
        is_picture,
        _sized(read_picture_slice, picture_slice_size),
        picture_slice_size,
        picture_slice_exists,
        picture_slices,
    ),
    SliceFormat(is_nifti, _sized(read_nifti_slice), _nifti_size, nifti_slice_exists, nifti_slices),
    SliceFormat(
        is_voxels,
        _sized(read_voxels_slice),
        _voxels_size,
        voxels_slice_exists,
        voxels_slices,
        read_voxels_slices,
        read_voxels_block,
        BLOCKS[0],
    ),
    SliceFormat(
        is_prepared,
        _sized(read_prepared_slice),
        prepared_slice_size,
        prepared_slice_exists,
        prepared_slices,
        read_prepared_slices,
    ),
)
