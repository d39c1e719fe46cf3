"""Boxes of inserted lesions, as annotated ones have them."""

import numpy as np

from ...recist import measure_recist


def margin_box(
    mask: np.ndarray, margin: float
) -> tuple[tuple[float, float, float, float], tuple[float, ...]]:
    """A box by DeepLesion's rule: the extent of the diameters' end points, and a margin.

    Args:
        mask: H x W bool, not empty.
        margin: pixels.

    Returns:
        The box XYXY, and the 8 numbers of :func:`~lesion_d2.recist.measure_recist`.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    cut = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    points = measure_recist(cut).reshape(4, 2) + np.array([left, top])
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    return (*low.tolist(), *high.tolist()), tuple(points.ravel().tolist())
