"""Tracking along z with a Kalman filter, which links boxes on slices to 3-D boxes."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from .box_clustering import box_areas
from .slices import link_each_class, link_one_class

# SORT's variances, in pixels and slices, for x, y, area, aspect ratio and velocities (the aspect
# ratio has none).
_POSITION_NOISE = np.array([1.0, 1.0, 1.0, 1.0])[:, None]
_VELOCITY_NOISE = np.array([1e-2, 1e-2, 1e-4])[:, None]
_MEASUREMENT_NOISE = np.array([1.0, 1.0, 10.0, 10.0])[:, None]
_FIRST_POSITION_VARIANCE = 10.0
_FIRST_VELOCITY_VARIANCE = 1e4


def track_slices(
    boxes: np.ndarray,
    scores: np.ndarray,
    slice_ids: np.ndarray | Sequence[int],
    *,
    iou_threshold: float,
    max_gap: int,
    return_tracklets: bool = False,
) -> tuple[np.ndarray, ...]:
    """Link the boxes of one class on the slices of a volume (Bai et al., section II).

    The paper only names a Kalman filter. This is SORT's (Bewley et al., 2016), with slices instead
    of video frames: the state of a lesion is the center, area and aspect ratio of its box, with
    constant velocities of center and area, and SORT's variances. On each slice, predicted and
    detected boxes are assigned to maximize the sum of IoUs over pairs that reach the threshold. A
    lesion without a box is predicted for up to ``max_gap`` slices; an unassigned box starts a new
    lesion.

    One pass runs from head to feet and one back, so that the result does not depend on the
    direction. Each pass links a box to the lesion's previous box. Links of both passes are accepted
    first, then those of one pass by descending IoU (ties by score), as long as each box has at most
    one neighbor on each side. A chain of links becomes one 3-D box from its first to its last
    slice, with the in-plane box and the score of its best box.

    Args:
        boxes: (N, 4) X1Y1X2Y2 in pixels; boxes without area are not linked.
        scores: (N,), at least 0.
        slice_ids: (N,) integers, slice number of each box. Consecutive numbers are neighbors.
        iou_threshold: minimum IoU (``>=``), in [0, 1).
        max_gap: maximum number of consecutive slices without a box of the lesion, 0 or more.
        return_tracklets: whether to return the boxes of the 3-D boxes on each slice.

    Returns:
        (M, 6) boxes X1Y1Z1X2Y2Z2 in pixels and slices, z1 and z2 the numbers of the first and last
        slice, and (M,) scores, descending. With ``return_tracklets`` also (N,) tracklets: the index
        of each box's 3-D box, which has at most one box per slice.

    Raises:
        ValueError: as :func:`~lesion_d2.inference.merge_slices`, or ``max_gap`` is below 0.

    Example::

        boxes3d, scores = track_slices(boxes, scores, slice_ids, iou_threshold=0.3, max_gap=1)
    """
    options = {"iou_threshold": iou_threshold, "max_gap": max_gap}
    options["return_tracklets"] = return_tracklets
    return link_one_class(batched_track_slices, boxes, scores, slice_ids, **options)


def batched_track_slices(
    boxes: np.ndarray,
    scores: np.ndarray,
    slice_ids: np.ndarray | Sequence[int],
    classes: np.ndarray | Sequence[int],
    *,
    iou_threshold: float,
    max_gap: int,
    return_tracklets: bool = False,
) -> tuple[np.ndarray, ...]:
    """:func:`track_slices` of each class separately.

    Args:
        boxes, scores, slice_ids, iou_threshold, max_gap, return_tracklets: see
            :func:`track_slices`.
        classes: (N,) integers.

    Returns:
        (M, 6) boxes, (M,) scores, descending over all classes, and (M,) classes; with
        ``return_tracklets`` also (N,) tracklets.

    Raises:
        ValueError: as :func:`track_slices`, or classes are not integers.
    """
    if max_gap < 0:
        raise ValueError(f"max_gap: found {max_gap}, expected at least 0 slices")
    track = partial(_track, max_gap=max_gap)
    linked = link_each_class(track, boxes, scores, slice_ids, classes, iou_threshold=iou_threshold)
    return linked if return_tracklets else linked[:3]


def _track(
    boxes: np.ndarray, scores: np.ndarray, slice_ids: np.ndarray, iou_threshold: float, max_gap: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """:func:`track_slices` without checks, with tracklets."""
    if len(boxes) == 0:
        return np.empty((0, 6)), np.empty(0), np.empty(0, dtype=np.int64)
    order = np.argsort(-scores, kind="stable")  # below, boxes are indexed by descending score
    boxes, slices = boxes[order], slice_ids[order].astype(np.int64)
    down = _pass_over(boxes, slices, iou_threshold, max_gap)
    up = _pass_over(boxes, -slices, iou_threshold, max_gap)
    first_rows, rows = _chains(*_agreed_links(down, up, len(boxes)), len(boxes))
    z1, z2 = (np.full(len(first_rows), slices[first_rows]) for _ in range(2))
    np.minimum.at(z1, rows, slices)
    np.maximum.at(z2, rows, slices)
    best = boxes[first_rows]
    linked = np.column_stack([best[:, :2], z1, best[:, 2:], z2])
    tracklets = np.empty(len(boxes), dtype=np.int64)
    tracklets[order] = rows
    return linked, scores[order][first_rows], tracklets


def _pass_over(
    boxes: np.ndarray, slices: np.ndarray, iou_threshold: float, max_gap: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Track in one direction.

    Returns:
        (L,) box, (L,) the lesion's next box, and (L,) IoU of the latter with the predicted box.
    """
    tracks = _Tracks()
    links = [(np.zeros(0, int), np.zeros(0, int), np.zeros(0))]
    number_before = None
    for number, found in _by_slice(slices):
        tracks.drop_before(number - max_gap - 1)
        if len(tracks.last_boxes):
            for _ in range(number - number_before):
                tracks.predict()
        number_before = number
        chosen, taken, ious = _assign(tracks.boxes(), boxes[found], iou_threshold)
        links.append((tracks.last_boxes[chosen], found[taken], ious))
        measured = _measurements(boxes[found])
        tracks.update(chosen, measured[:, taken], found[taken], number)
        is_new = np.ones(len(found), dtype=bool)
        is_new[taken] = False
        tracks.begin(measured[:, is_new], found[is_new], number)
    before, after, ious = map(np.concatenate, zip(*links, strict=True))
    return before, after, ious


def _by_slice(slices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Slice numbers, ascending, each with the indices of its boxes, ascending."""
    order = np.argsort(slices, kind="stable")
    numbers, starts = np.unique(slices[order], return_index=True)
    yield from zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)


class _Tracks:
    """Kalman filters of T lesions, vectorized.

    x, y and area are independent and the aspect ratio is constant, so the covariance has 2 x 2
    blocks: the variances of a position and its velocity, and their covariance.
    """

    def __init__(self) -> None:
        # Rows: 4 positions, 3 velocities, 4 variances, 3 covariances, 3 variances of velocities.
        self._state = np.empty((17, 0))
        self.last_boxes = np.empty(0, dtype=np.int64)  # T, index of each lesion's last box
        self._last_slices = np.empty(0, dtype=np.int64)

    @staticmethod
    def _parts(state: np.ndarray) -> list[np.ndarray]:
        return np.split(state, (4, 7, 11, 14))  # views

    def drop_before(self, number: int) -> None:
        """Drop lesions whose last box is on a slice before this one."""
        kept = self._last_slices >= number
        self._state = self._state[:, kept]
        self.last_boxes, self._last_slices = self.last_boxes[kept], self._last_slices[kept]

    def begin(self, measured: np.ndarray, boxes: np.ndarray, number: int) -> None:
        """Add lesions from (4, n) measurements and (n,) box indices on a slice."""
        state = np.zeros((17, len(boxes)))
        state[:4], state[7:11] = measured, _FIRST_POSITION_VARIANCE
        state[14:] = _FIRST_VELOCITY_VARIANCE
        self._state = np.concatenate([self._state, state], axis=1)
        self.last_boxes = np.append(self.last_boxes, boxes)
        self._last_slices = np.append(self._last_slices, np.full(len(boxes), number))

    def predict(self) -> None:
        """Predict the next slice."""
        positions, velocities, variances, covariances, velocity_variances = self._parts(self._state)
        velocities[2, positions[2] + velocities[2] <= 0] = 0  # as in SORT: no negative area
        positions[:3] += velocities
        variances[:3] += 2 * covariances + velocity_variances
        variances += _POSITION_NOISE
        covariances += velocity_variances
        velocity_variances += _VELOCITY_NOISE

    def update(
        self, chosen: np.ndarray, measured: np.ndarray, boxes: np.ndarray, number: int
    ) -> None:
        """Update n chosen lesions with (4, n) measurements and (n,) box indices."""
        state = self._state[:, chosen]
        positions, velocities, variances, covariances, velocity_variances = self._parts(state)
        errors = measured - positions
        totals = variances + _MEASUREMENT_NOISE
        gains, velocity_gains = variances / totals, covariances / totals[:3]
        positions += gains * errors
        velocities += velocity_gains * errors[:3]
        velocity_variances -= velocity_gains * covariances
        covariances *= 1 - gains[:3]
        variances *= 1 - gains
        self._state[:, chosen] = state
        self.last_boxes[chosen], self._last_slices[chosen] = boxes, number

    def boxes(self) -> np.ndarray:
        """(T, 4) X1Y1X2Y2, current boxes of the lesions."""
        x, y, areas, ratios = self._state[:4]
        widths = np.sqrt(np.maximum(areas * ratios, 0))
        heights = np.divide(areas, widths, out=np.zeros_like(widths), where=widths > 0)
        halves = widths / 2, heights / 2
        return np.stack([x - halves[0], y - halves[1], x + halves[0], y + halves[1]], axis=1)


def _measurements(boxes: np.ndarray) -> np.ndarray:
    """(4, N) center x, y, area and width / height (0 if the height is 0)."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    widths, heights = (boxes[:, 2:] - boxes[:, :2]).T
    ratios = np.divide(widths, heights, out=np.zeros(len(boxes)), where=heights > 0)
    return np.stack([*centers.T, widths * heights, ratios])


def _assign(
    predicted: np.ndarray, boxes: np.ndarray, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assign (N, 4) boxes to (T, 4) predicted boxes, maximizing the sum of IoUs.

    Returns:
        (n,) index of the predicted box, (n,) of the other box, and (n,) their IoU, at least the
        threshold and above 0.
    """
    tracks, found, ious = _overlapping(predicted, boxes)
    kept = ious >= iou_threshold
    tracks, found, ious = tracks[kept], found[kept], ious[kept]
    # Pairs without an alternative for either box are assigned directly; few others remain.
    has_others = (np.bincount(tracks)[tracks] > 1) | (np.bincount(found)[found] > 1)
    if not has_others.any():
        return tracks, found, ious
    pairs = np.flatnonzero(has_others)
    _, rows = np.unique(tracks[pairs], return_inverse=True)
    _, columns = np.unique(found[pairs], return_inverse=True)
    gains = np.zeros((rows.max() + 1, columns.max() + 1))
    gains[rows, columns] = ious[pairs]
    partner_of = np.full(len(gains), -1)
    from scipy.optimize import linear_sum_assignment  # slow to import

    assigned, partners = linear_sum_assignment(gains, maximize=True)
    partner_of[assigned] = partners
    kept = ~has_others
    kept[pairs] = partner_of[rows] == columns
    return tracks[kept], found[kept], ious[kept]


def _overlapping(
    first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of (T, 4) and (N, 4) boxes that overlap: both indices, and the IoU."""
    a, b = np.ascontiguousarray(first.T), np.ascontiguousarray(second.T)
    shares = (a[0][:, None] < b[2]) & (a[2][:, None] > b[0])
    shares &= a[1][:, None] < b[3]
    shares &= a[3][:, None] > b[1]
    rows, columns = np.divmod(np.flatnonzero(shares), max(len(second), 1))
    low = np.maximum(first[rows, :2], second[columns, :2])
    high = np.minimum(first[rows, 2:], second[columns, 2:])
    shared = (high - low).prod(axis=1)
    ious = shared / (box_areas(first)[rows] + box_areas(second)[columns] - shared)
    return rows, columns, ious


def _agreed_links(
    down: tuple[np.ndarray, ...], up: tuple[np.ndarray, ...], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Accepted links (L,), (L,) over ``count`` boxes: of both passes, then of one if compatible."""
    after_up, before_up, ious_up = up
    pairs = np.stack([np.append(down[0], before_up), np.append(down[1], after_up)])
    ious = np.append(down[2], ious_up)
    _, first, times = np.unique(pairs[0] * count + pairs[1], return_index=True, return_counts=True)
    before, after = pairs[:, first[times == 2]]
    has_next, has_previous = np.zeros((2, count), dtype=bool)
    has_next[before] = has_previous[after] = True

    others = first[times == 1]
    others = others[~has_next[pairs[0, others]] & ~has_previous[pairs[1, others]]]
    # Ties are broken independently of the direction in z.
    ranks = np.sort(pairs[:, others], axis=0)
    others = others[np.lexsort((ranks[1], ranks[0], -ious[others]))]
    kept = []
    for link, start, end in zip(others.tolist(), *pairs[:, others].tolist(), strict=True):
        if not (has_next[start] or has_previous[end]):
            has_next[start] = has_previous[end] = True
            kept.append(link)
    more = pairs[:, np.array(kept, dtype=np.int64)]
    return np.append(before, more[0]), np.append(after, more[1])


def _chains(before: np.ndarray, after: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Chains of links over ``count`` boxes.

    Returns:
        (M,) lowest index in each chain, ascending, and (count,) chain of each box.
    """
    start = np.arange(count)
    start[after] = before
    while not np.array_equal(start[start], start):  # pointer jumping
        start = start[start]
    lowest = np.full(count, count)
    np.minimum.at(lowest, start, np.arange(count))
    return np.unique(lowest[start], return_inverse=True)
