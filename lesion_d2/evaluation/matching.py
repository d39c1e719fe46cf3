"""Matching of detections and lesions, used by all metrics but COCO's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from ..structures.boxes import EXPECTED_BOX, bad_boxes

OVERLAPS = ("iou", "iobb", "p3d")
_PAIRS_AT_ONCE = 2**16


@dataclass(frozen=True, eq=False)
class Matches:
    """Matches of N detections and M lesions of all images, in the order of images.

    A detection *reaches* a lesion of its image if their overlap is at least the threshold. A lesion
    is found once, by the detection with the highest score that reaches it.
    """

    num_images: int
    scores: np.ndarray  # N
    images: np.ndarray  # N, index of the detection's image
    lesions: np.ndarray  # N, index in its image of the reached lesion with most overlap; -1: none
    finds: np.ndarray  # N bool, it has the highest score for some lesion that it reaches
    num_reached: np.ndarray  # N, number of lesions that the detection reaches
    lesion_images: np.ndarray  # M, index of the lesion's image
    found_scores: np.ndarray  # M, highest score that reaches the lesion; -inf: not found
    excused: np.ndarray  # N bool, not a false positive if it reaches no lesion

    @property
    def false_positives(self) -> np.ndarray:
        """(N,) bool, the detection reaches no lesion and is not excused."""
        return (self.lesions < 0) & ~self.excused

    @property
    def ignored(self) -> np.ndarray:
        """(N,) bool, it reaches no lesion and is excused: neither a hit nor a false positive."""
        return (self.lesions < 0) & self.excused

    @property
    def repeats(self) -> np.ndarray:
        """(N,) bool, it reaches only lesions already found: neither a hit nor a false positive."""
        return (self.lesions >= 0) & ~self.finds


def paired_overlaps(
    boxes: np.ndarray, gt_boxes: np.ndarray, overlap: str = "iou", inclusive: bool = False
) -> np.ndarray:
    """Overlap of each detection with the lesion in the same row.

    Args:
        boxes: (P, 4) X1Y1X2Y2 in pixels, or (P, 6) X1Y1Z1X2Y2Z2 in pixels and slices.
        gt_boxes: the same shape.
        overlap: "iou" is intersection over union; "iobb" is intersection over the detected box;
            "p3d" (pseudo-3-D IoU, Cai et al., 2020) is the in-plane IoU of boxes on one slice each
            (z1 == z2), and 0 for boxes on different slices.
        inclusive: whether boxes are whole pixels: sides are ``high - low + 1``, as in the published
            evaluation code of Lesion-Harvester and 3DCE. In 3-D this applies to slices too: without
            it, a box on one slice has no volume.

    Returns:
        (P,) in 0..1; 0 for boxes without area.

    Raises:
        ValueError: a box is not finite or ends before it starts; the message names the array and
            the row.
    """
    for name, array in (("boxes", boxes), ("gt_boxes", gt_boxes)):
        for row in bad_boxes(array)[:1]:
            raise ValueError(f"{name}[{row}]: found {array[row]}, expected {EXPECTED_BOX}")
    return _paired_overlaps(boxes, gt_boxes, overlap, inclusive)


def _paired_overlaps(
    boxes: np.ndarray, gt_boxes: np.ndarray, overlap: str, inclusive: bool
) -> np.ndarray:
    """:func:`paired_overlaps` without checks."""
    dims = boxes.shape[1] // 2
    extra = 1.0 if inclusive else 0.0
    intersection, size, gt_size = (np.ones(len(boxes)) for _ in range(3))
    for axis in range(2 if overlap == "p3d" else dims):
        low, high = boxes[:, axis], boxes[:, axis + dims]
        gt_low, gt_high = gt_boxes[:, axis], gt_boxes[:, axis + dims]
        shared = np.minimum(high, gt_high) - np.maximum(low, gt_low) + extra
        intersection *= np.maximum(shared, 0)
        size *= np.maximum(high - low + extra, 0)
        gt_size *= np.maximum(gt_high - gt_low + extra, 0)
    if overlap == "p3d":
        intersection *= boxes[:, 2] == gt_boxes[:, 2]
    whole = size if overlap == "iobb" else size + gt_size - intersection
    return np.divide(intersection, whole, out=np.zeros(len(boxes)), where=whole > 0)


class MatchOptions(TypedDict, total=False):
    """Keywords of :func:`match_images`."""

    iou_threshold: float
    overlap: str
    inclusive: bool
    tracklets: Sequence[np.ndarray] | None
    excused: Sequence[np.ndarray] | None


def match_images(
    pred_boxes: Sequence[np.ndarray],
    pred_scores: Sequence[np.ndarray],
    gt_boxes: Sequence[np.ndarray],
    *,
    iou_threshold: float = 0.5,
    overlap: str = "iou",
    inclusive: bool = False,
    tracklets: Sequence[np.ndarray] | None = None,
    excused: Sequence[np.ndarray] | None = None,
) -> Matches:
    """Match the detections of each image (or volume) with its lesions.

    Args:
        pred_boxes: one (N, 4) or (N, 6) array per image, as in :func:`paired_overlaps`; may be an
            empty list for an image without detections.
        pred_scores: one (N,) array per image.
        gt_boxes: one (M, 4) or (M, 6) array per image.
        iou_threshold: minimum overlap (``>=``) in (0, 1]. (Zlocha et al., section 3, require ``>``,
            which differs only for equality.)
        overlap: "iou", "iobb" or "p3d", see :func:`paired_overlaps`.
        inclusive: whether boxes are whole pixels, see :func:`paired_overlaps`.
        tracklets: only for "p3d", where a detection is a tracklet: one box on each of some slices,
            of which the one on the lesion's key slice counts. One (K,) array per volume, the index
            of the detection, 0 to N - 1, of each of its K ``pred_boxes``; by default each box is a
            detection.
        excused: one (N,) bool array per image, detections that are not false positives even if they
            reach no lesion, such as those in a region to ignore
            (:func:`~lesion_d2.evaluation.excused.boxes_in_regions`); none by default.

    Raises:
        ValueError: lists that are empty or of different lengths, a wrong shape, a number that is
            not finite, a box that ends before it starts, a threshold out of range, an unknown
            overlap, a box of more than one slice with "p3d", or a tracklet with two boxes on a
            slice. The message names the list and the image's index.
    """
    _check_settings(len(pred_boxes), len(pred_scores), len(gt_boxes), iou_threshold, overlap)
    scores, score_counts = _join_scores(pred_scores)
    boxes, counts = _join_boxes(pred_boxes, "pred_boxes")
    truth, gt_counts = _join_boxes(gt_boxes, "gt_boxes")
    owners = None
    if tracklets is not None:
        owners = _join_tracklets(tracklets, boxes, counts, score_counts, overlap)
    _check_contents(boxes, counts, score_counts if owners is None else counts, truth, overlap)
    _check_key_slices(boxes, counts, truth, gt_counts, overlap)
    is_excused = _join_excused(excused, score_counts)

    def overlaps_of(detection: np.ndarray, lesion: np.ndarray) -> np.ndarray:
        return _paired_overlaps(boxes[detection], truth[lesion], overlap, inclusive)

    detection, lesion, overlaps = reaching_pairs(counts, gt_counts, overlaps_of, iou_threshold)
    by_overlap = np.argsort(overlaps, kind="stable")
    detection, lesion = detection[by_overlap], lesion[by_overlap]
    if owners is not None:
        detection = owners[detection]
    return _from_pairs(detection, lesion, scores, score_counts, gt_counts, is_excused)


def _from_pairs(
    detection: np.ndarray,
    lesion: np.ndarray,
    scores: np.ndarray,
    score_counts: np.ndarray,
    gt_counts: np.ndarray,
    excused: np.ndarray,
) -> Matches:
    """Matches of pairs that reach each other.

    Args:
        detection, lesion: (P,) indices over all images, by rising overlap.
        scores, excused: (N,) of all detections.
        score_counts, gt_counts: detections and lesions of each image.
    """
    found_scores = np.full(gt_counts.sum(), -np.inf)
    np.maximum.at(found_scores, lesion, scores[detection])
    finds = np.zeros(len(scores), dtype=bool)
    finds[detection[scores[detection] == found_scores[lesion]]] = True
    best = np.full(len(scores), -1)
    first_lesion = np.cumsum(gt_counts) - gt_counts
    lesion_images = np.repeat(np.arange(len(gt_counts)), gt_counts)
    best[detection] = lesion - first_lesion[lesion_images[lesion]]  # the last has most overlap
    return Matches(
        num_images=len(gt_counts),
        scores=scores,
        images=np.repeat(np.arange(len(score_counts)), score_counts),
        lesions=best,
        finds=finds,
        num_reached=np.bincount(detection, minlength=len(scores)),
        lesion_images=lesion_images,
        found_scores=found_scores,
        excused=excused,
    )


def match_detections(
    boxes: np.ndarray,
    scores: np.ndarray,
    gt_boxes: np.ndarray,
    *,
    iou_threshold: float = 0.5,
    overlap: str = "iou",
    inclusive: bool = False,
    excused: np.ndarray | None = None,
) -> Matches:
    """Match the detections of one image.

    Arguments are one image's entries of :func:`match_images`, with the same errors.

    Example::

        matches = match_detections(boxes, scores, gt_boxes)
        hits, errors = boxes[~matches.false_positives], boxes[matches.false_positives]
        missed = gt_boxes[np.isinf(matches.found_scores)]
    """
    return match_images(
        [boxes],
        [scores],
        [gt_boxes],
        iou_threshold=iou_threshold,
        overlap=overlap,
        inclusive=inclusive,
        excused=None if excused is None else [excused],
    )


def reaching_pairs(
    counts: np.ndarray,
    gt_counts: np.ndarray,
    overlaps_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
    threshold: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the pairs of a detection and a lesion of its image whose overlap reaches a threshold.

    Pairs are processed in chunks, as most do not reach it and need not be stored.

    Args:
        counts: (I,) number of detections of each image; detections are numbered over all images.
        gt_counts: (I,) number of lesions of each image, likewise.
        overlaps_of: a function from indices of detections (P,) and lesions (P,) to overlaps (P,),
            called with all pairs of some images.
        threshold: minimum overlap (``>=``).

    Returns:
        (K,) detections, ascending, (K,) lesions, ascending for each detection, and (K,) overlaps.
    """
    firsts, gt_firsts = np.cumsum(counts) - counts, np.cumsum(gt_counts) - gt_counts
    blocks = np.flatnonzero(np.diff(np.cumsum(counts * gt_counts) // _PAIRS_AT_ONCE)) + 1
    found = [(np.empty(0, int), np.empty(0, int), np.empty(0))]
    for images in np.split(np.arange(len(counts)), blocks):
        detection, lesion = _pairs(counts[images], gt_counts[images])
        if len(detection):
            detection, lesion = detection + firsts[images[0]], lesion + gt_firsts[images[0]]
            overlaps = overlaps_of(detection, lesion)
            reached = overlaps >= threshold
            found.append((detection[reached], lesion[reached], overlaps[reached]))
    return tuple(map(np.concatenate, zip(*found, strict=True)))


def _pairs(counts: np.ndarray, gt_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (P,), (P,) of all pairs of a detection and a lesion of its image."""
    lesions_of = np.repeat(gt_counts, counts)  # number of pairs of each detection
    first_lesion = np.repeat(np.cumsum(gt_counts) - gt_counts, counts)
    detection = np.repeat(np.arange(len(lesions_of)), lesions_of)
    # Pairs of detection i start at first_pair[i], in the order of its image's lesions.
    first_pair = np.cumsum(lesions_of) - lesions_of
    lesion = np.arange(len(detection)) + np.repeat(first_lesion - first_pair, lesions_of)
    return detection, lesion


def _join_boxes(arrays: Sequence[np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = [np.asarray(array) for array in arrays]
    filled = [(i, array) for i, array in enumerate(arrays) if array.size]
    columns = filled[0][1].shape[-1] if filled else 4
    for i, array in filled:
        if array.ndim != 2 or columns not in (4, 6) or array.shape[1] != columns:
            wanted = f"(N, {columns})" if columns in (4, 6) else "(N, 4) or (N, 6)"
            raise ValueError(f"{name}[{i}]: found shape {array.shape}, expected {wanted}")
    counts = np.array([len(array) if array.size else 0 for array in arrays])
    empty = [np.empty((0, columns))]
    joined = np.concatenate(empty + [array for _, array in filled]).astype(np.float64)
    for row in bad_boxes(joined)[:1]:
        image = np.searchsorted(np.cumsum(counts), row, side="right")
        raise ValueError(f"{name}[{image}]: found {joined[row]}, expected {EXPECTED_BOX}")
    return joined, counts


def _join_scores(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    arrays = [np.asarray(array) for array in arrays]
    for i, array in enumerate(arrays):
        if array.ndim != 1:
            raise ValueError(f"pred_scores[{i}]: found shape {array.shape}, expected (N,)")
    counts = np.array([len(array) for array in arrays])
    joined = np.concatenate(arrays).astype(np.float64)
    for row in np.flatnonzero(~np.isfinite(joined))[:1]:
        image = np.searchsorted(np.cumsum(counts), row, side="right")
        raise ValueError(f"pred_scores[{image}]: found {joined[row]}, expected finite numbers")
    return joined, counts


def _join_excused(arrays: Sequence[np.ndarray] | None, counts: np.ndarray) -> np.ndarray:
    if arrays is None:
        return np.zeros(counts.sum(), dtype=bool)
    if len(arrays) != len(counts):
        raise ValueError(f"excused: found {len(arrays)} entries, expected {len(counts)}")
    arrays = [np.asarray(array) for array in arrays]
    for i, (array, count) in enumerate(zip(arrays, counts, strict=True)):
        if array.shape != (count,) or array.dtype != bool:
            raise ValueError(
                f"excused[{i}]: found shape {array.shape} of type {array.dtype}, expected "
                f"({count},) of type bool"
            )
    return np.concatenate(arrays)


def _join_tracklets(
    arrays: Sequence[np.ndarray],
    boxes: np.ndarray,
    counts: np.ndarray,
    score_counts: np.ndarray,
    overlap: str,
) -> np.ndarray:
    """(K,) index of each box's detection over all images."""
    if overlap != "p3d":
        raise ValueError(
            f"tracklets: found them with overlap {overlap!r}, expected them only with 'p3d'"
        )
    if len(arrays) != len(counts):
        raise ValueError(f"tracklets: found {len(arrays)} entries, expected {len(counts)}")
    arrays = [np.asarray(array) for array in arrays]
    for i, (array, count, num) in enumerate(zip(arrays, counts, score_counts, strict=True)):
        if array.shape != (count,) or (count and array.dtype.kind not in "iu"):
            raise ValueError(
                f"tracklets[{i}]: found shape {array.shape} of type {array.dtype}, expected "
                f"{count} integers, one per box"
            )
        if count and not (array.min() >= 0 and array.max() < num):
            raise ValueError(
                f"tracklets[{i}]: found indices from {array.min()} to {array.max()}, expected "
                f"indices of {num} pred_scores"
            )
    first = np.cumsum(score_counts) - score_counts
    owners = np.concatenate([array.astype(np.int64) for array in arrays]) + np.repeat(first, counts)
    z = boxes[:, 2]
    order = np.lexsort((z, owners))
    is_repeat = (np.diff(owners[order]) == 0) & (np.diff(z[order]) == 0)
    for row in order[1:][is_repeat][:1]:
        image = np.searchsorted(np.cumsum(counts), row, side="right")
        raise ValueError(
            f"pred_boxes[{image}]: found two boxes of one tracklet on slice {z[row]:g}, expected "
            "one"
        )
    return owners


def _check_settings(boxes: int, scores: int, truths: int, threshold: float, overlap: str) -> None:
    if not boxes == scores == truths:
        raise ValueError(
            f"pred_boxes, pred_scores and gt_boxes: found {boxes}, {scores} and {truths} entries, "
            "expected one entry per image in each"
        )
    if boxes == 0:
        raise ValueError("pred_boxes, pred_scores and gt_boxes: found no image, expected one")
    if not 0 < threshold <= 1:
        raise ValueError(f"iou_threshold: found {threshold}, expected a number in (0, 1]")
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap: found {overlap!r}, expected one of {', '.join(OVERLAPS)}")


def _check_contents(
    boxes: np.ndarray,
    counts: np.ndarray,
    score_counts: np.ndarray,
    truth: np.ndarray,
    overlap: str,
) -> None:
    for i in np.flatnonzero(counts != score_counts)[:1]:
        raise ValueError(
            f"image {i}: found {counts[i]} pred_boxes and {score_counts[i]} pred_scores, expected "
            "the same number"
        )
    if len(boxes) and len(truth) and boxes.shape[1] != truth.shape[1]:
        raise ValueError(
            f"found {boxes.shape[1]} columns in pred_boxes and {truth.shape[1]} in gt_boxes, "
            "expected 4 in both or 6 in both"
        )
    if overlap != "p3d":
        return
    for name, array in (("pred_boxes", boxes), ("gt_boxes", truth)):
        if len(array) and array.shape[1] != 6:
            raise ValueError(
                f"{name}: found {array.shape[1]} columns, expected 6 for overlap 'p3d'"
            )


def _check_key_slices(
    boxes: np.ndarray, counts: np.ndarray, truth: np.ndarray, gt_counts: np.ndarray, overlap: str
) -> None:
    if overlap != "p3d":
        return
    for name, array, numbers, wanted in (
        ("pred_boxes", boxes, counts, "the boxes of a tracklet, one per slice"),
        ("gt_boxes", truth, gt_counts, "a box on the key slice only"),
    ):
        for row in np.flatnonzero(array[:, 2] != array[:, -1] if len(array) else [])[:1]:
            image = np.searchsorted(np.cumsum(numbers), row, side="right")
            raise ValueError(
                f"{name}[{image}]: found a box on slices {array[row, 2]:g} to "
                f"{array[row, -1]:g}, expected {wanted} (z1 == z2) for overlap 'p3d'"
            )
