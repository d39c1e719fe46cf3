"""Findings of a scan: detected lesions in 3-D with measurements, and the algorithm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class Diameter:
    """A straight line across a finding, within one slice.

    Attributes:
        length_mm: distance of the end points.
        slice_index: index of the slice, from 0.
        points: both end points, (x, y) in voxels; integers are pixel centers.
    """

    length_mm: float
    slice_index: int
    points: tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class SliceFinding:
    """A finding on one slice: the detector's box there.

    Attributes:
        slice_index: index of the slice in the scan, from 0.
        box: X1Y1X2Y2 in voxels; integers are pixel centers.
        score: the detector's score.
        mask: mask of the slice, H x W, in COCO's RLE (``{"size": [H, W], "counts": str}``; see
            :func:`~lesion_d2.findings.decode_mask`), or None if the model predicts no masks.
        file: the slice's file; in a zip, ``<archive>/<member>``. None if unknown.
        frame: frame in a multi-frame file, from 0; None if the file has one slice.
        sop_instance_uid: UID of the DICOM object; None for other formats.
    """

    slice_index: int
    box: tuple[float, float, float, float]
    score: float
    mask: Mapping | None = None
    file: str | None = None
    frame: int | None = None
    sop_instance_uid: str | None = None


@dataclass(frozen=True)
class Finding:
    """A detected lesion with its measurements.

    Attributes:
        number: from 1, by descending score.
        score: the detector's score of the best box.
        category: name of the class in the model's data set.
        category_id: index of the class, from 0.
        box: X1Y1Z1X2Y2Z2 in voxels; integers are voxel centers. It is the linked box: in-plane the
            best box, along z from the first to the last slice.
        box_mm: lowest and highest corner of the box in patient coordinates (LPS), (x, y, z) in mm,
            including the slices' thickness. It is aligned with the patient's axes, so in a tilted
            scan it encloses the box.
        key_slice: the slice of the highest-scoring box; if several have the highest score, as for
            volumetric models, the one with the largest mask, or else the middle one.
        slices: the boxes on slices, by ascending slice.
        volume_mm3: volume in cubic mm.
        long_diameter: the longest in-plane diameter of all slices.
        short_diameter: the longest diameter perpendicular to it on the same slice.
        measured_on: "mask", or "box" if the model predicts no masks: then volume and diameters are
            estimates from ellipses in the boxes (for volumetric models, the volume is that of the
            ellipsoid in the box).
    """

    number: int
    score: float
    category: str
    category_id: int
    box: tuple[float, float, float, float, float, float]
    box_mm: tuple[tuple[float, float, float], tuple[float, float, float]]
    key_slice: int
    slices: tuple[SliceFinding, ...]
    volume_mm3: float
    long_diameter: Diameter
    short_diameter: Diameter
    measured_on: str


@dataclass(frozen=True)
class Algorithm:
    """The algorithm that made the findings.

    Attributes:
        name: name of the software.
        version: version of the software.
        config_file: config file of the model.
        meta_architecture: meta-architecture of the model.
        weights: MODEL.WEIGHTS; for an ensemble, all files joined by ", ".
        weights_sha256: SHA-256 of that file in hexadecimal; for several, joined as ``weights``.
    """

    name: str = "lesion_d2"
    version: str = ""
    config_file: str | None = None
    meta_architecture: str | None = None
    weights: str | None = None
    weights_sha256: str | None = None

    def without_folders(self) -> Algorithm:
        """A copy with file names instead of paths, whose folders may identify a user."""
        names = {name: _without_folders(getattr(self, name)) for name in ("config_file", "weights")}
        return replace(self, **names)


def _without_folders(files: str | None) -> str | None:
    return files and ", ".join(re.split(r"[\\/]", file)[-1] for file in files.split(", "))


@dataclass(frozen=True)
class OperatingPoint:
    """The score threshold of findings, and its reason.

    Attributes:
        score_threshold: findings have at least this score.
        rate: false positives per unit of an evaluation at the threshold; None if the threshold was
            given directly.
        unit: "image" or "volume"; None without a rate.
        dataset: data set of the evaluation.
    """

    score_threshold: float
    rate: float | None = None
    unit: str | None = None
    dataset: str | None = None


@dataclass(frozen=True)
class Findings:
    """All findings of a scan, with its geometry.

    Attributes:
        scan_name: name of the scan.
        shape: slices, rows and columns of the scan: Z, H, W.
        spacing: voxel spacing along x, y, z in mm.
        origin: center of voxel (0, 0, 0) in patient coordinates (LPS), mm.
        direction: 3 x 3, rows of the matrix whose columns are the unit vectors, in LPS, along the
            voxels' x, y and z axes.
        findings: by descending score.
        algorithm: the algorithm that made them.
        operating_point: the score threshold.
        messages: messages about the scan and the prediction.
    """

    scan_name: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[tuple[float, float, float], ...]
    findings: tuple[Finding, ...]
    algorithm: Algorithm
    operating_point: OperatingPoint
    messages: tuple[str, ...] = field(default=())

    def to_patient(self, points: np.ndarray) -> np.ndarray:
        """Map points in the scan to patient coordinates.

        Args:
            points: (N, 3) x, y, z in voxels.

        Returns:
            (N, 3) LPS in mm.
        """
        steps = np.array(self.direction) * np.array(self.spacing)
        return np.asarray(points, dtype=float) @ steps.T + np.array(self.origin)
