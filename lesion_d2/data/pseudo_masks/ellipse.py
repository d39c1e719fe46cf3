"""Lesion masks from RECIST diameters alone: ULDor's quarter ellipses (Tang et al., section 2.1).

Pixel (row i, column j) is the unit square around the point x = j, y = i: an end point at (12, 7) is
the center of the pixel in column 12, row 7, both counted from 0. DeepLesion's coordinates count
from 1; its reader subtracts 1 (:data:`lesion_d2.data.deeplesion.csv_rows.FIRST_PIXEL`).
"""

from collections.abc import Sequence

import cv2
import numpy as np

from .quarters import cross, half_axes, paste, quarter_coordinates


def ellipse_outline(recist: Sequence[float], points_per_quarter: int = 16) -> np.ndarray:
    """The outline of ULDor's four quarter ellipses (Tang et al., section 2.1).

    From the center c, two neighboring half-axes a and b span the quarter c + a cos t + b sin t,
    t in [0, pi/2]: the affine image of a quarter circle, which does not require perpendicular
    diameters.

    - Where the diameters cross, c is the crossing point.
    - Where they do not (one ends short of the other, they are parallel, or one has no length),
      the paper does not define c. We take the mean of the four end points, and sort the end points
      by their angle around it: all four stay on the outline, as ends of diameters should, and the
      outline does not intersect itself.

    In both cases the area is pi/4 times the sum of |a x b| over the quarters, which is pi/2 times
    the area of the quadrilateral of the end points.

    Args:
        recist: x11, y11, x12, y12 (long diameter), x21, y21, x22, y22 (short one), pixels.
        points_per_quarter: n, points on each quarter.

    Returns:
        (4 n, 2) float64 points x, y in order around the lesion, including the end points.

    Raises:
        ValueError: recist is not 8 finite numbers.
    """
    center, axes = half_axes(recist)
    angle = np.arange(points_per_quarter)[:, None] * (np.pi / 2 / points_per_quarter)
    quarters = [
        center + a * np.cos(angle) + b * np.sin(angle)
        for a, b in zip(axes, np.roll(axes, -1, axis=0), strict=True)
    ]
    return np.concatenate(quarters)


def ellipse_mask(recist: Sequence[float], height: int, width: int) -> np.ndarray:
    """The pixels inside :func:`ellipse_outline` (Tang et al., section 2.1).

    Taking all pixels with their center inside the outline misses the area of small lesions by
    several pixels. So pixels are ranked by depth (0 at the center, 1 on the outline) and taken in
    this order up to the outline's area, which is thus exact to half a pixel. Then the mask is
    clipped to the image. The mask of a lesion that is on average thinner than a pixel is the line
    of its long diameter.

    Args:
        recist: x11, y11, x12, y12 (long diameter), x21, y21, x22, y22 (short one), pixels.
        height, width: the image's size, pixels.

    Returns:
        (height, width) bool; never empty for a lesion inside the image.

    Raises:
        ValueError: recist is not 8 finite numbers, or the distance of end points in x or y exceeds
            the image's longer side.
    """
    center, axes = half_axes(recist)
    _check_extent(recist, height, width)
    outline = ellipse_outline(recist)
    x0, y0 = np.floor(outline.min(axis=0)).astype(int) - 1
    x1, y1 = np.ceil(outline.max(axis=0)).astype(int) + 2
    depth = np.hypot(*quarter_coordinates(center, axes, (x0, y0, x1, y1)))

    area = np.pi / 4 * np.abs(cross(axes, np.roll(axes, -1, axis=0))).sum()
    crop = np.zeros(depth.shape, np.uint8)
    crop.flat[np.argsort(depth, axis=None, kind="stable")[: round(area)]] = 1
    ends = np.reshape(recist, (4, 2)) - (x0, y0)
    if area < np.pi / 4 * np.hypot(*(ends[1] - ends[0])):
        ends = np.rint(ends).astype(int).tolist()
        cv2.line(crop, ends[0], ends[1], 1)
    crop[tuple(np.rint(center - (x0, y0)).astype(int)[::-1])] = 1
    return paste(crop.astype(bool), (x0, y0), (height, width))


def _check_extent(recist: Sequence[float], height: int, width: int) -> None:
    """Refuse wrong end points: the memory for the mask grows with the lesion's size."""
    side = max(height, width)
    if np.ptp(np.reshape(recist, (4, 2)), axis=0).max() > side:
        raise ValueError(
            f"RECIST end points: found {list(recist)}, expected distances in x and y of at most "
            f"{side} pixels, the image's longer side"
        )
