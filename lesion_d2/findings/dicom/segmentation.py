"""Masks of findings as a DICOM segmentation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import highdicom as hd
import numpy as np
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from ...scans import Scan
from ...scans.dicom.files import quiet
from ...utils.files import atomic_write
from ..finding import Finding, Findings
from ..label_map import region_masks
from . import concepts
from .source import DicomSource

#: Series number of the segmentations; viewers list them after the images.
SERIES_NUMBER = 9002
_DERIVATION = Code("113076", "DCM", "Segmentation")
#: Maximum pixels of overlapping segments, which are stored on all slices each.
MAX_PIXELS = 2**32


@quiet()
def write_segmentation(file: str | os.PathLike, scan: Scan, findings: Findings) -> None:
    """Write the masks of findings as a DICOM segmentation of the images of a scan.

    Each finding with masks is a segment, with the same tracking identifier and UID as in the
    structured report. Frames have the rows, columns and positions of the images and refer to them;
    if slices were resampled, frames lie between images.

    Args:
        file: path of the ``.dcm`` file.
        scan: the findings' scan, read from DICOM.
        findings: its findings, at least one with masks.

    Raises:
        ValueError: the scan is not from DICOM files, a UID is missing or not unique, no finding has
            a mask, or too many overlap (number of findings times pixels of their slices above
            2^32).
    """
    source = DicomSource(scan)
    found = [finding for finding in findings.findings if finding.measured_on == "mask"]
    if not found:
        raise ValueError(f"{scan.name}: found no finding with a mask, expected one to segment")
    size = scan.volume.shape[1:]
    indices = sorted({index for finding in found for index in region_masks(finding, size)})
    # highdicom takes one multi-frame image or any number of single-frame ones.
    images = sorted(source.images, key=lambda image: "NumberOfFrames" not in image)
    count = 1 if "NumberOfFrames" in images[0] else len(images)
    positions = [_position(source.position(index)) for index in indices]
    segmentation = hd.seg.Segmentation(
        source_images=images[:count],
        further_source_images=images[count:],
        pixel_array=_stored_pixels(scan, found, indices),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _segment(number, findings, finding, images[0].SeriesInstanceUID)
            for number, finding in enumerate(found, start=1)
        ],
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        content_label="FINDINGS",
        content_description=concepts.description(findings.algorithm),
        series_description=concepts.description(findings.algorithm),
        plane_positions=positions,
        **_geometry(scan, source),
        **concepts.equipment(findings.algorithm),
    )
    _refer_to_images(
        segmentation.PerFrameFunctionalGroupsSequence,
        source,
        {_place(position): index for position, index in zip(positions, indices, strict=True)},
    )
    with atomic_write(file) as partial:
        segmentation.save_as(partial, enforce_file_format=True)


def _geometry(scan: Scan, source: DicomSource) -> dict:
    """What all frames share: arguments of highdicom's segmentation."""
    return {
        "pixel_measures": hd.PixelMeasuresSequence(
            pixel_spacing=source.pixel_spacing,
            slice_thickness=scan.spacing[2],
            spacing_between_slices=scan.spacing[2],
        ),
        "plane_orientation": hd.PlaneOrientationSequence(
            coordinate_system=hd.CoordinateSystemNames.PATIENT,
            image_orientation=source.orientation.tolist(),
        ),
    }


def _position(point: np.ndarray) -> hd.PlanePositionSequence:
    return hd.PlanePositionSequence(
        coordinate_system=hd.CoordinateSystemNames.PATIENT, image_position=point.tolist()
    )


def _place(position: Sequence[Dataset]) -> tuple[float, ...]:
    return tuple(map(float, position[0].ImagePositionPatient))


def _refer_to_images(
    frames: Iterable[Dataset], source: DicomSource, slices: Mapping[tuple[float, ...], int]
) -> None:
    """Reference the source image of each frame at an image's position.

    highdicom only does this if all frames are from one multi-frame image, or all from single-frame
    ones.

    Args:
        frames: functional groups of the segmentation's frames.
        source: the source images.
        slices: position of a frame -> slice of the scan.
    """
    for frame in frames:
        index = slices[_place(frame.PlanePositionSequence)]
        if frame.DerivationImageSequence or not source.is_stored(index):
            continue
        image, reference, derivation = source.image_of(index), Dataset(), Dataset()
        reference.ReferencedSOPClassUID = image.SOPClassUID
        reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
        if numbers := source.frame_numbers(index):
            reference.ReferencedFrameNumber = numbers[0]
        reference.SpatialLocationsPreserved = "YES"
        purpose = codes.DCM.SourceImageForImageProcessingOperation
        reference.PurposeOfReferenceCodeSequence = [hd.sr.CodedConcept.from_code(purpose)]
        derivation.SourceImageSequence = [reference]
        derivation.DerivationCodeSequence = [hd.sr.CodedConcept.from_code(_DERIVATION)]
        frame.DerivationImageSequence = [derivation]


def _stored_pixels(scan: Scan, found: Sequence[Finding], indices: Sequence[int]) -> np.ndarray:
    """Masks of all segments, in the rows and columns of stored frames.

    Returns:
        (slices, rows, columns) with segment numbers or, if segments overlap, (slices, rows,
        columns, segments) with 0 and 1.
    """
    places = {index: place for place, index in enumerate(indices)}
    shape = len(indices), *scan.to_source_slice(scan.volume[0]).shape
    labels, overlap = np.zeros(shape, np.uint16), False
    for number, finding in enumerate(found, start=1):
        for place, mask in _stored_masks(scan, finding, places):
            overlap |= bool(labels[place][mask].any())
            labels[place][mask] = number
    if not overlap:
        return labels
    count = len(found) * labels.size
    if count > MAX_PIXELS:
        raise ValueError(
            f"{scan.name}: found {len(found)} findings on {len(indices)} slices that overlap, "
            f"{count} pixels of a segmentation, expected at most {MAX_PIXELS}: a higher score "
            "threshold leaves fewer"
        )
    pixels = np.zeros((len(found), *shape), np.uint8)  # zero pages take no memory
    for number, finding in enumerate(found):
        for place, mask in _stored_masks(scan, finding, places):
            pixels[number, place] = mask
    return np.moveaxis(pixels, 0, -1)


def _stored_masks(
    scan: Scan, finding: Finding, places: Mapping[int, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Index in the segmentation's slices, and mask in rows and columns of stored frames."""
    for index, mask in region_masks(finding, scan.volume.shape[1:]).items():
        yield places[index], scan.to_source_slice(mask)


def _segment(
    number: int, findings: Findings, finding: Finding, series_uid: str
) -> hd.seg.SegmentDescription:
    identifier, uid = concepts.tracking(findings, finding, series_uid)
    place = concepts.site(finding)
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=concepts.cut(f"{identifier}: {finding.category}"),
        segmented_property_category=concepts.CATEGORY,
        segmented_property_type=concepts.TYPE,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=concepts.cut(findings.algorithm.name),
            version=concepts.cut(findings.algorithm.version) or "unknown",
            family=codes.DCM.ArtificialIntelligence,
            parameters=concepts.parameters(findings),
        ),
        tracking_id=identifier,
        tracking_uid=uid,
        anatomic_regions=None if place is None else [place],
    )
