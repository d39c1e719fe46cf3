"""NIfTI files of any name and orientation."""

import os
import zlib
from collections.abc import Iterator

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
        # A compressed file that stays open is read once, from its begin to its end.
        image = nibabel.load(file, keep_file_open=True)
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
        file, "nifti", image.shape, _LPS @ image.affine, lambda: _slabs(file, image), messages
    )
    if packed:  # of others nibabel tells, in better words
        check_declared(file, declared, os.path.getsize(file), packed)
    return volume_file


def _slabs(file: str | os.PathLike, image: nibabel.Nifti1Image) -> Iterator[np.ndarray]:
    try:
        for index in range(image.shape[2]):
            yield np.asanyarray(image.dataobj[:, :, index : index + 1])
    except _DAMAGED as error:
        raise ValueError(f"{file}: found a damaged NIfTI file ({one_line(error)})") from None
