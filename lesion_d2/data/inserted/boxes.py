"""Boxes of inserted lesions, as annotated ones have them, and where the latter are."""

from collections.abc import Sequence

import numpy as np

from ...structures.recist import measure_recist


def margin_box(
    mask: np.ndarray, margin: float
) -> tuple[tuple[float, float, float, float], tuple[float, ...]]:
    """A box by DeepLesion's rule: the extent of the diameters' end points, and a margin.

    Args:
        mask: H x W bool, not empty.
        margin: pixels; with 0 the box is the mask's: its pixels' outer edges.

    Returns:
        The box XYXY, and the 8 numbers of :func:`~lesion_d2.structures.recist.measure_recist`.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    cut = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    points = measure_recist(cut).reshape(4, 2) + np.array([left, top])
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    if not margin:
        low, high = np.array([left, top]) - 0.5, np.array([columns[-1], rows[-1]]) + 0.5
    return (*low.tolist(), *high.tolist()), tuple(points.ravel().tolist())


def box_pixels(box: Sequence[float], size: tuple[int, int], margin: float) -> np.ndarray:
    """(H, W) bool: within a box XYXY and a margin in pixels around it."""
    y, x = np.ogrid[: size[0], : size[1]]
    x1, y1, x2, y2 = box
    return (x > x1 - margin) & (x < x2 + margin) & (y > y1 - margin) & (y < y2 + margin)
