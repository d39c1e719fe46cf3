"""Masks of findings as a DICOM segmentation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import highdicom as hd
import numpy as np
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from ...files import written_whole
from ...scans import Scan
from ..finding import Finding, Findings
from ..label_map import region_masks
from . import concepts
from .source import DicomSource

#: Series number of the segmentations; viewers list them behind the images.
SERIES_NUMBER = 9002


def write_segmentation(file: str | os.PathLike, scan: Scan, findings: Findings) -> None:
    """Write the masks of findings as a DICOM segmentation of the images of a scan.

    Each finding with masks is a segment, with the tracking identifier and UID that it has in the
    structured report. Frames have the rows, columns and places of the images' own; where slices
    were resampled, they lie between them.

    Args:
        file: the file, ``.dcm``.
        scan: the findings' scan, read from DICOM.
        findings: what was found in it, some of it with masks.

    Raises:
        ValueError: the scan is not of DICOM files, they lack a UID, or no finding has a mask.
    """
    source = DicomSource(scan)
    masks = {
        number: region_masks(finding, scan.volume.shape[1:])
        for number, finding in enumerate(findings.findings)
        if finding.measured_on == "mask"
    }
    if not masks:
        raise ValueError(f"{scan.name}: found no finding with a mask, expected one to segment")
    indices = sorted({index for slices in masks.values() for index in slices})
    first = source.images[0]
    segmentation = hd.seg.Segmentation(
        source_images=[first] if "NumberOfFrames" in first else source.images,
        further_source_images=source.images[1:] if "NumberOfFrames" in first else None,
        pixel_array=_stored_pixels(scan, list(masks.values()), indices),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _segment(number, findings, findings.findings[place], first.SeriesInstanceUID)
            for number, place in enumerate(masks, start=1)
        ],
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        content_label="FINDINGS",
        content_description=concepts.description(findings.algorithm),
        series_description=concepts.description(findings.algorithm),
        pixel_measures=hd.PixelMeasuresSequence(
            pixel_spacing=source.pixel_spacing,
            slice_thickness=scan.spacing[2],
            spacing_between_slices=scan.spacing[2],
        ),
        plane_orientation=hd.PlaneOrientationSequence(
            coordinate_system=hd.CoordinateSystemNames.PATIENT,
            image_orientation=source.orientation.tolist(),
        ),
        plane_positions=[
            hd.PlanePositionSequence(
                coordinate_system=hd.CoordinateSystemNames.PATIENT,
                image_position=source.position(index).tolist(),
            )
            for index in indices
        ],
        **concepts.equipment(findings.algorithm),
    )
    with written_whole(file) as partial:
        segmentation.save_as(partial, enforce_file_format=True)


def _stored_pixels(
    scan: Scan, masks: Sequence[Mapping[int, np.ndarray]], indices: Sequence[int]
) -> np.ndarray:
    """Masks of all segments in the rows and columns of stored frames.

    Returns:
        (slices, rows, columns) with numbers of segments or, where some overlap, (slices, rows,
        columns, segments) of 0 and 1.
    """
    places = {index: place for place, index in enumerate(indices)}
    shape = scan.to_source_slice(scan.volume[0]).shape
    cover = np.zeros((len(indices), *shape), np.uint16)
    labels = np.zeros_like(cover)
    for number, slices in enumerate(masks, start=1):
        for index, mask in slices.items():
            stored = scan.to_source_slice(mask)
            cover[places[index]] += stored
            labels[places[index]][stored] = number
    if cover.max() <= 1:
        return labels
    pixels = np.zeros((*cover.shape, len(masks)), np.uint8)
    for number, slices in enumerate(masks):
        for index, mask in slices.items():
            pixels[places[index], ..., number] = scan.to_source_slice(mask)
    return pixels


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
