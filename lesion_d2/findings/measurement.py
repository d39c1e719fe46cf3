"""From linked boxes to findings: sizes in mm, on masks or on boxes.

On masks: the volume is that of their voxels. The long diameter is the longest one of all slices,
the short one the longest perpendicular to it on the same slice, in mm, as
:func:`~lesion_d2.structures.recist.measure_recist` has them.

A finding none of whose slices has a mask is measured on its boxes, less the margin that a lesion's
box has on each side (DeepLesion's are 5 pixels wider than the diameters' end points; of a scan with
other pixels than the training's, see ``predict_scan``), yet a pixel at least. On each slice the
lesion is taken for the ellipse in that box: its axes are the diameters, along rows and columns, and
the volume is that of all ellipses, each as thick as the slices lie apart. That is a guess, and
``measured_on`` says so: diameters that lie aslant are longer than the sides of the box around their
ends, the long one by 41 % at most. Over all directions, exact boxes make it a tenth too short on
average, and areas a sixth too small.

A box of a model of volumes is the same on all of its slices. There the lesion is taken for the
ellipsoid in it, whose volume is two thirds of those ellipses'.

Slices between the first and the last one without a box, as tracking allows, add nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..scans import Scan
from ..structures.recist import BOX_MARGIN, long_diameter, measure_recist
from ..structures.rle import check_mask, decode_mask
from .finding import Diameter, Finding, SliceFinding

_OF_ELLIPSOID = 2 / 3  # of the cylinder around it

#: What a linker returns: boxes in 3-D (M, 6), their scores and classes (M,), and tracklets (N,).
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
    """Measure what was found in a scan.

    How masks and boxes are measured stands at the top of this module.

    Args:
        scan: where it was found.
        boxes: (N, 4) X1Y1X2Y2 in voxels of the slices.
        scores: (N,).
        slice_ids: (N,) index of each box's slice.
        linked: what a :class:`~lesion_d2.inference.Linker` made of these boxes; by falling score.
        class_names: of the classes 0, 1, ...
        masks: N of the whole slice in COCO's RLE, see :func:`~lesion_d2.findings.encode_mask`, or
            None where a box has none. None for a model without masks.
        box_margin: pixels of the slices on each side between a lesion and its box, or as many
            along x and y; 0 for a model that was trained on tight boxes.
        of_volumes: whether a box on a slice is a 3-D box's, as that of a model of volumes is.

    Returns:
        M findings, in the order of ``linked``.

    Raises:
        ValueError: arrays of different lengths, a slice that the scan does not have, a class
            without a name, a 3-D box without any slice, or a mask of another size.

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
    """That of the highest score; of equal ones with the largest mask, then next to the middle."""
    highest = max(entry.score for entry in slices)
    best = [entry for entry in slices if entry.score == highest]

    def rank(entry: SliceFinding) -> tuple[int, float]:
        """The greater, the better."""
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
    """Lowest and highest corner in the patient of a 3-D box, with its slices' thickness."""
    half_slice = np.array([0.0, 0.0, 0.5])
    low, high = box[:3] - half_slice, box[3:] + half_slice
    corners = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, 8).T
    places = scan.to_patient(corners)
    return tuple(places.min(axis=0).tolist()), tuple(places.max(axis=0).tolist())


def _sizes(
    scan: Scan, slices: Sequence[SliceFinding], box_margin: float | tuple[float, float]
) -> dict[str, object]:
    """The measured fields of a finding."""
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
    best = int(equal[(len(equal) - 1) // 2])  # in 3-D all are
    offsets = np.diag(sides[best] / 2)  # to the right end, and to the lower end
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
    """The diameter between two points, x and y each, on a slice."""
    length = float(np.hypot(*((points[1] - points[0]) * spacing)))
    return Diameter(length, index, tuple(map(tuple, points.tolist())))
