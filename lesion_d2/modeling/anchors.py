"""Search for anchors that fit a data set's boxes (Zlocha et al., section 2.1)."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

#: Objective -> loss of a box as a function of the IoU with its best centered anchor.
OBJECTIVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda iou: 1 - iou,
    "focal": lambda iou: -((1 - iou) ** 2) * np.log(iou),
}
#: A box whose best centered anchor has a lower IoU is unmatched.
MATCH_IOU = 0.5

# Convergence: spread of a generation's losses, relative to their mean and absolute.
_RELATIVE_SPREAD, _ABSOLUTE_SPREAD = 1e-5, 1e-9
_MAX_GENERATIONS = 500
# Population size per variable. More than scipy's 15, so that fewer searches miss the optimum.
_POPULATION = 25
# Maximum number of elements in an array, to limit memory.
_BLOCK = 2**20

Bounds = tuple[float, float]


@dataclass(frozen=True, eq=False)
class AnchorSearch:
    """Result of :func:`optimize_anchors`.

    Attributes:
        sizes: sizes of the pyramid levels as given, pixels.
        scales: ascending; every level has an anchor for each scale and ratio.
        ratios: height / width, ascending: 1 and the reciprocal pairs.
        loss: loss of all boxes for the search's objective.
        best_iou: (N,) IoU of each box with its best centered anchor.
        generations: number of generations of the differential evolution.
    """

    sizes: tuple[float, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...]
    loss: float
    best_iou: np.ndarray
    generations: int

    @property
    def mean_iou(self) -> float:
        """Mean IoU of all boxes with their best centered anchor."""
        return float(self.best_iou.mean())

    @property
    def unmatched(self) -> float:
        """Share of the boxes whose best centered anchor has an IoU below 0.5."""
        return unmatched_share(self.best_iou)

    @property
    def level_sizes(self) -> list[list[float]]:
        """Values for MODEL.ANCHOR_GENERATOR.SIZES: per level, square roots of areas."""
        return [[size * scale for scale in self.scales] for size in self.sizes]

    @property
    def anchors(self) -> np.ndarray:
        """(A, 2) widths and heights, see :func:`anchor_shapes`."""
        return anchor_shapes(self.sizes, self.scales, self.ratios)


def anchor_shapes(
    sizes: Sequence[float], scales: Sequence[float], ratios: Sequence[float]
) -> np.ndarray:
    """Compute widths and heights of anchors as Detectron2's ``DefaultAnchorGenerator``.

    Args:
        sizes: sizes of the levels, pixels.
        scales: an anchor's area is (size * scale)^2.
        ratios: height / width.

    Returns:
        (A, 2) pixels, ordered by level, then scale, then ratio.
    """
    side = np.multiply.outer(np.asarray(sizes, float), np.asarray(scales, float))[..., None]
    root = np.sqrt(np.asarray(ratios, float))
    return np.stack([side / root, side * root], axis=-1).reshape(-1, 2)


def best_anchor_iou(wh: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Compute the IoU of each box with the best of several anchors with the same center.

    Args:
        wh: (N, 2) widths and heights of boxes.
        anchors: (A, 2) widths and heights of anchors, in the same unit.

    Returns:
        (N,) in 0..1.

    Raises:
        ValueError: an array has another shape, there are no anchors, or a size is not positive.
    """
    wh, anchors = _check_shapes("wh", wh), _check_shapes("anchors", anchors)
    areas = anchors.prod(axis=1)
    best = np.empty(len(wh))
    step = max(1, _BLOCK // len(anchors))
    for start in range(0, len(wh), step):
        boxes = wh[start : start + step, None]
        shared = np.minimum(boxes, anchors).prod(axis=2)
        iou = shared / (boxes.prod(axis=2) + areas - shared)
        best[start : start + step] = iou.max(axis=1)
    return best


def best_grid_iou(
    boxes: np.ndarray,
    image_sizes: np.ndarray,
    anchors: Sequence[np.ndarray],
    strides: Sequence[int],
    *,
    offset: float = 0.0,
) -> np.ndarray:
    """Compute the IoU of each box with the best anchor of Detectron2's grid.

    It is lower than :func:`best_anchor_iou` because of the strides: a box may be up to half a
    stride away from the nearest anchor along each axis.

    Args:
        boxes: (N, 4) XYXY in pixels of the network's input.
        image_sizes: (N, 2) height and width of each box's image, pixels.
        anchors: widths and heights (A, 2), one array per level.
        strides: one per level, pixels.
        offset: offset of the first anchors' centers, in strides (MODEL.ANCHOR_GENERATOR.OFFSET).

    Returns:
        (N,) in 0..1.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    best = np.zeros(len(boxes))
    for shapes, stride in zip(anchors, strides, strict=True):
        # Among anchors of one shape, the nearest along x and y has the largest overlap.
        last = np.ceil(image_sizes[:, ::-1] / stride) - 1
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        nearest = (np.clip(np.rint(centers / stride - offset), 0, last) + offset) * stride
        for shape in np.asarray(shapes):
            low = np.maximum(boxes[:, :2], nearest - shape / 2)
            high = np.minimum(boxes[:, 2:], nearest + shape / 2)
            shared = np.clip(high - low, 0, None).prod(axis=1)
            np.maximum(best, shared / (areas + shape.prod() - shared), out=best)
    return best


def unmatched_share(best_iou: np.ndarray) -> float:
    """Share of the boxes whose best centered anchor has an IoU below 0.5.

    Args:
        best_iou: (N,), see :func:`best_anchor_iou`.
    """
    return float((best_iou < MATCH_IOU).mean())


def optimize_anchors(
    wh: np.ndarray,
    *,
    sizes: Sequence[float] = (32, 64, 128, 256, 512),
    num_scales: int = 3,
    num_ratio_pairs: int = 2,
    objective: str = "focal",
    scale_bounds: Bounds | Sequence[Bounds] = (0.4, 2.0),
    ratio_bounds: Bounds | Sequence[Bounds] = (1.0, 4.0),
    seed: int = 0,
    on_generation: Callable[[float], None] | None = None,
) -> AnchorSearch:
    """Find anchor scales and aspect ratios with the best overlap (Zlocha et al., section 2.1).

    One ratio is fixed at 1:1, the others are reciprocal pairs; so there are
    ``num_scales + num_ratio_pairs`` variables, searched by differential evolution. The paper
    restricts the initial candidates of its two pairs to [1, 2] and [2, 4] (``ratio_bounds=((1, 2),
    (2, 4))``). Here bounds apply to the whole search, and by default every pair has [1, 4]. Its
    "overlap between the lesion bounding-box and the best anchor" is the objective "mean".

    The result is deterministic for any number of threads. The search may miss the optimum: with
    levels one octave apart, all seeds that we tried agree to 0.1 % of the loss; with irregular
    levels, some are a few percent worse.

    Example::

        search = optimize_anchors(boxes[:, 2:] - boxes[:, :2], sizes=(16, 32, 64, 128))
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = search.level_sizes
        cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [list(search.ratios)]

    Args:
        wh: (N, 2) widths and heights of the boxes, in pixels of the network's input.
        sizes: one per pyramid level, pixels.
        num_scales: number of scales per level, for each ratio.
        num_ratio_pairs: number of pairs r and 1 / r in addition to 1:1.
        objective: "mean" (largest mean IoU of each box with its best centered anchor) or "focal"
            (least mean of -(1 - IoU)^2 log IoU).
        scale_bounds: lowest and highest scale; one pair for all, or one per scale.
        ratio_bounds: lowest and highest ratio; one pair for all, or one per ratio pair.
        seed: random seed of the evolution.
        on_generation: called after every generation with its best loss.

    Raises:
        ValueError: there are no boxes, a box or a size is not positive, bounds are reversed, the
            objective is unknown, or the number of scales or pairs is invalid.
    """
    wh = _check_shapes("wh", wh)
    sizes = _check_sizes(sizes)
    _check_choices(objective, num_scales, num_ratio_pairs)
    bounds = [
        *_check_bounds("scale_bounds", scale_bounds, num_scales),
        *_check_bounds("ratio_bounds", ratio_bounds, num_ratio_pairs),
    ]
    loss_of = _SearchLoss(wh, sizes, num_scales, OBJECTIVES[objective])
    found, generations = _evolve(loss_of, bounds, seed, on_generation)
    scales = tuple(sorted(found[:num_scales].tolist()))
    ratios = _with_reciprocals(found[num_scales:].tolist())
    best_iou = best_anchor_iou(wh, anchor_shapes(sizes, scales, ratios))
    loss = float(OBJECTIVES[objective](best_iou).mean())
    return AnchorSearch(sizes, scales, ratios, loss, best_iou, generations)


def _with_reciprocals(ratios: Sequence[float]) -> tuple[float, ...]:
    return tuple(sorted([1.0, *ratios, *(1 / ratio for ratio in ratios)]))


class _SearchLoss:
    """The loss of a candidate, computed without comparing all boxes with all anchors.

    If anchors are all combinations of areas and ratios, and ratios include their reciprocals, the
    best anchor of a box has the nearest log area and the nearest log ratio: with d half the
    absolute difference of the log areas, and q that of the log ratios, a box and an anchor with the
    same center have

        1 / IoU = exp(m + d) + exp(m - d) - 1,  m = max(d, q),

    which increases with d and with q. (If q <= d, one contains the other, and their IoU is the
    ratio of the areas, exp(-2 d).)

    Args:
        wh: (N, 2) widths and heights of the boxes.
        sizes: sizes of the levels.
        num_scales: number of scales, a candidate's first variables; the others are ratios.
        box_loss: loss of boxes as a function of their best IoU.
    """

    def __init__(
        self,
        wh: np.ndarray,
        sizes: Sequence[float],
        num_scales: int,
        box_loss: Callable[[np.ndarray], np.ndarray],
    ):
        log_w, log_h = np.log(wh).T
        order = np.argsort(log_w + log_h, kind="stable")
        self.half_area = (log_w + log_h)[order] / 2  # ascending
        # By symmetry, wide boxes are treated as tall ones.
        self.half_ratio = np.abs(log_h - log_w)[order] / 2
        self.log_sizes = np.log(sizes)
        self.num_scales = num_scales
        self.box_loss = box_loss

    def __call__(self, candidates: np.ndarray) -> np.ndarray:
        """Return the mean loss over the boxes, (S,), for candidates (variables, S)."""
        return np.array([self._loss(logs) for logs in np.log(candidates.T)])

    def _loss(self, logs: np.ndarray) -> float:
        d = np.abs(self.half_area - self._nearest_area(logs[: self.num_scales]))
        q = self.half_ratio  # from 1:1
        for half_ratio in np.abs(logs[self.num_scales :]) / 2:
            q = np.minimum(q, np.abs(self.half_ratio - half_ratio))
        side, larger = np.exp(d), np.exp(np.maximum(d, q))
        return float(self.box_loss(1 / (larger * (side + 1 / side) - 1)).mean())

    def _nearest_area(self, log_scales: np.ndarray) -> np.ndarray:
        """Half the log area of the anchors nearest in area to each box, (N,)."""
        points = np.sort(np.add.outer(self.log_sizes, log_scales), axis=None)
        borders = np.searchsorted(self.half_area, (points[:-1] + points[1:]) / 2)
        return np.repeat(points, np.diff(borders, prepend=0, append=len(self.half_area)))


def _evolve(
    loss_of: Callable[[np.ndarray], np.ndarray],
    bounds: list[Bounds],
    seed: int,
    on_generation: Callable[[float], None] | None,
) -> tuple[np.ndarray, int]:
    """Return the best candidate (variables,) and the number of generations."""

    def report(best: np.ndarray, convergence: float = 0.0) -> None:
        """Report the best candidate (variables,) of a generation."""
        if on_generation is not None:
            on_generation(float(loss_of(best[:, None])[0]))

    from scipy.optimize import differential_evolution  # slow to import

    # scipy renamed the argument in its version 1.15.
    name = "rng" if "rng" in inspect.signature(differential_evolution).parameters else "seed"
    result = differential_evolution(
        loss_of,
        bounds,
        maxiter=_MAX_GENERATIONS,
        popsize=_POPULATION,
        tol=_RELATIVE_SPREAD,
        atol=_ABSOLUTE_SPREAD,
        # The tolerance above is small enough; polishing would not improve the result.
        polish=False,
        vectorized=True,
        updating="deferred",
        callback=report,
        **{name: np.random.default_rng(seed)},
    )
    return result.x, int(result.nit)


def _check_shapes(name: str, wh: np.ndarray) -> np.ndarray:
    wh = np.asarray(wh, dtype=np.float64)
    if wh.ndim != 2 or wh.shape[1] != 2:
        raise ValueError(f"{name}: found an array of shape {wh.shape}, expected (N, 2)")
    if not len(wh):
        raise ValueError(f"{name}: found no boxes, expected at least one")
    bad = np.flatnonzero(~(np.isfinite(wh) & (wh > 0)).all(axis=1))
    if len(bad):
        width, height = wh[bad[0]]
        raise ValueError(
            f"{name}, row {bad[0]}: found a width of {width:g} and a height of {height:g}, "
            f"expected finite numbers above 0 (bad rows: {len(bad)} of {len(wh)})"
        )
    return wh


def _check_sizes(sizes: Sequence[float]) -> tuple[float, ...]:
    checked = tuple(float(size) for size in sizes)
    if not checked or not all(0 < size < np.inf for size in checked):
        raise ValueError(f"sizes: found {checked}, expected finite numbers of pixels above 0")
    return checked


def _check_choices(objective: str, num_scales: int, num_ratio_pairs: int) -> None:
    if objective not in OBJECTIVES:
        raise ValueError(f"objective: found {objective!r}, expected one of {list(OBJECTIVES)}")
    if num_scales < 1 or num_ratio_pairs < 0:
        raise ValueError(
            f"found {num_scales} scales and {num_ratio_pairs} ratio pairs, expected at least 1 "
            "scale and at least 0 pairs"
        )


def _check_bounds(name: str, bounds: Bounds | Sequence[Bounds], number: int) -> list[Bounds]:
    """Return one (low, high) per variable."""
    try:
        pairs = np.asarray(bounds, dtype=np.float64)
    except (TypeError, ValueError):  # lists of different length, or not numbers
        pairs = np.empty(0)
    if pairs.shape in ((2,), (1, 2)):
        pairs = np.tile(pairs.reshape(1, 2), (number, 1))
    if pairs.shape != (number, 2):
        raise ValueError(f"{name}: found {bounds}, expected (low, high) or {number} such pairs")
    for low, high in pairs:
        if not 0 < low <= high < np.inf:
            raise ValueError(f"{name}: found ({low:g}, {high:g}), expected 0 < low <= high")
    return [(low, high) for low, high in pairs.tolist()]
