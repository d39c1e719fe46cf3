"""Sub-volumes in NIfTI files, read slice by slice like a folder of PNG files.

A slice has the path ``.../<patient>_<study>_<series>_<first>-<last>.nii.gz/<slice number>.png``,
which does not exist on disk: the file's name contains the number of its first slice.
"""

import os
from functools import lru_cache

import numpy as np

from ...scans.nifti import open_nifti
from ...scans.volume_file import VolumeFile
from ..deeplesion.volume_names import VolumeName
from ..shared_arrays import Allocate, shared_array, shares_arrays
from .paths import split_slice_path

_MAX_VOLUMES = 4  # cached per process: about 15 MB each in DeepLesion


def nifti_slices(file: str | os.PathLike) -> dict[int, str]:
    """Slice number -> path for all slices in the range of the file's name, sorted.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file name is not that of a sub-volume.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such NIfTI file")
    name = _parse_name(file)
    return {n: os.path.join(file, f"{n:03d}.png") for n in range(name.first, name.last + 1)}


def nifti_slice_exists(path: str | os.PathLike) -> bool:
    """Whether a slice's path, ``<file>/<slice number>.png``, is one of :func:`nifti_slices`."""
    file, number = split_slice_path(path)
    name = _parse_name(file)
    return name.first <= number <= name.last and os.path.isfile(file)


def read_nifti_slice(path: str | os.PathLike) -> np.ndarray:
    """Read one slice in DeepLesion's orientation, using the affine matrix of the file.

    Each process caches its last four volumes. Loader processes that share arrays decompress a
    volume only once, see :mod:`lesion_d2.data.shared_arrays`.

    Args:
        path: ``<file>/<slice number>.png``.

    Returns:
        H x W int16 in HU, a copy: rows from anterior to posterior, columns from the patient's right
            to left. Values are rounded to integers and clipped to int16.

    Raises:
        FileNotFoundError: the file does not exist, or the slice is outside its name's range.
        ValueError: the file is damaged, is not a volume of numbers, its number of slices differs
            from that of its name, or it has no value below 0 (whole slices in HU contain air).
    """
    file, number = split_slice_path(path)
    if not nifti_slice_exists(path):
        raise FileNotFoundError(f"{path}: no such CT slice")
    return _volume(file, os.stat(file).st_mtime_ns)[number - _parse_name(file).first].copy()


def nifti_geometry(
    file: str | os.PathLike,
) -> tuple[tuple[int, int], tuple[float, float, float]]:
    """Read the size and the spacing of a file's slices from its header.

    Returns:
        (height, width) in pixels; spacing (x, y, z) in mm, x that of columns.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_nifti_slice`.
    """
    opened = _open(file)
    return opened.shape[1:], opened.spacing


def _parse_name(file: str | os.PathLike) -> VolumeName:
    try:
        return VolumeName.parse(os.path.basename(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error} and the suffix .nii or .nii.gz") from None


def _open(file: str | os.PathLike) -> VolumeFile:
    """Open the file without reading pixels, and check its number of slices."""
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such NIfTI file")
    name = _parse_name(file)
    opened = open_nifti(file)
    if opened.num_slices != name.last - name.first + 1:
        raise ValueError(
            f"{file}: found {opened.num_slices} slices from head to feet, expected "
            f"{name.last - name.first + 1} according to its name"
        )
    return opened


def _volume(file: str, changed: int) -> np.ndarray:
    """All slices of a file, Z x H x W int16; read again if the file changes."""
    if not shares_arrays():
        return _kept_volume(file, changed)

    def read(allocate: Allocate) -> np.ndarray:
        opened = _open(file)
        return opened.read_volume(allocate(opened.shape, np.int16))[0]

    return shared_array(file, str(changed), read)


@lru_cache(_MAX_VOLUMES)
def _kept_volume(file: str, changed: int) -> np.ndarray:
    return _open(file).read_volume()[0]
