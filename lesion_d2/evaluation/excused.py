"""Detections in :mod:`~lesion_d2.structures.ignore_regions`, which are not false positives."""

from collections.abc import Mapping

import numpy as np

from ..structures.ignore_regions import INSIDE_SHARE
from .matching import paired_overlaps


def boxes_in_regions(
    boxes: np.ndarray, regions: np.ndarray, *, inclusive: bool = False
) -> np.ndarray:
    """Which detections of an image lie in a region to ignore.

    The intersection must be at least :data:`~lesion_d2.structures.ignore_regions.INSIDE_SHARE` of
    the detection's area.

    Args:
        boxes: (N, 4) X1Y1X2Y2 in pixels.
        regions: (m, 4) X1Y1X2Y2 in pixels.
        inclusive: whether boxes are whole pixels, see
            :func:`~lesion_d2.evaluation.matching.paired_overlaps`.

    Returns:
        (N,) bool.
    """
    return _best_shares(boxes, regions, inclusive) >= INSIDE_SHARE


def tracklets_in_regions(
    slice_boxes: np.ndarray,
    tracklets: np.ndarray,
    num_detections: int,
    regions: Mapping[int, np.ndarray],
    *,
    inclusive: bool = False,
) -> np.ndarray:
    """Which detections of a volume lie in regions to ignore.

    A detection has one box on each of its slices. At least
    :data:`~lesion_d2.structures.ignore_regions.INSIDE_SHARE` of their total area must be in
    regions, counting on each slice the region with the largest intersection.

    Args:
        slice_boxes: (K, 6) X1Y1Z1X2Y2Z2 with z1 == z2.
        tracklets: (K,) index of each box's detection, 0 to N - 1.
        num_detections: N.
        regions: slice number -> (m, 4) X1Y1X2Y2.
        inclusive: as for :func:`boxes_in_regions`.

    Returns:
        (N,) bool.
    """
    areas, inside = np.zeros(num_detections), np.zeros(num_detections)
    planes = slice_boxes[:, [0, 1, 3, 4]]
    sides = planes[:, 2:] - planes[:, :2] + float(inclusive)
    size = sides.prod(axis=1)
    np.add.at(areas, tracklets, size)
    for number, on_slice in regions.items():
        here = np.flatnonzero(slice_boxes[:, 2] == number)
        shares = _best_shares(planes[here], on_slice, inclusive)
        np.add.at(inside, tracklets[here], shares * size[here])
    return (inside >= INSIDE_SHARE * areas) & (areas > 0)


def _best_shares(boxes: np.ndarray, regions: np.ndarray, inclusive: bool) -> np.ndarray:
    """(N,) the largest fraction of each box that lies in one region; 0 without regions."""
    if len(boxes) == 0 or len(regions) == 0:
        return np.zeros(len(boxes))
    pairs = np.repeat(boxes, len(regions), axis=0), np.tile(regions, (len(boxes), 1))
    shares = paired_overlaps(*pairs, "iobb", inclusive)
    return shares.reshape(len(boxes), len(regions)).max(axis=1)
