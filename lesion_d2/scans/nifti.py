"""NIfTI files in any orientation."""

import gzip
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from ..structures.slice_geometry import is_spacing
from ..utils.files import one_line
from .limits import check_declared
from .volume_file import VolumeFile, check_numbers

if TYPE_CHECKING:  # slow to import
    import nibabel

NIFTI_ENDINGS = (".nii", ".nii.gz")
# Bytes to read; header size in NIfTI-1 and 2 -> type and position of the voxels' offset.
_START, _OFFSETS = 176, {348: ("f", 108), 540: ("q", 168)}
#: Maximum bytes before and after the voxels: extensions and unused data, unlimited in a malicious
#: file.
MAX_REST = 1 << 24
_PIECE = 1 << 16
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS


def is_nifti(path: str | os.PathLike) -> bool:
    """Whether a path names a NIfTI file."""
    return os.fspath(path).lower().endswith(NIFTI_ENDINGS)


def open_nifti(
    file: str | os.PathLike, *, channel: tuple[int, int] | None = None, allow_flat: bool = False
) -> VolumeFile:
    """Read a NIfTI file's header.

    Its position in the patient is that of sform, or of qform if sform is not set.

    Args:
        file: its path.
        channel: index of the volume along the fourth axis, from 0, and the required number of
            volumes; one needs no fourth axis.
        allow_flat: whether an image of one slice may have two axes or an implausible slice spacing
            (nnU-Net writes 999 mm), which then becomes 1 mm.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is not a volume of numbers, has no position in the patient,
            or has another number of channels.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such NIfTI file")
    import nibabel

    try:
        _check_start(file)
        with _quiet():
            image = nibabel.load(file)
        kind = image.get_data_dtype()
    except _damages() as error:
        raise ValueError(f"{file}: found no readable NIfTI file ({one_line(error)})") from None
    if not isinstance(image, nibabel.Nifti1Image):  # includes NIfTI-2
        raise ValueError(f"{file}: found {type(image).__name__}, expected a NIfTI file")
    shape, affine, index = _chosen_axes(file, image, channel, allow_flat)
    check_numbers(file, str(kind), shape, 1)
    messages = ()
    if image.header["sform_code"] == 0 and image.header["qform_code"] == 0:
        found = "the file does not say how it lies in the patient (qform and sform codes are 0)"
        if not allow_flat or shape[2] > 1:
            raise ValueError(f"{file}: {found}, expected an affine matrix")
        messages = (f"{found}: taken as columns to Left, rows to Anterior",)
    elif image.header["sform_code"] == 0 and not (_stored_spacing(image) > 0).all():
        raise ValueError(f"{file}: found the spacing {_stored_spacing(image)}, expected mm above 0")
    declared = int(np.prod(image.shape, dtype=object)) * kind.itemsize
    packed = os.fspath(file).lower().endswith(".gz")
    volume_file = VolumeFile(
        file,
        "nifti",
        shape,
        _LPS @ affine,
        lambda: _slabs(file, image, packed, index),
        messages,
    )
    if packed:  # nibabel checks others, with better messages
        check_declared(file, declared, os.path.getsize(file), packed)
    return volume_file


def _chosen_axes(
    file: str | os.PathLike,
    image: "nibabel.Nifti1Image",
    channel: tuple[int, int] | None,
    allow_flat: bool,
) -> tuple[tuple[int, ...], np.ndarray, tuple[int, ...]]:
    """Shape and affine matrix of the volume to read, and its index along the fourth axis."""
    shape, affine, index = image.shape, image.affine, ()
    if channel is not None:
        number, count = channel
        found = shape[3] if len(shape) > 3 else 1
        if found != count:
            raise ValueError(
                f"{file}: found {found} volumes along the fourth axis, expected {count}"
            )
        if len(shape) > 3:
            shape, index = (*shape[:3], *shape[4:]), (number,)
    if allow_flat and len(shape) == 2:
        shape = (*shape, 1)
    if allow_flat and shape[2:3] == (1,) and not is_spacing(np.linalg.norm(affine[:3, 2])):
        affine = _with_thickness(affine)
    return shape, affine, index


def _with_thickness(affine: np.ndarray) -> np.ndarray:
    """Set the third axis to a length of 1 mm; if it was 0, orthogonal to the others.

    nibabel gives images with two axes a third one of arbitrary length.
    """
    affine, axis = affine.copy(), affine[:3, 2]
    if not np.isfinite(axis).all() or not axis.any():
        axis = np.cross(affine[:3, 0], affine[:3, 1])
    length = np.linalg.norm(axis)
    affine[:3, 2] = axis / length if length else axis
    return affine


def _check_start(file: str | os.PathLike) -> None:
    """Refuse large extensions, which nibabel would read into memory with the header."""
    packed = os.fspath(file).lower().endswith(".gz")
    with gzip.open(file) if packed else open(file, "rb") as stream:
        start = stream.read(_START)
    for order in "<>":
        size = struct.unpack(f"{order}i", start[:4].ljust(4, b"\0"))[0]
        if size in _OFFSETS and len(start) == _START:
            kind, place = _OFFSETS[size]
            (offset,) = struct.unpack_from(f"{order}{kind}", start, place)
            if not 0 <= offset <= MAX_REST:
                raise ValueError(f"its voxels begin at byte {offset:g}")


def _stored_spacing(image: "nibabel.Nifti1Image") -> np.ndarray:
    """Spacing x, y and z as stored in the header; nibabel replaces 0 by 1."""
    with image.file_map["image"].get_prepare_fileobj() as opened:
        return type(image.header).from_fileobj(opened, check=False)["pixdim"][1:4]


def _damages() -> tuple[type[Exception], ...]:
    """Errors that nibabel raises for damaged files."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    damages = ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error
    return *damages, OverflowError  # if pixels start beyond the file's end


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress nibabel's messages about header values that it corrects."""
    from nibabel import imageglobals

    level = imageglobals.logger.level
    imageglobals.logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        imageglobals.logger.setLevel(level)


def _slabs(
    file: str | os.PathLike, image: "nibabel.Nifti1Image", packed: bool, channel: tuple[int, ...]
) -> Iterator[np.ndarray]:
    try:
        with gzip.open(file) if packed else nullcontext() as stream:
            # One stream from start to end, as a compressed file has no random access.
            with _quiet():
                data = type(image).from_stream(stream).dataobj if packed else image.dataobj
            if len(image.shape) == 2:
                yield np.asanyarray(data)[:, :, None]
            for index in range(image.shape[2] if len(image.shape) > 2 else 0):
                yield np.asanyarray(
                    data[(slice(None), slice(None), slice(index, index + 1), *channel)]
                )
            if packed:
                _read_to_end(stream)
    except _damages() as error:
        raise ValueError(f"{file}: found a damaged NIfTI file ({one_line(error)})") from None


def _read_to_end(stream: gzip.GzipFile) -> None:
    """Read to the end of the file, where the checksum is verified."""
    left = MAX_REST
    while left >= 0 and (piece := stream.read(_PIECE)):
        left -= len(piece)
    if left < 0:
        raise ValueError(f"found more than {MAX_REST} bytes behind the voxels")
