"""Outlines of masks as polygons."""

import contourpy
import cv2
import numpy as np

from .boxes import mask_extent

# A DICOM polygon holds 65,534 bytes of 4-byte numbers: 5,461 points in mm.
_MAX_POINTS = 5000


def mask_outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of all components of a mask, without holes.

    They run halfway between the centers of inside and outside pixels, so a pixel belongs to the
    mask if its center is in a polygon (except in holes). An outline of more than 5,000 points is
    simplified.

    Args:
        mask: H x W bool.

    Returns:
        (N, 2) x, y each; integers are pixel centers; the last point equals the first.
    """
    extent = mask_extent(mask)
    if extent is None:
        return []
    rows, columns = extent
    generator = contourpy.contour_generator(z=np.pad(mask[extent], 1).astype(float))
    corner = np.array([columns.start - 1, rows.start - 1])
    return [_simplified(line) + corner for line in generator.lines(0.5) if _signed_area(line) > 0]


def box_outline(box: tuple[float, float, float, float]) -> np.ndarray:
    """The sides of a box X1Y1X2Y2 as a closed polygon, (5, 2) x, y."""
    x1, y1, x2, y2 = box
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]])


def _signed_area(line: np.ndarray) -> float:
    """Signed area of a closed polygon; holes have the opposite sign."""
    x, y = line.T
    return 0.5 * float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))


def _simplified(line: np.ndarray) -> np.ndarray:
    """Drop points on straight segments, and simplify to at most 5,000 points."""
    steps = np.diff(line, axis=0)
    before = np.roll(steps, 1, axis=0)
    turns = np.abs(steps[:, 0] * before[:, 1] - steps[:, 1] * before[:, 0]) > 1e-9
    points, tolerance = line[:-1][turns], 0.5
    while len(points) > _MAX_POINTS:
        points = cv2.approxPolyDP(points.astype(np.float32), tolerance, True)[:, 0].astype(float)
        tolerance *= 2
    return np.concatenate([points, points[:1]])
