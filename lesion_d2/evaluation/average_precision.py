"""Average precision: of detections as COCO computes it, in 2-D and 3-D, and of ranked cases."""

from collections.abc import Sequence

import numpy as np

from .matching import paired_overlaps

_RECALLS = np.linspace(0, 1, 101)


def detection_average_precision(
    pred_boxes: Sequence[np.ndarray],
    pred_scores: Sequence[np.ndarray],
    gt_boxes: Sequence[np.ndarray],
    *,
    iou_threshold: float = 0.1,
    overlap: str = "iou",
) -> float:
    """Average precision of one class, COCO's: mean of the precision at recalls 0, 0.01, ..., 1.

    In every volume, by falling score, a detection takes the lesion that it overlaps most among
    those not taken yet, where their overlap reaches the threshold; one that takes none is an error,
    repeats of a lesion that was taken among them. The precision at a recall is the highest at this
    or any higher recall, and 0 where that recall is not reached. Of equal scores the volume that
    comes first is the first. Unlike COCO we do not limit the number of detections.

    Args:
        pred_boxes: one array a volume (or image): (N, 6) X1Y1Z1X2Y2Z2, or (N, 4) X1Y1X2Y2.
        pred_scores: one (N,) array a volume, finite numbers.
        gt_boxes: one (M, 6) or (M, 4) array a volume.
        iou_threshold: overlap in (0, 1]; reaching it is enough. 0.1 is that of Jaeger et al.,
            section 4.3.
        overlap: "iou", "iobb" or "p3d", see
            :func:`~lesion_d2.evaluation.matching.paired_overlaps`.

    Returns:
        0..1; NaN where there is no lesion.
    """
    num_lesions = sum(map(len, gt_boxes))
    if num_lesions == 0:
        return float("nan")
    cases = zip(pred_boxes, pred_scores, gt_boxes, strict=True)
    taken = (_take(*case, iou_threshold, overlap) for case in cases)
    hits = np.concatenate([np.zeros(0, bool), *taken])
    order = np.argsort(-np.concatenate([np.zeros(0), *pred_scores]), kind="stable")
    num_hits = np.cumsum(hits[order])
    precision = num_hits / np.arange(1, len(hits) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(num_hits / num_lesions, _RECALLS)
    return float(np.append(highest, 0.0)[first].mean())


def ranking_average_precision(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Average precision of cases ranked by score, such as patients by their highest score.

    Not interpolated: the sum over the distinct scores of the precision among all cases with at
    least that score, times the share of the positive cases that have just it. So ties are one step,
    and their order does not count.

    Args:
        scores: (N,) of the cases.
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


def _take(
    boxes: np.ndarray,
    scores: np.ndarray,
    gt_boxes: np.ndarray,
    iou_threshold: float,
    overlap: str,
) -> np.ndarray:
    """(N,) bool, whether a detection takes a lesion of its volume."""
    num_boxes, num_lesions = len(boxes), len(gt_boxes)
    hits = np.zeros(num_boxes, dtype=bool)
    if num_boxes == 0 or num_lesions == 0:
        return hits
    pairs = np.repeat(boxes, num_lesions, axis=0), np.tile(gt_boxes, (num_boxes, 1))
    overlaps = paired_overlaps(*pairs, overlap).reshape(num_boxes, num_lesions)
    reaching = np.flatnonzero(overlaps.max(axis=1) >= iou_threshold)
    for i in reaching[np.argsort(-scores[reaching], kind="stable")]:
        lesion = overlaps[i].argmax()
        if overlaps[i, lesion] >= iou_threshold:
            hits[i] = True
            overlaps[:, lesion] = -1.0
    return hits
