"""Weighted box clustering: merges the boxes of an object from several views of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict, Unpack

import numpy as np

from ..structures.boxes import EXPECTED_BOX, bad_boxes


@dataclass(frozen=True, eq=False)
class BoxClusters:
    """M clusters, by descending score, of the N boxes of all views (see :func:`find_clusters`)."""

    boxes: np.ndarray  # M x 4 or M x 6, o_c of formula (2)
    scores: np.ndarray  # M, o_s of formula (2)
    classes: np.ndarray  # M
    members: np.ndarray  # N, index of each box's cluster
    weights: np.ndarray  # N, weight of each box in its cluster; they sum to 1 per cluster


class ClusterOptions(TypedDict):
    """Keywords of :func:`find_clusters`."""

    iou_threshold: float
    view_ids: np.ndarray | Sequence
    num_views: float | np.ndarray
    center_weights: NotRequired[np.ndarray | None]


def find_clusters(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    *,
    iou_threshold: float,
    view_ids: np.ndarray | Sequence,
    num_views: float | np.ndarray,
    center_weights: np.ndarray | None = None,
) -> BoxClusters:
    """Weighted box clustering, with the weights of all boxes (Jaeger et al., section 3.2).

    As in non-maximum suppression, a cluster is the highest-scoring remaining box and all boxes of
    its class whose IoU with it exceeds the threshold. Formula (2) merges a cluster: with w = f * a
    * p of each member, where f is its IoU with the highest-scoring box, a its area (volume) and p
    its center weight, the score is sum(s w) / (sum(w) + n_missing * mean(w)) and a coordinate is
    sum(c s w) / sum(s w). n_missing is the number of expected views minus the number of views with
    a member, at least 0.

    The paper does not specify the following. A view with several boxes in a cluster counts once,
    with all its boxes in the sums. A view whose model lacks the class counts as missing. If the
    number of expected views differs between members, its mean is used. If all weights of a cluster
    are 0 (boxes without area, center weights of 0), its members have equal weights. If sum(s w) is
    still 0, the highest-scoring box keeps its coordinates.

    Args:
        boxes: (N, 4) X1Y1X2Y2 in pixels, or (N, 6) X1Y1Z1X2Y2Z2; areas and volumes are products of
            differences.
        scores: (N,), at least 0.
        classes: (N,) integers.
        iou_threshold: in [0, 1); members have a larger IoU with the highest-scoring box.
        view_ids: (N,) integers or strings, the view (model, mirror, tile) of each box.
        num_views: number of views of every location, or (N,) of the location of each box.
        center_weights: (N,) p, at least 0; 1 by default.

    Raises:
        ValueError: shapes or lengths that do not match, numbers that are not finite or out of
            range, x2 < x1 and the like, or more views in ``view_ids`` than a single ``num_views``
            (numbers per box are not checked, as a cluster may span two locations).
    """
    boxes, scores = check_boxes(boxes, scores, iou_threshold, columns=(4, 6))
    classes = check_integers(classes, "classes", len(boxes))
    views, expected = _check_views(view_ids, num_views, len(boxes))
    centers = _check_center_weights(center_weights, len(boxes))
    owners = np.arange(len(boxes))
    for members in of_each_class(classes):
        owners[members] = members[_find_owners(boxes[members], scores[members], iou_threshold)]
    heads, members = np.unique(owners, return_inverse=True)
    weights = _iou_with_owners(boxes, owners) * box_areas(boxes) * centers
    missing = _count_missing(members, views, expected, len(heads))
    new_scores, shares = _average_scores(scores, weights, heads, members, missing)
    # Relative to the head, so that equal coordinates are exact.
    offsets = shares[:, None] * (boxes - boxes[owners])
    new_boxes = boxes[heads] + _sum_columns(offsets, members, len(heads))
    order = np.lexsort((heads, -scores[heads], -new_scores))
    rows = np.empty(len(order), dtype=np.int64)
    rows[order] = np.arange(len(order))
    return BoxClusters(
        new_boxes[order], new_scores[order], classes[heads[order]], rows[members], shares
    )


def weighted_box_clustering(
    boxes: np.ndarray,
    scores: np.ndarray,
    **options: Unpack[ClusterOptions],
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the boxes of one class from several views (Jaeger et al., section 3.2).

    Arguments (``options`` are its keywords), errors and what the paper leaves open are those of
    :func:`find_clusters`.

    Returns:
        (M, 4) or (M, 6) boxes and (M,) scores, descending.

    Example::

        boxes, scores = weighted_box_clustering(
            boxes, scores, iou_threshold=0.2, view_ids=view_ids, num_views=20
        )
    """
    one_class = np.zeros(len(boxes), dtype=np.int64)
    clusters = find_clusters(boxes, scores, one_class, **options)
    return clusters.boxes, clusters.scores


def batched_weighted_box_clustering(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    **options: Unpack[ClusterOptions],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """:func:`weighted_box_clustering` of each class separately.

    Arguments (``options`` are its keywords), errors and what the paper leaves open are those of
    :func:`find_clusters`.

    Returns:
        (M, 4) or (M, 6) boxes, (M,) scores, descending over all classes, and (M,) classes.
    """
    clusters = find_clusters(boxes, scores, classes, **options)
    return clusters.boxes, clusters.scores, clusters.classes


def cluster_boxes(boxes: np.ndarray, scores: np.ndarray, *, iou_threshold: float) -> np.ndarray:
    """Cluster boxes as in non-maximum suppression (Jaeger et al., section 3.2).

    The highest-scoring remaining box (the first of equal scores) takes all remaining boxes whose
    IoU with it exceeds the threshold.

    Args:
        boxes: (N, 4) X1Y1X2Y2 or (N, 6) X1Y1Z1X2Y2Z2.
        scores: (N,), at least 0.
        iou_threshold: in [0, 1).

    Returns:
        (N,) index of the highest-scoring box of each box's cluster (for that box, its own).

    Raises:
        ValueError: as :func:`find_clusters`.
    """
    boxes, scores = check_boxes(boxes, scores, iou_threshold, columns=(4, 6))
    return _find_owners(boxes, scores, iou_threshold)


class OverlapIndex:
    """Finds the boxes whose IoU with a given box exceeds a threshold.

    Boxes are sorted by their centers in x, so that those that can overlap enough are contiguous.

    Args:
        boxes: (N, 4) or (N, 6).
        iou_threshold: in [0, 1).
    """

    def __init__(self, boxes: np.ndarray, iou_threshold: float) -> None:
        self._dims = boxes.shape[1] // 2
        centers = (boxes[:, 0] + boxes[:, self._dims]) / 2
        self._order = np.argsort(centers)
        self._places = np.argsort(self._order).tolist()
        boxes, centers = boxes[self._order], centers[self._order]
        areas = box_areas(boxes)
        # Boxes without area overlap nothing, and would divide 0 by 0.
        self._areas = np.where(areas > 0, areas, 1.0)
        reach = _reach(boxes[:, 0], boxes[:, self._dims], iou_threshold)
        self._starts = np.searchsorted(centers, centers - reach).tolist()
        self._stops = np.searchsorted(centers, centers + reach, side="right").tolist()
        # Starts are negated, so that one minimum clips both sides. One row per coordinate, so that
        # nearby boxes are contiguous.
        signs = np.repeat([-1.0, 1.0], self._dims)
        self._bounds = np.ascontiguousarray((boxes * signs).T)
        self._threshold = iou_threshold

    def matches(self, index: int) -> np.ndarray:
        """Indices of the boxes with an IoU above the threshold with one box, in any order.

        Includes the box itself if it has an area.
        """
        place = self._places[index]
        near = slice(self._starts[place], self._stops[place])
        shared_bounds = np.minimum(self._bounds[:, near], self._bounds[:, place, None])
        extents = shared_bounds[: self._dims] + shared_bounds[self._dims :]
        np.maximum(extents, 0.0, out=extents)
        shared = extents[0] * extents[1]
        if self._dims == 3:
            shared *= extents[2]
        union = self._areas[near] + self._areas[place]
        union -= shared
        shared /= union
        return self._order[near][shared > self._threshold]


def _reach(starts: np.ndarray, ends: np.ndarray, iou_threshold: float) -> np.ndarray:
    """(N,) maximum distance along an axis of the centers of boxes that overlap enough.

    The IoU of boxes is at most that of their extents along an axis. For widths w, v it exceeds t
    only if v < w / t and the centers are closer than (w + v) / 2 * (1 - t) / (1 + t).
    """
    widths = ends - starts
    others = np.full(len(widths), widths.max(initial=0))
    if iou_threshold > 0:
        others = np.minimum(others, widths / iou_threshold)
    reach = (widths + others) / 2 * (1 - iou_threshold) / (1 + iou_threshold)
    # Slightly more, for rounding errors.
    largest = max(np.abs(starts).max(initial=0), np.abs(ends).max(initial=0))
    return reach * (1 + 1e-9) + 1e-9 * largest


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """(N,) areas of (N, 4) boxes, or volumes of (N, 6) boxes."""
    dims = boxes.shape[1] // 2
    return (boxes[:, dims:] - boxes[:, :dims]).prod(axis=1)


def check_boxes(
    boxes: np.ndarray, scores: np.ndarray, iou_threshold: float, *, columns: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Check boxes and scores, and convert them to float64.

    Raises:
        ValueError: invalid shapes, numbers or threshold, see :func:`find_clusters`.
    """
    boxes, scores = np.asarray(boxes, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if boxes.shape == (0,):  # an empty list
        boxes = boxes.reshape(0, columns[0])
    if boxes.ndim != 2 or boxes.shape[1] not in columns:
        wanted = " or ".join(f"(N, {count})" for count in columns)
        raise ValueError(f"boxes: found shape {boxes.shape}, expected {wanted}")
    _check_length(scores, "scores", len(boxes))
    for row in bad_boxes(boxes)[:1]:
        raise ValueError(f"boxes[{row}]: found {boxes[row]}, expected {EXPECTED_BOX}")
    _check_range(scores, "scores", at_least=0)
    if not 0 <= iou_threshold < 1:
        raise ValueError(f"iou_threshold: found {iou_threshold}, expected a number in [0, 1)")
    return boxes, scores


def check_integers(values: np.ndarray | Sequence, name: str, count: int) -> np.ndarray:
    """Check for (count,) integers; an empty array may have any type.

    Raises:
        ValueError: other shapes or types.
    """
    values = np.asarray(values)
    _check_length(values, name, count)
    if count == 0:
        return values.astype(np.int64)
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name}: found type {values.dtype}, expected integers")
    return values


def of_each_class(classes: np.ndarray) -> list[np.ndarray]:
    """Indices of the boxes of each class, by ascending class."""
    return [np.flatnonzero(classes == number) for number in np.unique(classes)]


def _check_length(values: np.ndarray, name: str, count: int) -> None:
    if values.shape != (count,):
        raise ValueError(f"{name}: found shape {values.shape}, expected ({count},), one per box")


def _check_range(values: np.ndarray, name: str, *, at_least: float) -> None:
    for row in np.flatnonzero(~(np.isfinite(values) & (values >= at_least)))[:1]:
        raise ValueError(
            f"{name}[{row}]: found {values[row]}, expected a finite number of at least {at_least}"
        )


def _check_views(
    view_ids: np.ndarray | Sequence, num_views: float | np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) index of each box's view from 0 on, and (N,) number of views expected there."""
    view_ids, num_views = np.asarray(view_ids), np.asarray(num_views, dtype=np.float64)
    _check_length(view_ids, "view_ids", count)
    if count and view_ids.dtype.kind not in "iuSU":
        raise ValueError(f"view_ids: found type {view_ids.dtype}, expected integers or strings")
    if num_views.ndim:
        _check_length(num_views, "num_views", count)
    expected = np.atleast_1d(num_views)
    _check_range(expected, "num_views", at_least=1)
    distinct, views = np.unique(view_ids, return_inverse=True)
    if num_views.ndim == 0 and num_views < len(distinct):
        raise ValueError(
            f"num_views: found {num_views:g}, expected at least {len(distinct)}, the number of "
            "views in view_ids"
        )
    return views, np.broadcast_to(expected, (count,))


def _check_center_weights(center_weights: np.ndarray | None, count: int) -> np.ndarray:
    if center_weights is None:
        return np.ones(count)
    center_weights = np.asarray(center_weights, dtype=np.float64)
    _check_length(center_weights, "center_weights", count)
    _check_range(center_weights, "center_weights", at_least=0)
    return center_weights


def _find_owners(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """:func:`cluster_boxes` without checks."""
    index = OverlapIndex(boxes, iou_threshold)
    free = np.ones(len(boxes), dtype=bool)
    owners = np.arange(len(boxes))
    for head in np.argsort(-scores, kind="stable").tolist():
        if free[head]:
            matches = index.matches(head)
            matches = matches[free[matches]]
            owners[matches] = head
            free[matches] = False
    return owners


def _iou_with_owners(boxes: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """(N,) IoU of each box with its cluster's highest-scoring box (1 for that box)."""
    dims = boxes.shape[1] // 2
    others = boxes[owners]
    low = np.maximum(boxes[:, :dims], others[:, :dims])
    shared = np.maximum(np.minimum(boxes[:, dims:], others[:, dims:]) - low, 0).prod(axis=1)
    areas = box_areas(boxes)
    union = areas + areas[owners] - shared
    return np.divide(shared, union, out=np.ones(len(boxes)), where=union > 0)


def _count_missing(
    members: np.ndarray, views: np.ndarray, expected: np.ndarray, count: int
) -> np.ndarray:
    """(count,) n_missing of formula (2)."""
    num_views = views.max(initial=0) + 1
    seen = np.bincount(np.unique(members * num_views + views) // num_views, minlength=count)
    sizes = np.bincount(members, minlength=count)
    return np.maximum(np.bincount(members, expected, count) / sizes - seen, 0)


def _average_scores(
    scores: np.ndarray,
    weights: np.ndarray,
    heads: np.ndarray,
    members: np.ndarray,
    missing: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(M,) o_s of formula (2), and (N,) weight of each box in its cluster's coordinates."""
    count = len(heads)
    sizes = np.bincount(members, minlength=count)
    totals = np.bincount(members, weights, count)
    weights = np.where(totals[members] > 0, weights, 1.0)
    totals = np.where(totals > 0, totals, sizes)
    # Relative to the head's score, so that equal scores are exact.
    offsets = weights * (scores - scores[heads][members])
    averages = scores[heads] + np.bincount(members, offsets, count) / totals
    # The sum of weights is their mean times the cluster's size.
    new_scores = np.maximum(averages, 0) / (1 + missing / sizes)
    shares = scores * weights
    totals = np.bincount(members, shares, count)
    is_head = heads[members] == np.arange(len(members))
    shares = np.where(totals[members] > 0, shares, is_head)
    return new_scores, shares / np.where(totals > 0, totals, 1.0)[members]


def _sum_columns(values: np.ndarray, members: np.ndarray, count: int) -> np.ndarray:
    """(count, C) sums of the rows of (N, C) per cluster."""
    columns = [np.bincount(members, column, count) for column in values.T]
    return np.stack(columns, axis=1)
