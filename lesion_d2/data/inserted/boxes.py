"""Boxes of inserted lesions by DeepLesion's rule, and pixels of annotated boxes."""

from collections.abc import Sequence

import numpy as np

from ...structures.boxes import mask_extent
from ...structures.recist import measure_recist, recist_box


def margin_box(
    mask: np.ndarray, margin: float
) -> tuple[tuple[float, float, float, float], tuple[float, ...]]:
    """Compute a box by DeepLesion's rule: the extent of the diameters' end points, plus a margin.

    Args:
        mask: H x W bool, not empty.
        margin: pixels; with 0, the box is the extent of the mask's pixels, outer edges included.

    Returns:
        The box XYXY, and the 8 numbers of :func:`~lesion_d2.structures.recist.measure_recist`.
    """
    rows, columns = mask_extent(mask)
    corner = [columns.start, rows.start]
    recist = (measure_recist(mask[rows, columns]).reshape(4, 2) + corner).ravel()
    if margin:
        box = recist_box(recist, margin)
    else:
        box = np.array([*corner, columns.stop, rows.stop]) - 0.5
    return tuple(box.tolist()), tuple(recist.tolist())


def box_pixels(box: Sequence[float], size: tuple[int, int], margin: float) -> np.ndarray:
    """Return the pixels inside a box XYXY enlarged by a margin in pixels, (H, W) bool."""
    y, x = np.ogrid[: size[0], : size[1]]
    x1, y1, x2, y2 = box
    return (x > x1 - margin) & (x < x2 + margin) & (y > y1 - margin) & (y < y2 + margin)
