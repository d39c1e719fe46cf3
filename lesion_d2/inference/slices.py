"""Merging of boxes on the slices of a volume to 3-D boxes."""

from collections.abc import Callable, Sequence

import numpy as np

from .box_clustering import OverlapIndex, check_boxes, check_integers, of_each_class


def merge_slices(
    boxes: np.ndarray,
    scores: np.ndarray,
    slice_ids: np.ndarray | Sequence[int],
    *,
    iou_threshold: float,
    return_tracklets: bool = False,
) -> tuple[np.ndarray, ...]:
    """Merge the boxes of one class on the slices of a volume (Jaeger et al., section 4.2).

    Non-maximum suppression over the boxes of all slices projected to one plane: the highest-scoring
    remaining box (the first of equal scores) and its matches become one 3-D box. Matches are
    remaining boxes, on any slice, whose IoU with it exceeds the threshold and whose slice is
    connected to its slice, that is with such a box on every slice in between. Boxes beyond a slice
    without one remain.

    Matches of any score extend the box in z, so the detector's score threshold determines how far
    boxes extend. The paper specifies only the slices of the 3-D box; it gets the in-plane box and
    the score of its best box.

    Args:
        boxes: (N, 4) X1Y1X2Y2 in pixels.
        scores: (N,), at least 0.
        slice_ids: (N,) integers, slice number of each box. Consecutive numbers are neighbors.
        iou_threshold: in [0, 1).
        return_tracklets: whether to return the boxes of the 3-D boxes on each slice.

    Returns:
        (M, 6) boxes X1Y1Z1X2Y2Z2 in pixels and slices, z1 and z2 the numbers of the first and last
        slice (equal for a box on one slice), and (M,) scores, descending. With ``return_tracklets``
        also (N,) tracklets: the index of each box's 3-D box, or -1 if that has a box with a higher
        score (or an earlier one with the same score) on the same slice.

    Raises:
        ValueError: as :func:`~lesion_d2.inference.find_clusters`, or slice_ids are not integers.

    Example::

        boxes3d, scores = merge_slices(boxes, scores, slice_ids, iou_threshold=0.1)
    """
    options = {"iou_threshold": iou_threshold, "return_tracklets": return_tracklets}
    return link_one_class(batched_merge_slices, boxes, scores, slice_ids, **options)


def batched_merge_slices(
    boxes: np.ndarray,
    scores: np.ndarray,
    slice_ids: np.ndarray | Sequence[int],
    classes: np.ndarray | Sequence[int],
    *,
    iou_threshold: float,
    return_tracklets: bool = False,
) -> tuple[np.ndarray, ...]:
    """:func:`merge_slices` of each class separately.

    Args:
        boxes: (N, 4) X1Y1X2Y2 in pixels.
        scores: (N,), at least 0.
        slice_ids: (N,) integers.
        classes: (N,) integers.
        iou_threshold: in [0, 1).
        return_tracklets: as there.

    Returns:
        (M, 6) boxes, (M,) scores, descending over all classes, and (M,) classes; with
        ``return_tracklets`` also (N,) tracklets.

    Raises:
        ValueError: as :func:`merge_slices`, or classes are not integers.
    """
    linked = link_each_class(_merge, boxes, scores, slice_ids, classes, iou_threshold=iou_threshold)
    return linked if return_tracklets else linked[:3]


def link_one_class(
    batched: Callable[..., tuple[np.ndarray, ...]],
    boxes: np.ndarray,
    scores: np.ndarray,
    slice_ids: np.ndarray | Sequence[int],
    **options: float,
) -> tuple[np.ndarray, ...]:
    """Call a linking function of several classes for boxes of one class; return no classes.

    Args:
        batched: :func:`batched_merge_slices`, or another one with such arguments and results.
        boxes, scores, slice_ids, options: its arguments except ``classes``.
    """
    classes = np.zeros(len(boxes), dtype=np.int64)
    boxes3d, scores, _, *tracklets = batched(boxes, scores, slice_ids, classes, **options)
    return boxes3d, scores, *tracklets


def link_each_class(
    link: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]],
    boxes: np.ndarray,
    scores: np.ndarray,
    slice_ids: np.ndarray | Sequence[int],
    classes: np.ndarray | Sequence[int],
    *,
    iou_threshold: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Check boxes, and link those of each class separately.

    Args:
        link: ``link(boxes, scores, slice_ids, iou_threshold)`` takes checked arrays of one class
            and returns (m, 6) boxes, (m,) scores and (n,) tracklets, see :func:`merge_slices`.
        boxes, scores, slice_ids, classes, iou_threshold: as :func:`batched_merge_slices`.

    Returns:
        (M, 6) boxes, (M,) scores, descending over all classes, (M,) classes and (N,) tracklets.

    Raises:
        ValueError: as :func:`batched_merge_slices`.
    """
    boxes, scores = check_boxes(boxes, scores, iou_threshold, columns=(4,))
    slice_ids = check_integers(slice_ids, "slice_ids", len(boxes))
    classes = check_integers(classes, "classes", len(boxes))
    linked, count = [(np.empty((0, 6)), np.empty(0), classes[:0])], 0
    tracklets = np.empty(len(boxes), dtype=np.int64)
    for chosen in of_each_class(classes):
        *parts, own = link(boxes[chosen], scores[chosen], slice_ids[chosen], iou_threshold)
        tracklets[chosen] = np.where(own < 0, -1, own + count)
        count += len(parts[1])
        linked.append((*parts, np.repeat(classes[chosen[:1]], len(parts[1]))))
    boxes3d, scores, classes = (np.concatenate(parts) for parts in zip(*linked, strict=True))
    order = np.argsort(-scores, kind="stable")
    place = np.append(np.argsort(order), -1)  # the last entry is for -1
    return boxes3d[order], scores[order], classes[order], place[tracklets]


def _merge(
    boxes: np.ndarray, scores: np.ndarray, slice_ids: np.ndarray, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """:func:`merge_slices` without checks, with tracklets."""
    index = OverlapIndex(boxes, iou_threshold)
    slice_ids, places = _place_slices(slice_ids)
    free = np.ones(len(boxes), dtype=bool)
    tracklets = np.empty(len(boxes), dtype=np.int64)
    has_match = np.zeros(len(slice_ids), dtype=bool)
    heads, extents = [], []
    for head in np.argsort(-scores, kind="stable").tolist():
        if not free[head]:
            continue
        matches = index.matches(head)
        matches = matches[free[matches]]
        on = places[matches]
        has_match[on] = True
        own = places[head]
        has_match[own] = True  # a box without area does not match itself
        last = own + has_match[own:].argmin() - 1
        first = own - has_match[own::-1].argmin() + 1
        has_match[on] = has_match[own] = False
        joined = matches[(first <= on) & (on <= last)]
        free[joined] = free[head] = False
        tracklets[joined] = tracklets[head] = len(heads)
        heads.append(head)
        extents.append((first, last))
    heads = np.array(heads, dtype=np.int64)
    z = slice_ids[np.array(extents, dtype=np.int64).reshape(-1, 2)]
    merged = np.concatenate([boxes[heads, :2], z[:, :1], boxes[heads, 2:], z[:, 1:]], axis=1)
    return merged, scores[heads], _best_of_slices(tracklets, scores, places)


def _best_of_slices(tracklets: np.ndarray, scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(N,) tracklets with -1 for all but the best box (the first of equals) on each slice."""
    order = np.lexsort((-scores, places, tracklets))  # stable
    ranked = np.stack([tracklets, places])[:, order]
    is_repeat = np.append(False, (ranked[:, 1:] == ranked[:, :-1]).all(axis=0))[: len(order)]
    kept = tracklets.copy()
    kept[order[is_repeat]] = -1
    return kept


def _place_slices(slice_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Arrange slices in a row, with an empty place before, after and in each gap.

    Returns:
        (K,) slice number at each place, and (N,) place of each box's slice.
    """
    numbers, index = np.unique(slice_ids, return_inverse=True)
    places = (
        1 + np.arange(len(numbers)) + np.append(0, np.cumsum(np.diff(numbers) > 1))[: len(numbers)]
    )
    row = np.zeros(places.max(initial=0) + 2, dtype=numbers.dtype)
    row[places] = numbers
    return row, places[index]
