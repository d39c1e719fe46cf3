"""Findings as CSV and in COCO's results format."""

import csv
import os
from collections.abc import Iterable
from pathlib import PurePath

from ..utils.files import atomic_write, write_json
from .finding import Finding, Findings, SliceFinding

_CORNERS = ("x1_mm", "y1_mm", "z1_mm", "x2_mm", "y2_mm", "z2_mm")
#: Columns of the CSV file. Slices and voxels count from 0; ``_mm`` are patient coordinates (LPS).
CSV_COLUMNS = (
    *("scan", "number", "category", "score", "key_slice", "first_slice", "last_slice"),
    *("x1", "y1", "x2", "y2", *_CORNERS),
    *("long_diameter_mm", "short_diameter_mm", "diameters_slice", "volume_mm3", "measured_on"),
)


def write_csv(file: str | os.PathLike, scans: Iterable[Findings]) -> None:
    """Write one row per finding, for one or more scans.

    Columns are :data:`CSV_COLUMNS`: the box of :class:`~lesion_d2.findings.Finding` in voxels and
    in mm, and its measurements.
    """
    with atomic_write(file) as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(CSV_COLUMNS)
        for findings in scans:
            writer.writerows(_row(findings.scan_name, finding) for finding in findings.findings)


def write_coco(file: str | os.PathLike, scans: Iterable[Findings]) -> None:
    """Write the boxes of all findings on slices in the format of Detectron2's detections.

    As in ``coco_instances_results.json``, this is a list of ``image_id``, ``category_id``, ``bbox``
    (x, y, width, height), ``score`` and, for findings with masks, ``segmentation`` in COCO's RLE.
    As in the project's data sets, an ``image_id`` is the scan's name followed by the slice: the
    file name in a folder of PNG files, or else the index with at least three digits.
    """
    content = [
        _coco_result(findings.scan_name, finding, entry)
        for findings in scans
        for finding in findings.findings
        for entry in finding.slices
    ]
    write_json(file, content)


def _row(scan: str, finding: Finding) -> list[object]:
    x1, y1, z1, x2, y2, z2 = finding.box
    return [
        scan,
        finding.number,
        finding.category,
        finding.score,
        finding.key_slice,
        round(z1),
        round(z2),
        *(x1, y1, x2, y2),
        *(*finding.box_mm[0], *finding.box_mm[1]),
        finding.long_diameter.length_mm,
        finding.short_diameter.length_mm,
        finding.long_diameter.slice_index,
        finding.volume_mm3,
        finding.measured_on,
    ]


def _coco_result(scan: str, finding: Finding, entry: SliceFinding) -> dict[str, object]:
    x1, y1, x2, y2 = entry.box
    result = {
        "image_id": f"{scan}_{_slice_name(entry)}",
        "category_id": finding.category_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": entry.score,
    }
    return result if entry.mask is None else {**result, "segmentation": dict(entry.mask)}


def _slice_name(entry: SliceFinding) -> str:
    file = PurePath(entry.file or "")
    return file.stem if file.suffix.lower() == ".png" else f"{entry.slice_index:03d}"
