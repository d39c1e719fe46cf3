"""Free-response ROC: sensitivity over false positives per image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np

from .matching import Matches, MatchOptions, match_images


@dataclass(frozen=True, eq=False)
class FrocCurve:
    """Sensitivity over false positives per image, one entry a detection by falling score.

    Entry i is what all detections with a score of at least ``thresholds[i]`` reach together, so
    detections with the same score carry the same values: ties are one step of the curve.
    """

    thresholds: np.ndarray  # N, falling
    sensitivity: np.ndarray  # N, share of the lesions in 0..1; NaN where there are no lesions
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
        """The curve of matched detections.

        Args:
            matches: of :func:`~lesion_d2.evaluation.match_images`.
            lesions: (M,) bool, the lesions that count (all by default). A detection that reaches
                only other lesions is still no false positive.
            images: (I,) bool, the images that count, with their detections and lesions.

        Raises:
            ValueError: no image counts, so that there is no rate per image.
        """
        images = np.ones(matches.num_images, dtype=bool) if images is None else images
        if not images.any():
            raise ValueError("no image counts, expected at least one")
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
        """Sensitivity at these false positives per image (design: as the DeepLesion papers).

        Linear between the curve's points; where several share a rate the highest counts. 0 before
        the first point, the last value beyond the end, NaN where there are no lesions.

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
        """The score from which on detections have at most these false positives per image.

        Of the curve's points within a rate it is the last one, which has the highest sensitivity:
        nothing is interpolated, so that detections with this score or more are what was evaluated.

        Returns:
            A threshold for every rate; None where the curve does not reach it: its first point is
            above the rate, or its last one below.
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
        """(K,) entry with the highest sensitivity at each of the K distinct rates, rising."""
        last = np.append(self.fps_per_image[1:] != self.fps_per_image[:-1], True)
        return np.flatnonzero(last[: len(self.fps_per_image)])


def froc_curve(
    pred_boxes: Sequence[np.ndarray],
    pred_scores: Sequence[np.ndarray],
    gt_boxes: Sequence[np.ndarray],
    **options: Unpack[MatchOptions],
) -> FrocCurve:
    """FROC curve of detections, as the DeepLesion papers compute it.

    Detections of all images by falling score: one that reaches the threshold on no lesion of its
    image is a false positive; every lesion it reaches counts as found, once; a detection that only
    reaches lesions already found is neither. A detection may find several lesions. One that reaches
    no lesion and is excused, because at least half of it lies in a region to ignore, is neither.

    Args:
        pred_boxes: one array an image (or volume): (N, 4) X1Y1X2Y2 in pixels, or (N, 6)
            X1Y1Z1X2Y2Z2 in pixels and slices.
        pred_scores: one (N,) array an image.
        gt_boxes: one (M, 4) or (M, 6) array an image; images without lesions count for the rate.
        options: keywords of :func:`~lesion_d2.evaluation.match_images`: ``iou_threshold`` (0.5),
            ``overlap`` ("iou"), ``inclusive`` (False), ``tracklets`` and ``excused`` (none).

    Raises:
        ValueError: see :func:`~lesion_d2.evaluation.match_images`.

    Example::

        curve = froc_curve([boxes], [scores], [gt_boxes])
        sensitivities = curve.at([0.5, 1, 2, 4, 8, 16])
    """
    matches = match_images(pred_boxes, pred_scores, gt_boxes, **options)
    return FrocCurve.from_matches(matches)


def _count_at_least(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many scores are at least each of the falling thresholds."""
    return np.searchsorted(np.sort(-scores), -thresholds, side="right")
