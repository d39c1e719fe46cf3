"""RECIST diameters of masks: the longest diameter, and the longest one perpendicular to it."""

from collections.abc import Sequence

import numpy as np

#: Pixels between the end points of the diameters and a lesion's box, as in DeepLesion.
BOX_MARGIN = 5.0


def measure_recist(mask: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """The two RECIST diameters of a mask, as a radiologist would draw them.

    The long diameter joins the two points of the outline that are farthest apart; the short one is
    the longest segment perpendicular to it that stays inside the mask, sampled every quarter of a
    pixel's shorter side. The outline runs along pixel edges, half a pixel from pixel centers, which
    have integer coordinates.

    Args:
        mask: H x W bool, not empty.
        spacing: pixel spacing along x and y, in mm or any other unit; lengths and right angles are
            measured in this unit.

    Returns:
        x11, y11, x12, y12 (long), x21, y21, x22, y22 (short), in pixels, (8,) float64.

    Raises:
        ValueError: if the mask is empty.
    """
    points = _edge_points(mask) * spacing
    first, second, length = _farthest(points)
    along = (second - first) / length
    across = np.array([-along[1], along[0]])
    spread = points @ np.stack([along, across], axis=1)
    low, high = spread.min(axis=0), spread.max(axis=0)
    step = 0.25 * min(spacing)
    u = np.arange(low[0], high[0] + step, step)
    v = np.arange(low[1] - step, high[1] + 2 * step, step)
    grid = u[:, None, None] * along + v[None, :, None] * across
    column, row = np.moveaxis(np.floor(grid / spacing + 0.5).astype(int), -1, 0)
    known = (row >= 0) & (column >= 0) & (row < mask.shape[0]) & (column < mask.shape[1])
    inside = np.zeros(known.shape, bool)
    inside[known] = mask[row[known], column[known]]
    line, start, stop = _longest_run(inside)
    short = [u[line] * along + v[i] * across for i in (start, stop)]
    return (np.stack([first, second, *short]) / spacing).ravel()


def long_diameter(mask: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    """Length of the long diameter of :func:`measure_recist`, in the unit of ``spacing``.

    Raises:
        ValueError: if the mask is empty.
    """
    return float(_farthest(_edge_points(mask) * spacing)[2])


def recist_lengths(recist: Sequence[float], spacing: Sequence[float] = (1.0, 1.0)) -> np.ndarray:
    """Lengths of the two diameters, (2,), in the unit of ``spacing``.

    Args:
        recist: 8 numbers as of :func:`measure_recist`, in pixels.
        spacing: of pixels along x and y.
    """
    ends = np.reshape(recist, (4, 2)) * spacing
    return np.hypot(*(ends[1::2] - ends[::2]).T)


def recist_box(recist: Sequence[float], margin: float = BOX_MARGIN) -> np.ndarray:
    """The extent of the end points and a margin around it, (4,) X1Y1X2Y2 in pixels.

    Args:
        recist: 8 numbers as of :func:`measure_recist`, in pixels.
        margin: in pixels; DeepLesion's is the default.
    """
    points = np.reshape(recist, (4, 2))
    return np.concatenate([points.min(axis=0) - margin, points.max(axis=0) + margin])


def _farthest(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Two points, x and y each, that are farthest apart, and their distance."""
    if not len(points):
        raise ValueError("measure_recist: the mask is empty, expected at least one pixel")
    from scipy.spatial import ConvexHull  # slow to import, and rarely needed

    hull = points[ConvexHull(points).vertices]
    squares = ((hull[:, None] - hull[None]) ** 2).sum(axis=-1)
    first, second = hull[list(np.unravel_index(squares.argmax(), squares.shape))]
    return first, second, np.sqrt(squares.max())


def _edge_points(mask: np.ndarray) -> np.ndarray:
    """Midpoints of the pixel edges between mask and background, N x 2 (x, y)."""
    padded = np.pad(mask.astype(bool), 1)
    rows, columns = np.nonzero(padded[:, 1:] != padded[:, :-1])
    vertical = np.stack([columns - 0.5, rows - 1.0], axis=1)
    rows, columns = np.nonzero(padded[1:] != padded[:-1])
    return np.concatenate([vertical, np.stack([columns - 1.0, rows - 0.5], axis=1)])


def _longest_run(inside: np.ndarray) -> tuple[int, int, int]:
    """Row, first and last column of the longest run of True in an L x K array."""
    index = np.arange(inside.shape[1])
    last_gap = np.maximum.accumulate(np.where(inside, -1, index), axis=1)
    length = np.where(inside, index - last_gap, 0)
    line, stop = np.unravel_index(length.argmax(), length.shape)
    return int(line), int(stop - length[line, stop] + 1), int(stop)
