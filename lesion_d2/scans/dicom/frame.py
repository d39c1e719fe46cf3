"""Slices from headers of DICOM files, and reasons why a frame is not a CT slice."""

from typing import TYPE_CHECKING, NamedTuple

from ...structures.slice_geometry import is_spacing
from ..stored import Stored

if TYPE_CHECKING:
    import pydicom

#: Attributes that are read when a folder is listed.
LISTED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "ImageType",
    "AcquisitionTime",
    "Modality",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ConvolutionKernel",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "NominalPercentageOfCardiacPhase",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
#: Attributes that may separate the phases of a series; the first that does is used.
PHASES = (
    "AcquisitionNumber",
    "StackID",
    "TemporalPositionIdentifier",
    "NominalPercentageOfCardiacPhase",
    "TriggerTime",
    "ImageType",
    "ConvolutionKernel",
    "AcquisitionTime",
)
_CT = "1.2.840.10008.5.1.4.1.1.2"
_ENHANCED = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
_SECONDARY = "1.2.840.10008.5.1.4.1.1.7"
_ALIKE = 1e-3  # tolerance of direction cosines, and of pixel spacings in mm


class Unsuitable(ValueError):
    """The reason why a file or frame is not a slice of a CT scan."""


class Frame(NamedTuple):
    """A slice in a DICOM file."""

    stored: Stored
    index: int | None  # of a multi-frame file
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    series_number: str
    instance_number: int
    size: tuple[int, int]  # rows, columns
    pixel_spacing: tuple[float, float]  # between rows, between columns, mm
    position: tuple[float, float, float]  # of the first pixel's center, LPS, mm
    orientation: tuple[float, ...]  # along a row, along a column
    thickness: float | None  # mm; the spacing between slices if it is given
    phases: tuple[str, ...]  # of PHASES

    @property
    def label(self) -> str:
        """Its file, and its frame number in a multi-frame file."""
        return str(self.stored) if self.index is None else f"{self.stored} (frame {self.index})"

    def fits(self, other: "Frame") -> bool:
        """Whether two slices of a series can form a stack: the same geometry within rounding."""
        pairs = zip(
            (*self.orientation, *self.pixel_spacing),
            (*other.orientation, *other.pixel_spacing),
            strict=True,
        )
        return self.size == other.size and all(abs(a - b) < _ALIKE for a, b in pairs)


def frames_of(dataset: "pydicom.Dataset", stored: Stored) -> tuple[list[Frame], Unsuitable | None]:
    """The slices of a file, from its header.

    Returns:
        The slices and, for a multi-frame file, the problem of its other frames or None.

    Raises:
        Unsuitable: the file has no slices of a CT scan.
        ValueError: it has, but without pixels.
    """
    check_kind(dataset)
    groups = _groups(dataset)
    if groups is None:
        return [_frame(dataset, (dataset,), stored, None)], None
    frames, problems = [], []
    for index, group in enumerate(groups):
        try:
            frames.append(_frame(dataset, group, stored, index))
        except Unsuitable as problem:
            problems.append(problem)
    if not problems:
        return frames, None
    if not frames:
        raise problems[0]
    return frames, Unsuitable(f"{len(problems)} of its {len(groups)} frames: {problems[0]}")


def check_kind(dataset: "pydicom.Dataset") -> None:
    """Check that a dataset is a CT image with one value per pixel.

    Raises:
        Unsuitable: it is not.
        ValueError: it is, but has no pixels.
    """
    from pydicom.uid import UID

    # A truncated file may have it only in the meta information.
    sop_class = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or ""
    sop_class = UID(str(sop_class))
    modality = str(dataset.get("Modality") or "")
    if modality not in ("CT", ""):
        raise Unsuitable(f"found the modality {modality!r}, expected CT")
    if sop_class == _SECONDARY or sop_class.startswith(f"{_SECONDARY}."):
        raise Unsuitable("found a secondary capture, expected CT images")
    if sop_class not in (_CT, *_ENHANCED):
        raise Unsuitable(f"found {sop_class.name or 'no SOP Class UID'}, expected CT Image Storage")
    if "Rows" not in dataset or "Columns" not in dataset:
        raise ValueError("found no pixels, expected an image")
    samples = _integer(dataset, "SamplesPerPixel")
    if samples != 1:
        photometric = dataset.get("PhotometricInterpretation")
        raise Unsuitable(f"found {samples} samples a pixel ({photometric}), expected one")
    bits = [_integer(dataset, key) for key in ("BitsAllocated", "BitsStored", "HighBit")]
    if bits[0] not in (8, 16, 32) or not 0 < bits[1] <= bits[0] or bits[2] != bits[1] - 1:
        raise Unsuitable(
            f"found pixels of {bits[1]} bits below bit {bits[2]} of {bits[0]}, expected at most "
            "8, 16 or 32, the lowest ones"
        )


def functional_group(item, name: str, keyword: str):
    """A value in a multi-frame file's functional group, or None."""
    sequence = item.get(name) if item is not None else None
    return sequence[0].get(keyword) if sequence else None


def _groups(dataset: "pydicom.Dataset") -> list[tuple] | None:
    """The functional groups of each frame of a multi-frame file, with the shared ones."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    count = _integer(dataset, "NumberOfFrames", 1)
    if not per_frame:
        if count != 1 or dataset.get("SOPClassUID") in _ENHANCED:
            raise Unsuitable(
                f"found {count} frames without functional groups, expected their places"
            )
        return None
    if len(per_frame) != count:
        raise Unsuitable(f"found the groups of {len(per_frame)} frames, expected {count}")
    shared = dataset.get("SharedFunctionalGroupsSequence")
    return [(item, shared[0] if shared else None) for item in per_frame]


def _frame(dataset, groups: tuple, stored: Stored, index: int | None) -> Frame:
    def value(name: str, keyword: str):
        if index is None:
            return dataset.get(keyword)
        found = (functional_group(group, name, keyword) for group in groups)
        return next((item for item in found if item is not None), None)

    image_type = value("CTImageFrameTypeSequence", "FrameType") or dataset.get("ImageType") or ()
    image_type = [image_type] if isinstance(image_type, str) else list(image_type)
    if any(part.strip().upper() in ("LOCALIZER", "SCOUT") for part in image_type):
        raise Unsuitable("found a localizer, expected axial slices")
    if any(part.strip().upper() == "PERFUSION" for part in image_type):
        raise Unsuitable("found a perfusion map, expected HU")
    unit = str(value("PixelValueTransformationSequence", "RescaleType") or "HU").strip().upper()
    if unit not in ("HU", "US"):  # US is unspecified
        raise Unsuitable(f"found values of the unit {unit!r}, expected HU")
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        if value("PixelValueTransformationSequence", keyword) is None:
            raise Unsuitable(f"found no {keyword}, expected what makes HU of the values")
    size = _integer(dataset, "Rows", 0), _integer(dataset, "Columns", 0)
    if min(size) < 1:
        raise Unsuitable(f"found {size[1]} x {size[0]} pixels, expected an image")
    spacing = _numbers(value("PixelMeasuresSequence", "PixelSpacing"), 2)
    if spacing is None or not all(map(is_spacing, spacing)):
        raise Unsuitable(f"found the Pixel Spacing {spacing}, expected two distances in mm")
    position = _numbers(value("PlanePositionSequence", "ImagePositionPatient"), 3)
    orientation = _numbers(value("PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    if position is None or orientation is None:
        raise Unsuitable("found no Image Position and Orientation (Patient), expected both")
    distance = value("PixelMeasuresSequence", "SpacingBetweenSlices")
    thickness = _numbers(distance or value("PixelMeasuresSequence", "SliceThickness"), 1)
    return Frame(
        stored,
        index,
        str(dataset.get("SOPInstanceUID") or ""),
        str(dataset.get("StudyInstanceUID") or ""),
        str(dataset.get("SeriesInstanceUID") or ""),
        str(dataset.get("SeriesNumber") if dataset.get("SeriesNumber") is not None else ""),
        _integer(dataset, "InstanceNumber", 0),
        size,
        spacing,
        position,
        orientation,
        abs(thickness[0]) if thickness else None,
        _phases(dataset, groups, index, image_type),
    )


def _phases(dataset, groups: tuple, index: int | None, image_type: list[str]) -> tuple[str, ...]:
    found = {keyword: dataset.get(keyword) for keyword in PHASES}
    found["ImageType"] = image_type
    if index is not None:
        item = groups[0]
        for keyword, source in (
            ("StackID", "StackID"),
            ("AcquisitionNumber", "FrameAcquisitionNumber"),
            ("TemporalPositionIdentifier", "TemporalPositionIndex"),
        ):
            found[keyword] = functional_group(item, "FrameContentSequence", source)
    return tuple("" if found[keyword] is None else str(found[keyword]) for keyword in PHASES)


def _integer(dataset, keyword: str, default: int | None = None) -> int | None:
    value = dataset.get(keyword)
    try:
        return default if value is None else int(value)
    except (TypeError, ValueError):
        raise Unsuitable(f"found the {keyword} {str(value)[:40]!r}, expected a number") from None


def _numbers(values, count: int) -> tuple[float, ...] | None:
    """``count`` finite numbers, or None."""
    if values is None or values == "":
        return None
    try:
        numbers = tuple(float(value) for value in ([values] if count == 1 else values))
    except (TypeError, ValueError):
        return None
    is_finite = all(abs(number) < 1e6 for number in numbers)  # False for NaN; mm or cosines
    return numbers if len(numbers) == count and is_finite else None
