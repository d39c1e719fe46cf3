"""What was found in a scan: lesions in 3-D, where they are, how large, and what found them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class Diameter:
    """A straight line across a finding, within one slice.

    Attributes:
        length_mm: between the two end points.
        slice_index: of the slice, from 0.
        points: both end points, (x, y) each in voxels, where integers are the pixels' centers.
    """

    length_mm: float
    slice_index: int
    points: tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class SliceFinding:
    """What a finding is on one slice: the box that the detector has there.

    Attributes:
        slice_index: of the slice in the scan, from 0.
        box: X1Y1X2Y2 in voxels, where integers are the pixels' centers.
        score: the detector's.
        mask: of the whole slice, H x W, in COCO's RLE (``{"size": [H, W], "counts": str}``; see
            :func:`~lesion_d2.findings.decode_mask`), or None where the model has no masks.
        file: where the slice was read from; of a zip, ``<archive>/<member>``. None where unknown.
        frame: its frame in a multi-frame file, from 0; None where the file is one slice's.
        sop_instance_uid: of the DICOM object; None for other formats.
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
    """One lesion that a detector reports, with its measurements.

    Attributes:
        number: from 1, by falling score.
        score: the detector's, of the best box.
        category: the class, as the model's data set names it.
        category_id: its number there, from 0.
        box: X1Y1Z1X2Y2Z2 in voxels, where integers are the voxels' centers: that of the linking,
            which has the best box's place in the plane, and the first and the last slice.
        box_mm: the lowest and the highest corner of the box in patient coordinates (LPS), (x, y,
            z) in mm each, with the slices' thickness. Its sides are the patient's axes: in a scan
            that is tilted against them it holds the whole box, and more.
        key_slice: the slice of the highest-scoring box; of several, as those of a model of volumes,
            the one with the largest mask, or else in the middle.
        slices: what it is on each slice where it has a box, by rising slice.
        volume_mm3: volume in cubic mm.
        long_diameter: the longest one in the plane, on the slice where that is longest.
        short_diameter: the longest one perpendicular to it on the same slice.
        measured_on: "mask", or "box" where the model has no masks: then the volume and the
            diameters are of ellipses in the boxes (of a model of volumes, the volume is that of
            the ellipsoid in the box), which is a guess.
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
    """What made the findings.

    Attributes:
        name: of the software.
        version: of the software.
        config_file: that the model was built from.
        meta_architecture: of the model.
        weights: MODEL.WEIGHTS; of an ensemble, all files, joined by ", ".
        weights_sha256: of that file, 64 hexadecimal digits; of several, joined as ``weights``.
    """

    name: str = "lesion_d2"
    version: str = ""
    config_file: str | None = None
    meta_architecture: str | None = None
    weights: str | None = None
    weights_sha256: str | None = None

    def without_folders(self) -> Algorithm:
        """With but the names of its files: folders tell whose machine it was."""
        names = {name: _without_folders(getattr(self, name)) for name in ("config_file", "weights")}
        return replace(self, **names)


def _without_folders(files: str | None) -> str | None:
    return files and ", ".join(re.split(r"[\\/]", file)[-1] for file in files.split(", "))


@dataclass(frozen=True)
class OperatingPoint:
    """From which score on something is a finding, and why.

    Attributes:
        score_threshold: findings have at least this score.
        rate: false positives per unit that an evaluation had there; None where the threshold was
            given as it is.
        unit: "image" or "volume"; None without a rate.
        dataset: the data set of that evaluation.
    """

    score_threshold: float
    rate: float | None = None
    unit: str | None = None
    dataset: str | None = None


@dataclass(frozen=True)
class Findings:
    """All findings of a scan, with what is needed to place them in the patient.

    Attributes:
        scan_name: of the scan.
        shape: slices, rows and columns of the scan: Z, H, W.
        spacing: of voxels along x, y, z in mm.
        origin: center of voxel (0, 0, 0) in patient coordinates (LPS), mm.
        direction: 3 x 3, rows of a matrix whose columns are the unit vectors, in LPS, along the
            voxels' x, y and z axes.
        findings: by falling score.
        algorithm: what made them.
        operating_point: from which score on.
        messages: what was told about the scan and the prediction.
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
        """Places in the patient of points in the scan.

        Args:
            points: (N, 3) x, y, z in voxels.

        Returns:
            (N, 3) LPS in mm.
        """
        steps = np.array(self.direction) * np.array(self.spacing)
        return np.asarray(points, dtype=float) @ steps.T + np.array(self.origin)
