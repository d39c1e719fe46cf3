"""References to a scan's DICOM images, for reports and segmentations."""

import copy

import numpy as np
from pydicom import Dataset
from pydicom.config import RAISE
from pydicom.uid import generate_uid
from pydicom.valuerep import DS, validate_value

from ...scans import Scan
from ...scans.dicom.frame import functional_group

# Required attributes of the patient and the study, which may be empty.
_REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
_OPTIONAL = (
    "IssuerOfPatientID",
    "OtherPatientIDs",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "StudyDescription",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_SEXES = ("M", "F", "O")
_CHECKED = ("AS", "CS", "DA", "DS", "IS", "TM")  # value representations with a fixed format
_NOWHERE = [1e6, 1e6, 1e6]  # position of frames that are not slices, such as a localizer
# A slice within this distance of its source, as a fraction of the spacing or in mm, is not
# resampled. Readers tolerate slightly larger deviations from even spacing.
_TOLERANCE, _TOLERANCE_MM = 0.03, 0.01


class DicomSource:
    """The images of a scan, for reports and segmentations.

    Attributes:
        images: one dataset per image (one for all frames of a multi-frame image), in the order of
            slices, with the identity of patient and study, in Unicode, and the positions of frames.
            Missing or invalid values are empty.
        frame_of_reference_uid: that of the images, or else one derived from the series.

    Raises:
        ValueError: the scan is not from DICOM files, or a UID is missing or not unique.
    """

    def __init__(self, scan: Scan):
        if scan.headers is None:
            raise ValueError(f"{scan.name}: found a scan of {scan.format}, expected DICOM")
        self._scan = scan
        first = scan.headers[0]
        self.frame_of_reference_uid = str(first.get("FrameOfReferenceUID") or "") or generate_uid(
            entropy_srcs=[_uid(scan, first, "SeriesInstanceUID"), "frame of reference"]
        )
        self._by_uid: dict[str, Dataset] = {}
        files: dict[str, str] = {}
        for header, source in zip(scan.headers, scan.sources, strict=True):
            uid = _uid(scan, header, "SOPInstanceUID")
            if files.setdefault(uid, source.file) != source.file:
                raise ValueError(
                    f"{scan.name}: found the SOP Instance UID {uid} in {files[uid]} and in "
                    f"{source.file}, expected another UID in each file"
                )
            if uid not in self._by_uid:
                self._by_uid[uid] = self._image(header)
        self.images = list(self._by_uid.values())
        # x and y in the scan of a stored frame's first pixel.
        corners = np.array(
            [[x, y] for x in (0, scan.volume.shape[2] - 1) for y in (0, scan.volume.shape[1] - 1)]
        )
        distances = np.abs(scan.to_source_points(corners)).sum(axis=1)
        self._first_pixel = corners[int(distances.argmin())]

    def image_of(self, index: int) -> Dataset:
        """The image of a slice of the scan, or the nearest one if slices were resampled."""
        return self._by_uid[str(self._scan.headers[index].SOPInstanceUID)]

    def frame_numbers(self, index: int) -> list[int] | None:
        """Number of a slice's frame, from 1, in a list; None if the image has one frame."""
        frame = self._scan.sources[index].frame
        return None if frame is None else [frame + 1]

    def is_stored(self, index: int) -> bool:
        """Whether a slice of the scan is a stored image, not interpolated between two."""
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        offset = abs((self._place(index) - self._stored_position(index)) @ normal)
        return bool(offset <= _TOLERANCE * self._scan.spacing[2] + _TOLERANCE_MM)

    def position(self, index: int) -> np.ndarray:
        """Center of the first pixel of a slice's stored frame, LPS in mm."""
        return self._stored_position(index) if self.is_stored(index) else self._place(index)

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Map (N, 2) x, y in slices to column, row in stored frames; integers are pixel centers."""
        return self._scan.to_source_points(points)

    def to_patient(self, index: int, points: np.ndarray) -> np.ndarray:
        """Map (N, 2) x, y in a slice of the scan to patient coordinates, (N, 3) LPS in mm."""
        return self._scan.to_patient(np.column_stack([points, np.full(len(points), index)]))

    @property
    def orientation(self) -> np.ndarray:
        """(6,) Image Orientation (Patient) of the first frame, up to rounding that of all."""
        return np.array(self._value(0, "PlaneOrientationSequence", "ImageOrientationPatient"))

    @property
    def pixel_spacing(self) -> tuple[float, float]:
        """Pixel Spacing of all frames in mm: between rows, between columns."""
        return tuple(map(float, self._value(0, "PixelMeasuresSequence", "PixelSpacing")))

    def _place(self, index: int) -> np.ndarray:
        return self._scan.to_patient(np.array([[*self._first_pixel, index]]))[0]

    def _stored_position(self, index: int) -> np.ndarray:
        return np.array(self._value(index, "PlanePositionSequence", "ImagePositionPatient"))

    def _value(self, index: int, sequence: str, keyword: str):
        return _value(self._scan.headers[index], self._scan.sources[index].frame, sequence, keyword)

    def _image(self, header: Dataset) -> Dataset:
        image = Dataset()
        image.SpecificCharacterSet = "ISO_IR 192"
        for keyword in _UIDS:
            setattr(image, keyword, _uid(self._scan, header, keyword))
        for keyword in (*_REQUIRED, *_OPTIONAL):
            value = _valid(header, keyword)
            if value is not None or keyword in _REQUIRED:
                setattr(image, keyword, "" if value is None else value)
        image.Modality = "CT"
        image.FrameOfReferenceUID = self.frame_of_reference_uid
        image.PositionReferenceIndicator = _valid(header, "PositionReferenceIndicator") or ""
        image.Rows, image.Columns = int(header.Rows), int(header.Columns)
        for keyword in (
            "LossyImageCompression",
            "LossyImageCompressionRatio",
            "LossyImageCompressionMethod",
        ):
            if (value := _valid(header, keyword)) is not None:
                setattr(image, keyword, value)
        _place_frames(image, header, self.orientation, self._scan.spacing[2])
        return image


def _place_frames(
    image: Dataset, header: Dataset, orientation: np.ndarray, thickness: float
) -> None:
    """Set frame positions: at the root for one frame, in functional groups for several."""

    def item(keyword: str, value) -> list[Dataset]:
        dataset = Dataset()
        setattr(dataset, keyword, value)
        return [dataset]

    frames = header.get("PerFrameFunctionalGroupsSequence")
    first = 0 if frames else None
    spacing = _decimals(_value(header, first, "PixelMeasuresSequence", "PixelSpacing"))
    orientation = _decimals(orientation)
    # It must be above 0 in segmentations, and may be missing in the source.
    declared = _value(header, first, "PixelMeasuresSequence", "SliceThickness")
    thickness = float(declared) if declared and float(declared) > 0 else thickness
    if not frames:
        image.PixelSpacing, image.ImageOrientationPatient = spacing, orientation
        image.ImagePositionPatient = _decimals(header.ImagePositionPatient)
        image.SliceThickness = thickness
        return
    image.NumberOfFrames = len(frames)
    measures = item("PixelSpacing", spacing)
    measures[0].SliceThickness = thickness
    shared = Dataset()
    shared.PixelMeasuresSequence = measures
    shared.PlaneOrientationSequence = item("ImageOrientationPatient", orientation)
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = []
    for index in range(len(frames)):
        group = Dataset()
        position = _value(header, index, "PlanePositionSequence", "ImagePositionPatient")
        place = item("ImagePositionPatient", _decimals(position or _NOWHERE))
        group.PlanePositionSequence = place
        image.PerFrameFunctionalGroupsSequence.append(group)


def _value(header: Dataset, frame: int | None, sequence: str, keyword: str):
    """An attribute of a frame, at the root or in the functional groups of a multi-frame image."""
    if frame is None:
        return header.get(keyword)
    value = functional_group(header.PerFrameFunctionalGroupsSequence[frame], sequence, keyword)
    if value is None:
        shared = header.get("SharedFunctionalGroupsSequence")
        value = functional_group(shared[0] if shared else None, sequence, keyword)
    return value


def _uid(scan: Scan, header: Dataset, keyword: str) -> str:
    value = str(header.get(keyword) or "")
    if not value:
        raise ValueError(f"{scan.name}: found an image without {keyword}, expected its UID")
    return value


def _valid(header: Dataset, keyword: str):
    """An attribute's value, with text in Unicode; None if it is missing, empty or invalid.

    Text is not truncated, as archives match it.
    """
    try:
        element = header[keyword]
        if element.is_empty:
            return None
        if element.VR == "SQ":
            return copy.deepcopy(element.value)
        value = str(element.value) if element.VR == "PN" else element.value
        for part in value if element.VM > 1 else [value]:
            if element.VR in _CHECKED:
                validate_value(element.VR, str(part), RAISE)
    except Exception:  # no value is better than an invalid one
        return None
    return None if keyword == "PatientSex" and value not in _SEXES else value


def _decimals(values) -> list[DS]:
    """Convert numbers to decimal strings of DICOM's maximum length."""
    return [DS(float(value), auto_format=True) for value in values]
