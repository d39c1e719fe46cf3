"""Free-response ROC: sensitivity over false positives per image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np

from .matching import Matches, MatchOptions, match_images


@dataclass(frozen=True, eq=False)
class FrocCurve:
    """Sensitivity over false positives per image, with one entry per detection by descending score.

    Entry i counts all detections with a score of at least ``thresholds[i]``, so detections with the
    same score have the same values: ties are one step of the curve.
    """

    thresholds: np.ndarray  # N, descending
    sensitivity: np.ndarray  # N, fraction of the lesions in 0..1; NaN without lesions
    fps_per_image: np.ndarray  # N
    num_lesions: int
    num_images: int

    @classmethod
    def from_matches(
        cls,
        matches: Matches,
        lesions: np.ndarray | None = None,
        images: np.ndarray | None = None,
    ) -> "FrocCurve":
        """Compute the curve of matched detections.

        Args:
            matches: see :func:`~lesion_d2.evaluation.match_images`.
            lesions: (M,) bool, the lesions that count (all by default). A detection that reaches
                only other lesions is not a false positive.
            images: (I,) bool, the images that count, with their detections and lesions.

        Raises:
            ValueError: no image counts.
        """
        images = np.ones(matches.num_images, dtype=bool) if images is None else images
        if not images.any():
            raise ValueError("images: found none that counts, expected at least one")
        lesions = np.ones(len(matches.found_scores), dtype=bool) if lesions is None else lesions
        found_scores = matches.found_scores[lesions & images[matches.lesion_images]]
        shown = images[matches.images]
        thresholds = np.sort(matches.scores[shown])[::-1]
        false_positives = matches.scores[shown & matches.false_positives]
        return cls(
            thresholds=thresholds,
            sensitivity=_count_at_least(found_scores, thresholds) / (len(found_scores) or np.nan),
            fps_per_image=_count_at_least(false_positives, thresholds) / images.sum(),
            num_lesions=len(found_scores),
            num_images=int(images.sum()),
        )

    def at(self, fps_per_image: Sequence[float]) -> np.ndarray:
        """Sensitivity at given false positives per image, as in the DeepLesion papers.

        Interpolates linearly between the curve's points, with the highest sensitivity of points
        that share a rate. 0 before the first point, the last value beyond the end, NaN without
        lesions.

        Returns:
            An array as long as ``fps_per_image``, in 0..1.
        """
        rates = np.asarray(fps_per_image, dtype=np.float64)
        if self.num_lesions == 0:
            return np.full(rates.shape, np.nan)
        if len(self.thresholds) == 0:
            return np.zeros(rates.shape)
        last = self.last_of_rates()
        return np.interp(rates, self.fps_per_image[last], self.sensitivity[last], left=0.0)

    def thresholds_at(self, fps_per_image: Sequence[float]) -> list[float | None]:
        """Score thresholds that give at most these false positives per image.

        For each rate this is the score of the curve's last point within it, which has the highest
        sensitivity. It is not interpolated, so that the detections from this score on are a point
        of the curve.

        Returns:
            A threshold for each rate; None if the curve does not reach it (its first point is above
            the rate, or its last point below).
        """
        if len(self.thresholds) == 0:
            return [None] * len(fps_per_image)
        within = np.searchsorted(self.fps_per_image, fps_per_image, side="right")
        is_reached = np.asarray(fps_per_image) <= self.fps_per_image[-1]
        return [
            float(self.thresholds[count - 1]) if count and reached else None
            for count, reached in zip(within.tolist(), is_reached.tolist(), strict=True)
        ]

    def last_of_rates(self) -> np.ndarray:
        """(K,) entry with the highest sensitivity at each of the K distinct rates, ascending."""
        last = np.append(self.fps_per_image[1:] != self.fps_per_image[:-1], True)
        return np.flatnonzero(last[: len(self.fps_per_image)])


def froc_curve(
    pred_boxes: Sequence[np.ndarray],
    pred_scores: Sequence[np.ndarray],
    gt_boxes: Sequence[np.ndarray],
    **options: Unpack[MatchOptions],
) -> FrocCurve:
    """FROC curve of detections, as in the DeepLesion papers.

    Detections of all images are processed by descending score. A detection finds every lesion of
    its image that it overlaps by at least the threshold (maybe several); one that reaches none is a
    false positive. A detection that reaches only lesions already found is neither, and so is one
    that reaches none but is excused, because at least half of it lies in a region to ignore.

    Args:
        pred_boxes: one array per image (or volume): (N, 4) X1Y1X2Y2 in pixels, or (N, 6)
            X1Y1Z1X2Y2Z2 in pixels and slices.
        pred_scores: one (N,) array per image.
        gt_boxes: one (M, 4) or (M, 6) array per image; images without lesions count for the rate.
        options: keyword arguments of :func:`~lesion_d2.evaluation.match_images`: ``iou_threshold``
            (0.5), ``overlap`` ("iou"), ``inclusive`` (False), ``tracklets`` and ``excused`` (none).

    Raises:
        ValueError: see :func:`~lesion_d2.evaluation.match_images`.

    Example::

        curve = froc_curve([boxes], [scores], [gt_boxes])
        sensitivities = curve.at([0.5, 1, 2, 4, 8, 16])
    """
    matches = match_images(pred_boxes, pred_scores, gt_boxes, **options)
    return FrocCurve.from_matches(matches)


def _count_at_least(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Number of scores that are at least each of the descending thresholds."""
    return np.searchsorted(np.sort(-scores), -thresholds, side="right")
