"""NIfTI files of any name and orientation."""

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import nullcontext

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from ..files import one_line
from .limits import check_declared
from .volume_file import VolumeFile, check_numbers

NIFTI_ENDINGS = (".nii", ".nii.gz")
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
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from RAS


def is_nifti(path: str | os.PathLike) -> bool:
    """Whether a path names a NIfTI file."""
    return os.fspath(path).lower().endswith(NIFTI_ENDINGS)


def open_nifti(file: str | os.PathLike) -> VolumeFile:
    """Read a NIfTI file's header.

    Its place in the patient is that of sform, or of qform where sform is not set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or is no volume of numbers.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such NIfTI file")
    try:
        image = nibabel.load(file)
        kind = image.get_data_dtype()
    except _DAMAGED as error:
        raise ValueError(f"{file}: found no readable NIfTI file ({one_line(error)})") from None
    if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is one too
        raise ValueError(f"{file}: found {type(image).__name__}, expected a NIfTI file")
    check_numbers(file, str(kind), image.shape, 1)
    messages = ()
    if image.header["sform_code"] == 0 and image.header["qform_code"] == 0:
        messages = (
            "the file does not say how it lies in the patient (qform and sform codes are 0): "
            "taken as columns to Left, rows to Anterior, slices to Superior",
        )
    declared = int(np.prod(image.shape, dtype=object)) * kind.itemsize
    packed = os.fspath(file).lower().endswith(".gz")
    volume_file = VolumeFile(
        file,
        "nifti",
        image.shape,
        _LPS @ image.affine,
        lambda: _slabs(file, image, packed),
        messages,
    )
    if packed:  # of others nibabel tells, in better words
        check_declared(file, declared, os.path.getsize(file), packed)
    return volume_file


def _slabs(
    file: str | os.PathLike, image: nibabel.Nifti1Image, packed: bool
) -> Iterator[np.ndarray]:
    try:
        with gzip.open(file) if packed else nullcontext() as stream:
            # One stream from begin to end: a compressed file cannot be read from its middle.
            data = type(image).from_stream(stream).dataobj if packed else image.dataobj
            for index in range(image.shape[2]):
                yield np.asanyarray(data[:, :, index : index + 1])
            if packed:
                stream.read(1)  # at its end the checksum is compared
    except _DAMAGED as error:
        raise ValueError(f"{file}: found a damaged NIfTI file ({one_line(error)})") from None
