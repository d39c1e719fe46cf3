"""Measures linked boxes in mm, on masks or on boxes.

With masks, the volume is that of their voxels. The long diameter is the longest of all slices, and
the short diameter the longest perpendicular to it on the same slice, in mm, see
:func:`~lesion_d2.structures.recist.measure_recist`.

A finding without any mask is measured on its boxes, minus the margin of a lesion's box on each side
(5 pixels around the diameters' end points in DeepLesion; for scans with another pixel spacing than
in training, see ``predict_scan``), but at least one pixel. On each slice the lesion is approximated
by the ellipse in that box: its axes are the diameters, along rows and columns, and the volume is
the sum of the ellipses times the slice interval. This is an estimate, as ``measured_on`` says:
oblique diameters are longer than the sides of the box around their end points, the long one by up
to 41 %. Averaged over all directions, exact boxes give a long diameter that is a tenth too short,
and areas that are a sixth too small.

A volumetric model has the same box on all slices. The lesion is then approximated by the ellipsoid
in the box, whose volume is two thirds of that of the ellipses.

Slices without a box between the first and the last, which tracking allows, add no volume.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..scans import Scan
from ..structures.recist import BOX_MARGIN, long_diameter, measure_recist
from ..structures.rle import check_mask, decode_mask
from .finding import Diameter, Finding, SliceFinding

_OF_ELLIPSOID = 2 / 3  # volume relative to the enclosing cylinder

#: Result of a linker: 3-D boxes (M, 6), their scores and classes (M,), and tracklets (N,).
Linked = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def measure_findings(
    scan: Scan,
    boxes: np.ndarray,
    scores: np.ndarray,
    slice_ids: np.ndarray | Sequence[int],
    linked: Linked,
    *,
    class_names: Sequence[str],
    masks: Sequence[Mapping | None] | None = None,
    box_margin: float | tuple[float, float] = BOX_MARGIN,
    of_volumes: bool = False,
) -> tuple[Finding, ...]:
    """Measure the detections of a scan.

    See the module's docstring for the measurement on masks and boxes.

    Args:
        scan: the scan.
        boxes: (N, 4) X1Y1X2Y2 in voxels of the slices.
        scores: (N,).
        slice_ids: (N,) index of each box's slice.
        linked: result of a :class:`~lesion_d2.inference.Linker` for these boxes, by descending
            score.
        class_names: names of classes 0, 1, ...
        masks: N masks of slices in COCO's RLE, see :func:`~lesion_d2.findings.encode_mask`, or None
            for boxes without one. None for a model without masks.
        box_margin: margin of a lesion's box on each side in pixels of the slices, or one along x
            and one along y; 0 for a model trained on tight boxes.
        of_volumes: whether boxes on slices are those of 3-D boxes, from a volumetric model.

    Returns:
        M findings, in the order of ``linked``.

    Raises:
        ValueError: arrays of different lengths, a slice outside of the scan, a class without a
            name, a 3-D box without any slice, or a mask of another size.

    Example::

        linked = linker(boxes, scores, slice_ids, classes)
        findings = measure_findings(
            scan, boxes, scores, slice_ids, linked, class_names=["lesion"], masks=masks
        )
    """
    boxes, scores = np.asarray(boxes, float).reshape(-1, 4), np.asarray(scores, float)
    slice_ids = np.asarray(slice_ids, dtype=np.int64)
    if masks is None:
        masks = [None] * len(boxes)
    _check(scan, boxes, scores, slice_ids, linked, class_names, masks)
    found = [
        _slice_finding(scan, int(slice_ids[j]), boxes[j], float(scores[j]), masks[j])
        for j in range(len(boxes))
    ]
    findings = []
    for i, (box, score, category) in enumerate(zip(*linked[:3], strict=True)):
        slices = [found[j] for j in np.flatnonzero(linked[3] == i)]
        slices.sort(key=lambda entry: entry.slice_index)
        finding = Finding(
            number=i + 1,
            score=float(score),
            category=str(class_names[category]),
            category_id=int(category),
            **_extent(scan, box, slices, box_margin),
        )
        if of_volumes and finding.measured_on == "box":
            finding = replace(finding, volume_mm3=_OF_ELLIPSOID * finding.volume_mm3)
        findings.append(finding)
    return tuple(findings)


def _extent(
    scan: Scan,
    box: np.ndarray,
    slices: Sequence[SliceFinding],
    box_margin: float | tuple[float, float],
) -> dict:
    """Where a finding lies and how large it is: fields of :class:`Finding`."""
    return {
        "box": tuple(map(float, box)),
        "box_mm": _corners_mm(scan, box),
        "key_slice": _key_slice(slices, (box[2] + box[5]) / 2),
        "slices": tuple(slices),
        **_sizes(scan, slices, box_margin),
    }


def _key_slice(slices: Sequence[SliceFinding], middle: float) -> int:
    """The slice with the highest score; ties by the largest mask, then closest to the middle."""
    highest = max(entry.score for entry in slices)
    best = [entry for entry in slices if entry.score == highest]

    def rank(entry: SliceFinding) -> tuple[int, float]:
        """Sort key; higher is better."""
        area = 0 if entry.mask is None else check_mask(entry.mask)[1]
        return area, -abs(entry.slice_index - middle)

    return max(best, key=rank).slice_index


def _check(
    scan: Scan,
    boxes: np.ndarray,
    scores: np.ndarray,
    slice_ids: np.ndarray,
    linked: Linked,
    class_names: Sequence[str],
    masks: Sequence[Mapping | None],
) -> None:
    boxes3d, _, classes, tracklets = linked
    lengths = [len(part) for part in (boxes, scores, slice_ids, tracklets, masks)]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"{scan.name}: found {lengths} boxes, scores, slice_ids, tracklets and masks, expected "
            "as many of each"
        )
    depth, *size = scan.volume.shape
    for index in slice_ids[(slice_ids < 0) | (slice_ids >= depth)][:1]:
        raise ValueError(f"{scan.name}: found a box on slice {index}, expected 0 to {depth - 1}")
    for number in classes[(classes < 0) | (classes >= len(class_names))][:1]:
        raise ValueError(f"{scan.name}: found class {number}, expected one of {list(class_names)}")
    for i in np.setdiff1d(np.arange(len(boxes3d)), tracklets)[:1]:
        raise ValueError(f"{scan.name}: found no box of the 3-D box {i} on any slice")
    for mask in masks:
        if mask is not None and list(mask["size"]) != size:
            raise ValueError(
                f"{scan.name}: found a mask of {list(mask['size'])} pixels, expected {size}"
            )


def _slice_finding(
    scan: Scan, index: int, box: np.ndarray, score: float, mask: Mapping | None
) -> SliceFinding:
    source = scan.sources[index]
    return SliceFinding(
        slice_index=index,
        box=tuple(map(float, box)),
        score=score,
        mask=mask,
        file=source.file,
        frame=source.frame,
        sop_instance_uid=source.sop_instance_uid,
    )


def _corners_mm(scan: Scan, box: np.ndarray) -> tuple:
    """Lowest and highest corner of a 3-D box in the patient, including slice thickness."""
    half_slice = np.array([0.0, 0.0, 0.5])
    low, high = box[:3] - half_slice, box[3:] + half_slice
    corners = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, 8).T
    places = scan.to_patient(corners)
    return tuple(places.min(axis=0).tolist()), tuple(places.max(axis=0).tolist())


def _sizes(
    scan: Scan, slices: Sequence[SliceFinding], box_margin: float | tuple[float, float]
) -> dict[str, object]:
    """The measurements of a finding."""
    masks = {
        entry.slice_index: decode_mask(entry.mask) for entry in slices if entry.mask is not None
    }
    masks = {index: mask for index, mask in masks.items() if mask.any()}
    return _sizes_of_masks(scan, masks) if masks else _sizes_of_boxes(scan, slices, box_margin)


def _sizes_of_masks(scan: Scan, masks: Mapping[int, np.ndarray]) -> dict[str, object]:
    spacing = scan.spacing[:2]
    index = max(masks, key=lambda index: long_diameter(masks[index], spacing))
    points = measure_recist(masks[index], spacing).reshape(2, 2, 2)
    return {
        "volume_mm3": sum(int(mask.sum()) for mask in masks.values()) * scan.voxel_volume,
        "long_diameter": _diameter(index, points[0], spacing),
        "short_diameter": _diameter(index, points[1], spacing),
        "measured_on": "mask",
    }


def _sizes_of_boxes(
    scan: Scan, slices: Sequence[SliceFinding], box_margin: float | tuple[float, float]
) -> dict[str, object]:
    spacing = np.array(scan.spacing[:2])
    boxes = np.array([entry.box for entry in slices]).reshape(-1, 2, 2)
    centers = boxes.mean(axis=1)
    sides = np.maximum(boxes[:, 1] - boxes[:, 0] - 2 * np.asarray(box_margin), 1.0)
    longest = (sides * spacing).max(axis=1)
    equal = np.flatnonzero(longest == longest.max())
    best = int(equal[(len(equal) - 1) // 2])  # all are equal for 3-D boxes
    offsets = np.diag(sides[best] / 2)  # to the right and to the lower end
    long = int((sides[best] * spacing).argmax())
    ends = [np.stack([centers[best] - offset, centers[best] + offset]) for offset in offsets]
    index = slices[best].slice_index
    return {
        "volume_mm3": float(np.pi / 4 * sides.prod(axis=1).sum() * scan.voxel_volume),
        "long_diameter": _diameter(index, ends[long], spacing),
        "short_diameter": _diameter(index, ends[1 - long], spacing),
        "measured_on": "box",
    }


def _diameter(index: int, points: np.ndarray, spacing: Sequence[float]) -> Diameter:
    """The diameter between two points, (x, y) each, on a slice."""
    length = float(np.hypot(*((points[1] - points[0]) * spacing)))
    return Diameter(length, index, tuple(map(tuple, points.tolist())))
