"""Conversion of polygons to masks."""

import numpy as np
from matplotlib.path import Path


def polygon_mask(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centers are inside of a polygon (even-odd rule).

    Centers exactly on a side may count as inside or outside.

    Args:
        points: (N, 2) x, y in pixels; integers are centers of pixels. The polygon is closed.
        shape: H, W.

    Returns:
        (H, W) bool.
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
