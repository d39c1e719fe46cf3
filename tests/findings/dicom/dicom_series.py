"""Synthetic CT series on disk with one bright ellipsoid at a known place in the patient."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

#: Of the ellipsoid: center in LPS and half-axes, mm.
CENTER, AXES = np.array([-12.0, 7.0, -310.0]), np.array([9.0, 14.0, 6.0])
SHAPE = (48, 56)  # rows and columns of frames
PIXEL_SPACING = (0.9, 0.7)  # between rows, between columns


def inside(points: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Whether points in LPS, (..., 3) in mm, lie in the ellipsoid times a scale."""
    return (((points - CENTER) / AXES) ** 2).sum(axis=-1) <= scale**2


def write_series(
    folder: Path,
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    *,
    heights: np.ndarray | None = None,
    tilt: float = 0.0,
    uids: tuple[str, str, str] | None = None,
    **attributes,
) -> list[Path]:
    """Write a file a slice.

    Args:
        folder: where to.
        orientation: Image Orientation (Patient).
        heights: of the slices along the patient's axis in mm; every 2.5 mm by default.
        tilt: mm that a slice lies further to posterior for each mm of height.
        uids: of the study, the series and the frame of reference; new ones by default.
        attributes: others of the datasets; None takes one away.
    """
    folder.mkdir(parents=True)
    if heights is None:
        heights = CENTER[2] + 2.5 * np.arange(-4, 5)
    uids = uids or tuple(generate_uid() for _ in range(3))
    files = []
    for number, height in enumerate(np.random.default_rng(0).permutation(heights)):
        position = _first_pixel(orientation, height, tilt)
        dataset = _image(*uids)
        dataset.SOPClassUID = CTImageStorage
        dataset.InstanceNumber = number + 1
        dataset.ImagePositionPatient = position.tolist()
        dataset.ImageOrientationPatient = list(orientation)
        dataset.PixelSpacing = list(PIXEL_SPACING)
        dataset.SliceThickness = 2.5
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = _pixels(position, orientation).tobytes()
        for keyword, value in attributes.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        files.append(folder / f"{number}.dcm")
        _save(dataset, files[-1])
    return files


def write_multi_frame(
    file: Path,
    orientation: tuple[float, ...],
    heights: np.ndarray,
    uids: tuple[str, str, str] | None = None,
) -> None:
    """Write an Enhanced CT image with all slices.

    Args:
        file: where to.
        orientation, heights: see :func:`write_series`.
        uids: of the study, the series and the frame of reference; new ones by default.
    """
    dataset = _image(*(uids or (generate_uid() for _ in range(3))))
    dataset.SOPClassUID = EnhancedCTImageStorage
    dataset.InstanceNumber = 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    shared = Dataset()
    shared.PixelMeasuresSequence = [_item(PixelSpacing=list(PIXEL_SPACING), SliceThickness=2.5)]
    shared.PixelValueTransformationSequence = [
        _item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    ]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups, pixels = [], []
    for height in heights:
        position = _first_pixel(orientation, height, 0.0)
        group = Dataset()
        group.PlanePositionSequence = [_item(ImagePositionPatient=position.tolist())]
        # Of each frame on its own, as some scanners write it.
        group.PlaneOrientationSequence = [_item(ImageOrientationPatient=list(orientation))]
        groups.append(group)
        pixels.append(_pixels(position, orientation))
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.NumberOfFrames = len(groups)
    dataset.PixelData = np.stack(pixels).tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    _save(dataset, file)


def _first_pixel(orientation, height: float, tilt: float) -> np.ndarray:
    """Where the first pixel of a slice lies, so that its middle is near the ellipsoid's."""
    row, column = np.reshape(orientation, (2, 3))
    offset = row * PIXEL_SPACING[1] * (SHAPE[1] / 2 + 3) + column * PIXEL_SPACING[0] * (
        SHAPE[0] / 2 - 2
    )
    middle = np.array([CENTER[0], CENTER[1] + tilt * (height - CENTER[2]), height])
    return np.round(middle - offset, 6)


def _pixels(position: np.ndarray, orientation) -> np.ndarray:
    row, column = np.reshape(orientation, (2, 3))
    y, x = np.indices(SHAPE)
    places = (
        position + x[..., None] * PIXEL_SPACING[1] * row + y[..., None] * PIXEL_SPACING[0] * column
    )
    return np.where(inside(places), 1024 + 60, 0).astype(np.uint16)


def _image(study: str, series: str, frame: str) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    dataset.PatientID, dataset.PatientSex, dataset.PatientAge = "ID 7", "O", "061Y"
    dataset.PatientBirthDate = "19600229"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.SOPInstanceUID, dataset.FrameOfReferenceUID = generate_uid(), frame
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20240102", "101112", "S1"
    dataset.AccessionNumber, dataset.ReferringPhysicianName = "A-1", "Doe^Jane"
    dataset.StudyDescription, dataset.SeriesNumber = "Thorax", 4
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PositionReferenceIndicator = ""
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *SHAPE, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    return dataset


def _item(**attributes) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def _save(dataset: Dataset, file: Path) -> None:
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(file, enforce_file_format=True)
