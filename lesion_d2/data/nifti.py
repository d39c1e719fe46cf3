"""Sub-volumes in NIfTI files, read slice by slice like a folder of PNG files.

A slice has the path ``.../<patient>_<study>_<series>_<first>-<last>.nii.gz/<slice number>.png``,
which is not on disk: the file's name says the number of its first slice.
"""

import os
import zlib
from functools import lru_cache

import nibabel
import numpy as np
from nibabel import orientations
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from ..files import one_line
from .volume_names import VolumeName

_ENDINGS = (".nii", ".nii.gz")
# Where rows, columns and slices of DeepLesion's arrays lead to: posterior, left and inferior, as
# its own conversion script (DL_save_nifti.py) writes them.
_DIRECTIONS = ("P", "L", "I")
_MAX_VOLUMES = 4  # kept in memory, per process: some 15 MB each in DeepLesion
_INT16 = np.iinfo(np.int16)
# What nibabel raises of damaged files; OverflowError is of pixels that begin past a file's end.
_DAMAGED = (
    ImageFileError,
    HeaderDataError,
    OSError,
    EOFError,
    OverflowError,
    ValueError,
    zlib.error,
)


def is_nifti(path: str | os.PathLike) -> bool:
    """Whether a path names a NIfTI file."""
    return os.fspath(path).endswith(_ENDINGS)


def nifti_slices(file: str | os.PathLike) -> dict[int, str]:
    """Slice number -> path of all slices that the file's name speaks of, in order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another name than a sub-volume's.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such NIfTI file")
    name = _parse_name(file)
    return {n: os.path.join(file, f"{n:03d}.png") for n in range(name.first, name.last + 1)}


def nifti_slice_exists(path: str | os.PathLike) -> bool:
    """Whether a slice's path, ``<file>/<slice number>.png``, is one of :func:`nifti_slices`."""
    file, number = _split(path)
    name = _parse_name(file)
    return name.first <= number <= name.last and os.path.isfile(file)


def read_nifti_slice(path: str | os.PathLike) -> np.ndarray:
    """Read one slice, turned as DeepLesion's are, by the affine matrix of the file.

    The last four volumes that a process read stay in its memory.

    Args:
        path: ``<file>/<slice number>.png``.

    Returns:
        H x W int16 in HU, the caller's own: rows from anterior to posterior, columns from the
        patient's right to left. Values that are no integers are rounded, those beyond int16 cut.

    Raises:
        FileNotFoundError: there is no such file, or no such slice in its name's range.
        ValueError: the file is damaged, is no volume of numbers, has another number of slices than
            its name says, or has no value below 0, as HU of whole slices have: there is air.
    """
    file, number = _split(path)
    if not nifti_slice_exists(path):
        raise FileNotFoundError(f"{path}: no such CT slice")
    return _read_volume(file, os.stat(file).st_mtime_ns)[number - _parse_name(file).first].copy()


def nifti_geometry(
    file: str | os.PathLike,
) -> tuple[tuple[int, int], tuple[float, float, float]]:
    """Read the size and the spacing of a file's slices from its header.

    Returns:
        (height, width) in pixels; spacing (x, y, z) in mm, x that of columns.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_nifti_slice`.
    """
    image, turn = _open(file)
    size, spacing = [0, 0, 0], [0.0, 0.0, 0.0]
    voxel = nibabel.affines.voxel_sizes(image.affine)
    for axis, (target, _) in enumerate(turn.astype(int)):
        size[target], spacing[target] = image.shape[axis], float(voxel[axis])
    y, x, z = spacing
    return (size[0], size[1]), (x, y, z)


def _parse_name(file: str | os.PathLike) -> VolumeName:
    try:
        return VolumeName.parse(os.path.basename(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}, then .nii or .nii.gz") from None


def _split(path: str | os.PathLike) -> tuple[str, int]:
    file, name = os.path.split(path)
    stem = os.path.splitext(name)[0]
    if not stem.isdecimal():
        raise ValueError(f"{path}: found the name {name!r}, expected <slice number>.png")
    return file, int(stem)


def _open(file: str | os.PathLike):
    """The image, its pixels not read yet, and the turn that makes it DeepLesion's."""
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such NIfTI file")
    name = _parse_name(file)
    try:
        image = nibabel.load(file)
    except _DAMAGED as error:
        raise ValueError(f"{file}: found no readable NIfTI file ({one_line(error)})") from None
    if len(image.shape) < 3 or max(image.shape[3:], default=1) > 1 or not _is_number(image):
        raise ValueError(
            f"{file}: found {image.get_data_dtype()} of shape {image.shape}, expected numbers in "
            "three dimensions (a fourth may have one entry)"
        )
    if not np.isfinite(image.affine).all():
        raise ValueError(f"{file}: found an affine matrix that is not finite, expected mm")
    found = orientations.io_orientation(image.affine)
    if not np.isfinite(found).all():
        raise ValueError(f"{file}: found an affine matrix that leaves out an axis")
    turn = orientations.ornt_transform(found, orientations.axcodes2ornt(_DIRECTIONS))
    depth = image.shape[int(np.flatnonzero(turn[:, 0] == 2)[0])]
    if depth != name.last - name.first + 1:
        raise ValueError(
            f"{file}: found {depth} slices from head to feet, expected the "
            f"{name.last - name.first + 1} of its name"
        )
    return image, turn


def _is_number(image) -> bool:
    return image.get_data_dtype().kind in "iuf"


@lru_cache(_MAX_VOLUMES)
def _read_volume(file: str, changed: int) -> np.ndarray:
    """All slices of a file, Z x H x W int16; a file that is written anew is read anew."""
    image, turn = _open(file)
    try:
        volume = np.asanyarray(image.dataobj)
    except _DAMAGED as error:
        raise ValueError(f"{file}: found a damaged NIfTI file ({one_line(error)})") from None
    if not np.isfinite(volume).all():
        raise ValueError(f"{file}: found values that are no finite numbers, expected HU")
    low, high = volume.min(), volume.max()
    if low >= 0:
        raise ValueError(
            f"{file}: found values from {low:g} to {high:g}, expected HU, which are below 0 in "
            "air; DeepLesion's PNG files, for one, hold HU + 32768: subtract it"
        )
    if volume.dtype != np.int16:
        volume = np.rint(np.clip(volume, _INT16.min, _INT16.max)).astype(np.int16)
    volume = volume.reshape(volume.shape[:3])  # a series of one volume has a fourth dimension
    volume = orientations.apply_orientation(volume, turn).transpose(2, 0, 1)
    return np.ascontiguousarray(volume)
