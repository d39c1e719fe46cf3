"""Average precision of detections, as in COCO or Pascal VOC, and of ranked cases."""

from collections.abc import Sequence

import numpy as np

from .matching import Matches, match_images, paired_overlaps

#: Methods: values of TEST.VOLUME_AP.
AP_METHODS = ("coco", "all_points")
_RECALLS = np.linspace(0, 1, 101)


def detection_average_precision(
    pred_boxes: Sequence[np.ndarray],
    pred_scores: Sequence[np.ndarray],
    gt_boxes: Sequence[np.ndarray],
    *,
    iou_threshold: float = 0.1,
    overlap: str = "iou",
    inclusive: bool = False,
    tracklets: Sequence[np.ndarray] | None = None,
    excused: Sequence[np.ndarray] | None = None,
    method: str = "coco",
) -> float:
    """Average precision of one class.

    "coco" is the mean precision at recalls 0, 0.01, ..., 1. In each volume, detections are matched
    by descending score: each takes the lesion that it overlaps most among those not yet taken, if
    the overlap reaches the threshold. A detection that takes none, such as a repeat, is a false
    positive. The precision at a recall is the highest at this or any higher recall, and 0 if that
    recall is not reached. Ties in score are ordered by volume. Unlike COCO, the number of
    detections is not limited.

    "all_points" follows Lesion-Harvester's published evaluation (Cai et al., 2020) and Pascal VOC
    since 2010: the area under the precision-recall curve, interpolated in the same way. A detection
    finds every lesion that it reaches, as in :func:`~lesion_d2.evaluation.froc_curve`; it counts as
    a false positive once for each lesion already found, and once if it reaches none. Tied scores
    form one step, so that their order does not matter (in the published code it does).

    Both leave out a detection that takes or reaches no lesion and is excused, as COCO leaves out
    one that matches a crowd.

    Args:
        pred_boxes, pred_scores, gt_boxes, overlap, inclusive, tracklets, excused: see
            :func:`~lesion_d2.evaluation.match_images`, with volumes or images.
        iou_threshold: minimum overlap (``>=``) in (0, 1]; 0.1 in Jaeger et al., section 4.3.
        method: one of :data:`AP_METHODS`.

    Returns:
        0..1; NaN where there is no lesion.

    Raises:
        ValueError: see :func:`~lesion_d2.evaluation.match_images`, or an unknown method.
    """
    if method not in AP_METHODS:
        raise ValueError(f"method: found {method!r}, expected one of {', '.join(AP_METHODS)}")
    matches = match_images(
        pred_boxes,
        pred_scores,
        gt_boxes,
        iou_threshold=iou_threshold,
        overlap=overlap,
        inclusive=inclusive,
        tracklets=tracklets,
        excused=excused,
    )
    if not len(matches.found_scores):
        return float("nan")
    if method == "all_points":
        return _area_under_precision(matches)
    owners = [None] * len(pred_boxes) if tracklets is None else tracklets
    cases = zip(pred_boxes, pred_scores, gt_boxes, owners, strict=True)
    tables = ((_overlap_table(*case, overlap, inclusive), case[1]) for case in cases)
    hits = np.concatenate([_take(t, np.asarray(s), iou_threshold) for t, s in tables])
    counts = hits | ~matches.excused
    return _mean_precision(hits[counts], matches.scores[counts], len(matches.found_scores))


def ranking_average_precision(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Average precision of cases ranked by score, such as patients ranked by their highest score.

    Not interpolated: the sum over distinct scores of the precision among all cases with at least
    that score, times the fraction of positive cases with exactly that score. Ties are one step, so
    that their order does not matter.

    Args:
        scores: (N,), one per case.
        is_positive: (N,) bool.

    Returns:
        0..1; NaN where no case is positive.
    """
    if not is_positive.any():
        return float("nan")
    levels, level_of = np.unique(-np.asarray(scores, dtype=np.float64), return_inverse=True)
    cases = np.bincount(level_of, minlength=len(levels))
    positives = np.bincount(level_of, weights=is_positive, minlength=len(levels))
    precision = np.cumsum(positives) / np.cumsum(cases)
    return float((precision * positives).sum() / positives.sum())


def interpolated(precision: np.ndarray) -> np.ndarray:
    """(N,) the highest precision at each entry or any later one."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def _area_under_precision(matches: Matches) -> float:
    """AP "all_points", for at least one lesion."""
    if matches.ignored.all():
        return 0.0
    counts = ~matches.ignored
    levels, level_of = np.unique(-matches.scores[counts], return_inverse=True)
    num_found = np.searchsorted(np.sort(-matches.found_scores), levels, side="right")
    # Claims of a detection: each lesion that it reaches, found before or not, or one error.
    claims = np.bincount(level_of, weights=np.maximum(matches.num_reached[counts], 1))
    precision = interpolated(num_found / np.cumsum(claims))
    steps = np.diff(num_found, prepend=0) / len(matches.found_scores)
    return float((steps * precision).sum())


def _mean_precision(hits: np.ndarray, scores: np.ndarray, num_lesions: int) -> float:
    """AP "coco"."""
    num_hits = np.cumsum(hits[np.argsort(-scores, kind="stable")])
    precision = interpolated(num_hits / np.arange(1, len(hits) + 1))
    first = np.searchsorted(num_hits / num_lesions, _RECALLS)
    return float(np.append(precision, 0.0)[first].mean())


def _overlap_table(
    boxes: np.ndarray,
    scores: np.ndarray,
    gt_boxes: np.ndarray,
    owners: np.ndarray | None,
    overlap: str,
    inclusive: bool,
) -> np.ndarray:
    """(N, M) overlaps of one volume's detections and lesions."""
    num_boxes, num_lesions = len(boxes), len(gt_boxes)
    if num_boxes == 0 or num_lesions == 0:
        return np.zeros((len(scores), num_lesions))
    pairs = np.repeat(boxes, num_lesions, axis=0), np.tile(gt_boxes, (num_boxes, 1))
    overlaps = paired_overlaps(*pairs, overlap, inclusive).reshape(num_boxes, num_lesions)
    if owners is None:
        return overlaps
    table = np.zeros((len(scores), num_lesions))
    np.maximum.at(table, owners, overlaps)
    return table


def _take(overlaps: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """(N,) bool, whether each detection takes a lesion of its volume; modifies ``overlaps``."""
    hits = np.zeros(len(scores), dtype=bool)
    reaching = np.flatnonzero(overlaps.max(axis=1, initial=0.0) >= iou_threshold)
    for i in reaching[np.argsort(-scores[reaching], kind="stable")]:
        lesion = overlaps[i].argmax()
        if overlaps[i, lesion] >= iou_threshold:
            hits[i] = True
            overlaps[:, lesion] = -1.0
    return hits
