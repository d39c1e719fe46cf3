"""Geometry of pseudo-masks: the four quarters spanned by the ends of two diameters."""

from collections.abc import Sequence

import numpy as np


def half_axes(recist: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Center (2,), and the end points relative to it (4, 2), sorted by angle."""
    ends = check_numbers("RECIST end points", recist, 8).reshape(4, 2)
    long, short = ends[1] - ends[0], ends[3] - ends[2]
    det = cross(long, short)
    if abs(det) > 1e-9 * np.hypot(*long) * np.hypot(*short):
        gap = ends[2] - ends[0]
        along_long, along_short = cross(gap, short) / det, cross(gap, long) / det
        if 0 <= along_long <= 1 and 0 <= along_short <= 1:
            center = ends[0] + along_long * long
            return center, ends[[0, 2, 1, 3]] - center
    center = ends.mean(axis=0)
    axes = ends - center
    return center, axes[np.argsort(np.arctan2(axes[:, 1], axes[:, 0]), kind="stable")]


def quarter_coordinates(
    center: np.ndarray, axes: np.ndarray, region: tuple[int, int, int, int]
) -> np.ndarray:
    """Coordinates (s, t) >= 0 of every pixel, center + s a + t b, in its quarter.

    s + t <= 1 is the quadrilateral of the end points, s^2 + t^2 <= 1 is the quarter ellipses.

    Args:
        center, axes: of :func:`half_axes`.
        region: x0, y0, x1, y1, pixels; x1 and y1 excluded.

    Returns:
        (2, y1 - y0, x1 - x0); infinite in quarters without area.
    """
    x0, y0, x1, y1 = region
    y, x = np.mgrid[y0:y1, x0:x1]
    offset = np.stack([x, y], axis=-1) - center
    coordinates = np.full((2, y1 - y0, x1 - x0), np.inf)
    for a, b in zip(axes, np.roll(axes, -1, axis=0), strict=True):
        det = cross(a, b)
        if abs(det) < 1e-9:
            continue
        pair = np.stack([cross(offset, b), cross(a, offset)]) / det
        inside = (pair >= -1e-9).all(axis=0)
        coordinates[:, inside] = np.maximum(pair[:, inside], 0)
    return coordinates


def check_numbers(name: str, values: Sequence[float], count: int) -> np.ndarray:
    """Convert ``count`` finite numbers to float64.

    Raises:
        ValueError: the values are not ``count`` finite numbers; the message begins with ``name``.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{name}: found {values}, expected {count} finite numbers")
    return numbers


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cross products of vectors (..., 2) in the plane, (...)."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def paste(crop: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Paste ``crop`` (h, w) into an (H, W) mask at ``corner`` (x, y), clipped at the border."""
    mask = np.zeros(size, dtype=bool)
    (x0, y0), (height, width) = corner, crop.shape
    rows, columns = slice(max(y0, 0), y0 + height), slice(max(x0, 0), x0 + width)
    if rows.stop > 0 and columns.stop > 0:
        target = mask[rows, columns]
        top, left = max(-y0, 0), max(-x0, 0)
        target[:] = crop[top : top + target.shape[0], left : left + target.shape[1]]
    return mask
