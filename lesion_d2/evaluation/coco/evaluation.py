"""COCO's evaluation of boxes and masks, vectorized over images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..average_precision import interpolated
from ..matching import reaching_pairs
from .detections import ImageDetections
from .greedy import HIT, NOTHING, match_greedily
from .objects import Found, Truth, overlaps_between


class CocoEvaluation(COCOeval):
    """A fast ``COCOeval`` for boxes or masks, with pycocotools' numbers to the last digit.

    ``params``, ``eval["precision"]``, ``eval["recall"]``, ``summarize()`` and ``stats`` are
    pycocotools'. Instead of loops over images, areas, thresholds, detections and objects, the
    overlaps of all pairs are computed at once, and detections are matched in all images together
    (:func:`~.greedy.match_greedily`). Of the many detections that overlap no object, the precision
    needs only the number.

    It takes a fortieth of pycocotools' time. The compiled package ``faster-coco-eval`` (1.8) takes
    0.3 of it and requires numeric image ids; Detectron2's compiled ``COCOeval_opt`` is missing in
    some installations. Both need a dictionary per detection.

    Further thresholds can be evaluated in the same pass, without an effect on AP:
    ``eval["more_precision"]``. ``eval["scores"]`` and ``evalImgs`` are not set.

    Example::

        run = CocoEvaluation(coco, detections, more_thresholds=[0.1])
        run.evaluate()
        run.accumulate()
        run.summarize()
    """

    def __init__(
        self,
        truth: COCO,
        detections: Mapping[object, ImageDetections],
        iou_type: str = "bbox",
        *,
        more_thresholds: Sequence[float] = (),
    ):
        """
        Args:
            truth: the data set; annotations with ``iscrowd`` are regions to ignore.
            detections: image id -> detections, with the data set's category ids. Images may be
                missing; ties in score between images are ordered by sorted image id.
            iou_type: "bbox", or "segm" for masks, which all detections must then have.
            more_thresholds: further IoU thresholds.

        Raises:
            ValueError: another ``iou_type``.
        """
        if iou_type not in ("bbox", "segm"):
            raise ValueError(f"iou_type: found {iou_type!r}, expected 'bbox' or 'segm'")
        super().__init__(truth, None, iou_type)
        self._detections = detections
        self._more_thresholds = np.asarray(more_thresholds, dtype=float)
        self._matches: list[_ClassMatches] = []

    def evaluate(self) -> None:
        """Match detections and objects of ``params.imgIds`` and ``params.catIds``.

        Raises:
            ValueError: masks are evaluated and missing; the message names the image.
        """
        p = self.params
        p.imgIds, p.catIds = list(np.unique(p.imgIds)), list(np.unique(p.catIds))
        p.maxDets = sorted(p.maxDets)
        indices, masks = {image: i for i, image in enumerate(p.imgIds)}, p.iouType == "segm"
        found = Found.of(self._detections, indices, masks)
        truth = Truth.of(self.cocoGt, indices, masks)
        # Within an image, detections by descending score, and objects in the order of the data set.
        order = np.lexsort((-found.scores, found.images))
        gt_order = np.argsort(truth.images, kind="stable")
        self._matches = [
            self._match(
                found.rows(order[found.categories[order] == k]),
                truth.rows(gt_order[truth.categories[gt_order] == k]),
            )
            for k in p.catIds
        ]

    def accumulate(self, p: object = None) -> None:
        """Set ``eval``: precision (T, R, K, A, M) and recall (T, K, A, M), -1 without objects.

        Args:
            p: ignored, as ``evaluate`` has used ``params``.
        """
        p, first = self.params, len(self.params.iouThrs)
        sizes = len(p.recThrs), len(p.catIds), len(p.areaRng), len(p.maxDets)
        precision = -np.ones((first + len(self._more_thresholds), *sizes))
        recall = -np.ones((len(precision), *sizes[1:]))
        for k, matches in enumerate(self._matches):
            for m, most in enumerate(p.maxDets):
                for a in np.flatnonzero(matches.num_objects).tolist():
                    for t, (total, curve) in enumerate(matches.curves(a, most, p.recThrs)):
                        recall[t, k, a, m], precision[t, :, k, a, m] = total, curve
        self.eval = {
            "params": p,
            "counts": [first, *sizes],
            "precision": precision[:first],
            "recall": recall[:first],
            "more_precision": precision[first:],
        }

    def _match(self, found: Found, truth: Truth) -> "_ClassMatches":
        p = self.params
        counts, gt_counts = (side.by_image(len(p.imgIds)) for side in (found, truth))
        ranks = np.arange(len(found.images)) - (np.cumsum(counts) - counts)[found.images]
        shown = ranks < p.maxDets[-1]
        if not shown.all():
            found, ranks, counts = found.rows(shown), ranks[shown], counts.clip(max=p.maxDets[-1])
        thresholds = np.minimum(np.append(p.iouThrs, self._more_thresholds), 1 - 1e-10)
        overlaps_of = overlaps_between(found, truth)
        pairs = reaching_pairs(counts, gt_counts, overlaps_of, thresholds.min())
        ignored = truth.is_crowd[:, None] | _outside(truth.areas, p.areaRng)
        candidates, outcomes = match_greedily(
            pairs, found.images, ignored, truth.is_crowd, thresholds
        )
        by_score = np.argsort(-found.scores, kind="stable")
        order = np.argsort(np.argsort(by_score)[candidates])
        return _ClassMatches(
            by_score=by_score,
            ranks=ranks,
            outside=_outside(found.areas, p.areaRng),
            candidates=candidates[order],
            outcomes=outcomes[order],
            num_objects=(~ignored).sum(axis=0),
        )


@dataclass(frozen=True, eq=False)
class _ClassMatches:
    """Matches of the N detections of a class, at T thresholds and in A ranges of area."""

    by_score: np.ndarray  # N, order by score over all images
    ranks: np.ndarray  # N, rank of each in its image
    outside: np.ndarray  # N x A bool, its area is not in the range
    candidates: np.ndarray  # C, detections that overlap an object, ascending
    outcomes: np.ndarray  # C x T x A, outcomes of the candidates, see match_greedily
    num_objects: np.ndarray  # A, number of objects that are not ignored

    def curves(
        self, area: int, most: int, recalls: np.ndarray
    ) -> Iterator[tuple[float, np.ndarray]]:
        """Yield the final recall and the precision (R,) at given recalls, per threshold.

        Args:
            area: index of the range.
            most: maximum number of detections per image.
            recalls: (R,).
        """
        counts = (self.ranks < most) & ~self.outside[:, area]
        errors = np.empty(len(counts), dtype=int)  # cumulative, as if no detection took an object
        errors[self.by_score] = np.cumsum(counts[self.by_score])
        shown = self.ranks[self.candidates] < most
        rows = self.candidates[shown]
        for outcomes in self.outcomes[shown, :, area].T:
            is_hit = outcomes == HIT
            # A hit counts regardless of its own area; a match with an ignored object does not
            # count.
            change = np.where(outcomes == NOTHING, 0, is_hit.astype(int) - counts[rows])
            hits = np.arange(1.0, is_hit.sum() + 1)
            false = (errors[rows] + np.cumsum(change))[is_hit] - hits
            precision = interpolated(hits / (false + hits + np.spacing(1)))
            first = np.searchsorted(hits / self.num_objects[area], recalls)
            yield len(hits) / self.num_objects[area], np.append(precision, 0.0)[first]


def _outside(areas: np.ndarray, ranges: Sequence[tuple[float, float]]) -> np.ndarray:
    """(N, A) bool, whether an area is outside of a range; ranges include both ends."""
    low, high = np.asarray(ranges, dtype=float).T
    return (areas[:, None] < low) | (areas[:, None] > high)
