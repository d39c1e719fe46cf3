"""Write volumes as DICOM series and NIfTI files, for phantoms and tests."""

import gzip
import os
from pathlib import Path

import numpy as np

from ..utils.files import atomic_write
from .limits import require

_DIRECTION = np.diag([1.0, 1.0, -1.0])  # x to Left, y to Posterior, z to Inferior


def write_dicom(
    folder: str | os.PathLike,
    volume: np.ndarray,
    spacing: tuple[float, float, float],
    *,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    direction: np.ndarray = _DIRECTION,
    patient: str = "phantom",
    series_number: int = 1,
) -> list[Path]:
    """Write a volume as a series of CT images, ``<folder>/<slice>.dcm``.

    UIDs are derived from the patient, the series number and the slice, so that the same call writes
    the same files.

    Args:
        folder: created if missing.
        volume: (Z, H, W) int16, HU.
        spacing: x, y, z in mm.
        origin: of the center of voxel (0, 0, 0), LPS in mm.
        direction: (3, 3), columns are the unit vectors along x, y and z in LPS.
        patient: name and ID of the patient.
        series_number: number of the series in the patient's only study.

    Returns:
        The files, in order of slices.

    Raises:
        ImportError: pydicom is not installed.
    """
    require("pydicom")
    from pydicom.valuerep import DS

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, hu in enumerate(volume):
        dataset = _header(patient, series_number, index)
        place = np.add(origin, np.multiply(direction[:, 2], spacing[2] * index))
        axes = (*direction[:, 0], *direction[:, 1])
        dataset.ImagePositionPatient = [DS(float(x), auto_format=True) for x in place]
        dataset.ImageOrientationPatient = [DS(float(x), auto_format=True) for x in axes]
        dataset.PixelSpacing = [DS(float(x), auto_format=True) for x in (spacing[1], spacing[0])]
        dataset.SliceThickness = DS(float(spacing[2]), auto_format=True)
        dataset.Rows, dataset.Columns = hu.shape
        dataset.PixelData = np.ascontiguousarray(hu, "<i2").tobytes()
        file = folder / f"{index:04d}.dcm"
        with atomic_write(file) as partial:
            dataset.save_as(partial, enforce_file_format=True)
        files.append(file)
    return files


def write_nifti(
    file: str | os.PathLike,
    volume: np.ndarray,
    spacing: tuple[float, float, float],
    *,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    direction: np.ndarray = _DIRECTION,
) -> None:
    """Write a volume as NIfTI, ``.nii`` or ``.nii.gz``.

    Args:
        file: its path.
        volume, spacing, origin, direction: see :func:`write_dicom`.
    """
    import nibabel  # slow to import

    affine = np.eye(4)
    affine[:3, :3] = np.multiply(direction, spacing)
    affine[:3, 3] = origin
    image = nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    with atomic_write(file) as partial:
        # nibabel infers the format from the file name, which ends in .part here.
        data = image.to_bytes()
        partial.write_bytes(
            gzip.compress(data, 1, mtime=0) if os.fspath(file).endswith(".gz") else data
        )


def _header(patient: str, series_number: int, index: int):
    """The attributes of a CT image that do not depend on the volume."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    def uid(*parts: object) -> str:
        return generate_uid(entropy_srcs=["lesion_d2", *map(str, parts)])

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = uid(patient, series_number, index)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    dataset.Modality = "CT"
    dataset.Manufacturer = "lesion_d2"
    dataset.PatientName, dataset.PatientID = f"{patient}^", patient
    for keyword in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"):
        setattr(dataset, keyword, "")
    for keyword in ("PatientBirthDate", "PatientSex", "KVP", "PositionReferenceIndicator"):
        setattr(dataset, keyword, "")
    dataset.Laterality = ""
    dataset.StudyID = "1"
    dataset.StudyInstanceUID = uid(patient)
    dataset.FrameOfReferenceUID = uid(patient, "frame")
    dataset.SeriesInstanceUID = uid(patient, series_number)
    dataset.SeriesNumber = series_number
    dataset.AcquisitionNumber = 1
    dataset.InstanceNumber = index + 1
    dataset.PatientPosition = "HFS"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "HU"
    return dataset
