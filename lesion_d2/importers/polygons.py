"""Polygons as masks."""

import numpy as np
from matplotlib.path import Path


def polygon_mask(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centers are inside of a polygon, by the even-odd rule.

    Of centers on its sides some are inside and some are not.

    Args:
        points: (N, 2) x, y; whole numbers are the pixels' centers. The last point is joined to the
            first.
        shape: H, W.

    Returns:
        H x W bool.
    """
    mask = np.zeros(shape, bool)
    points = np.asarray(points, float)
    low = np.maximum(np.ceil(points.min(axis=0)), 0).astype(int)
    high = np.minimum(np.floor(points.max(axis=0)) + 1, (shape[1], shape[0])).astype(int)
    if len(points) < 3 or (high <= low).any():
        return mask
    rows, columns = np.mgrid[low[1] : high[1], low[0] : high[0]]
    centers = np.column_stack([columns.ravel(), rows.ravel()])
    closed = Path(np.concatenate([points, points[:1]]), closed=True)
    mask[low[1] : high[1], low[0] : high[0]] = closed.contains_points(centers).reshape(rows.shape)
    return mask
