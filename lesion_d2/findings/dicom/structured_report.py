"""Findings as a DICOM structured report: Comprehensive 3D SR, TID 1500."""

from __future__ import annotations

import os

import highdicom as hd
import numpy as np
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from ...scans import Scan
from ...scans.dicom.files import quiet
from ...structures.outlines import box_outline, mask_outlines
from ...structures.rle import decode_mask
from ...utils.files import atomic_write
from ..finding import Finding, Findings
from . import concepts
from .source import DicomSource

#: Series number of the reports; viewers list them after the images.
SERIES_NUMBER = 9001


@quiet()
def write_structured_report(file: str | os.PathLike, scan: Scan, findings: Findings) -> None:
    """Write findings as a DICOM structured report on the images of a scan.

    Each finding is a measurement group (TID 1411) with its region, long axis, short axis, volume,
    score ("Certainty of Finding": the detector's score in percent, not a probability of disease)
    and class. Regions are the outlines of its masks, or else its boxes, in pixels of the source
    images, or in patient coordinates if slices were resampled. The measurement method of volume and
    axes says whether they were measured on masks or estimated from boxes. For a scan without
    findings, a group says so.

    Patient and study are those of the images. The report is preliminary and unverified, has the
    software as its only observer, and contains no diagnosis.

    Args:
        file: path of the ``.dcm`` file.
        scan: the findings' scan, read from DICOM.
        findings: its findings.

    Raises:
        ValueError: the scan is not from DICOM files, or a UID is missing or not unique.
    """
    source = DicomSource(scan)
    groups = [_group(source, findings, finding) for finding in findings.findings]
    content = hd.sr.MeasurementReport(
        observation_context=_observer(findings),
        procedure_reported=codes.cid100.CTUnspecifiedBodyRegion,
        imaging_measurements=groups or [_nothing_found(source, findings)],
        title=codes.DCM.ImagingMeasurementReport,
    )
    report = hd.sr.Comprehensive3DSR(
        evidence=source.images,
        content=content[0],
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description=concepts.description(findings.algorithm),
        coding_schemes=[
            CodingSchemeIdentificationItem(designator=concepts.SCHEME, name=concepts.SCHEME_NAME)
        ],
        **concepts.equipment(findings.algorithm),
    )
    with atomic_write(file) as partial:
        report.save_as(partial, enforce_file_format=True)


def _observer(findings: Findings) -> hd.sr.ObservationContext:
    algorithm = findings.algorithm
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[algorithm.name, concepts.model_digest(algorithm)]),
        name=concepts.cut(algorithm.name),
        manufacturer_name=concepts.cut(algorithm.name),
        model_name=concepts.cut(f"{algorithm.meta_architecture or ''} {algorithm.version}"),
        serial_number=concepts.model_digest(algorithm),
    )
    return hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        )
    )


def _group(source: DicomSource, findings: Findings, finding: Finding):
    identifier, uid = concepts.tracking(findings, finding, source.images[0].SeriesInstanceUID)
    place = concepts.site(finding)
    common = {
        "tracking_identifier": hd.sr.TrackingIdentifier(uid=uid, identifier=identifier),
        "finding_category": concepts.CATEGORY,
        "finding_type": concepts.TYPE,
        "finding_sites": None if place is None else [hd.sr.FindingSite(anatomic_location=place)],
        "algorithm_id": _algorithm(findings),
        "measurements": _measurements(finding),
        "qualitative_evaluations": [
            hd.sr.QualitativeEvaluation(concepts.CLASS, concepts.class_code(finding))
        ],
    }
    outlines = _outlines(finding)
    if all(source.is_stored(index) for index, _ in outlines):
        regions = [_region(source, index, points) for index, points in outlines]
        return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_regions=regions, **common
        )
    polygons = [source.to_patient(index, points) for index, points in outlines]
    if len(polygons) == 1:  # not a surface
        region = hd.sr.ImageRegion3D(
            graphic_type=hd.sr.GraphicTypeValues3D.POLYGON,
            graphic_data=polygons[0],
            frame_of_reference_uid=source.frame_of_reference_uid,
        )
        return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            referenced_region=region, **common
        )
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        referenced_volume_surface=_surface(source, [i for i, _ in outlines], polygons), **common
    )


def _outlines(finding: Finding) -> list[tuple[int, np.ndarray]]:
    """Slice and closed polygon, (N, 2) x, y in voxels, of each part of a finding."""
    if finding.measured_on == "box":
        return [(entry.slice_index, box_outline(entry.box)) for entry in finding.slices]
    return [
        (entry.slice_index, points)
        for entry in finding.slices
        if entry.mask is not None
        for points in mask_outlines(decode_mask(entry.mask))
    ]


def _region(source: DicomSource, index: int, points: np.ndarray) -> hd.sr.ImageRegion:
    image = hd.sr.SourceImageForRegion.from_source_image(
        source.image_of(index), source.frame_numbers(index)
    )
    # In DICOM reports, the first pixel's center is at (0.5, 0.5).
    return hd.sr.ImageRegion(
        graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
        graphic_data=source.to_pixels(points) + 0.5,
        source_image=image,
    )


def _surface(source: DicomSource, indices: list[int], polygons: list) -> hd.sr.VolumeSurface:
    frames: dict[str, set[int]] = {}
    images = {}
    for index in indices:
        image = source.image_of(index)
        images[image.SOPInstanceUID] = image
        frames.setdefault(image.SOPInstanceUID, set()).update(source.frame_numbers(index) or ())
    return hd.sr.VolumeSurface(
        graphic_type=hd.sr.GraphicTypeValues3D.POLYGON,
        graphic_data=polygons,
        frame_of_reference_uid=source.frame_of_reference_uid,
        source_images=[
            hd.sr.SourceImageForSegmentation.from_source_image(image, sorted(frames[uid]) or None)
            for uid, image in images.items()
        ],
    )


def _measurements(finding: Finding) -> list[hd.sr.Measurement]:
    method = concepts.METHODS[finding.measured_on]
    millimeter, cubic = codes.UCUM.Millimeter, codes.UCUM.CubicMillimeter
    return [
        hd.sr.Measurement(
            codes.SCT.LongAxis, finding.long_diameter.length_mm, millimeter, method=method
        ),
        hd.sr.Measurement(
            codes.SCT.ShortAxis, finding.short_diameter.length_mm, millimeter, method=method
        ),
        hd.sr.Measurement(codes.SCT.Volume, finding.volume_mm3, cubic, method=method),
        hd.sr.Measurement(codes.DCM.CertaintyOfFinding, 100 * finding.score, codes.UCUM.Percent),
    ]


def _algorithm(findings: Findings) -> hd.sr.AlgorithmIdentification:
    return hd.sr.AlgorithmIdentification(
        name=concepts.cut(findings.algorithm.name),
        version=concepts.cut(findings.algorithm.version) or "unknown",
        parameters=[f"{key}={value}" for key, value in concepts.parameters(findings).items()],
        family=codes.DCM.ArtificialIntelligence,
    )


def _nothing_found(source: DicomSource, findings: Findings):
    series_uid = source.images[0].SeriesInstanceUID
    uid = generate_uid(entropy_srcs=[series_uid, concepts.model_digest(findings.algorithm)])
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=uid, identifier="No findings"),
        algorithm_id=_algorithm(findings),
        source_images=[hd.sr.SourceImageForMeasurementGroup.from_source_image(source.images[0])],
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(
                codes.DCM.CADProcessingAndFindingsSummary,
                codes.DCM.AllAlgorithmsSucceededWithoutFindings,
            )
        ],
    )
