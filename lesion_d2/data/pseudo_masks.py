"""Lesion masks from RECIST diameters: ULDor's quarter ellipses, and GrabCut.

Pixel (row i, column j) is the unit square around the point x = j, y = i: an end point at (12, 7) is
the center of the pixel in column 12, row 7, both counted from 0. DeepLesion's own coordinates count
from 1; its reader takes that off (:data:`lesion_d2.data.deeplesion_csv.FIRST_PIXEL`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ..boxes import xyxy_box
from .ct import hu_to_pixels

METHODS = ("ellipse", "grabcut")

# GrabCut, measured on the phantoms: background beyond this many pixels around the box costs time
# and adds organs that do not touch the lesion; the masks no longer change after three iterations.
_MARGIN = 10
_ITERATIONS = 3
# Pixels by which each end of a diameter may miss the lesion's outline.
_END_POINT_ERROR = 1.0


class PseudoMask(NamedTuple):
    """A lesion's mask, (H, W) bool, and whether GrabCut collapsed and the ellipse stands in."""

    mask: np.ndarray
    fell_back: bool


def ellipse_outline(recist: Sequence[float], points_per_quarter: int = 16) -> np.ndarray:
    """The outline of ULDor's four quarter ellipses (Tang et al., section 2.1).

    From the center c, two neighboring half-axes a and b span the quarter c + a cos t + b sin t,
    t in [0, pi/2]: the affine image of a quarter circle, which does not ask for perpendicular
    diameters.

    - Where the diameters cross, c is the crossing point.
    - Where they do not (one ends short of the other, they are parallel, or one has no length),
      the paper says nothing. We take the mean of the four end points as c, and sort the end points
      by their angle around it: all four stay on the outline, as ends of diameters should, and the
      outline does not cross itself.

    Either way the area is pi/4 times the sum of |a x b| over the quarters, which is pi/2 times
    the area of the quadrilateral of the end points.

    Args:
        recist: x11, y11, x12, y12 (long diameter), x21, y21, x22, y22 (short one), pixels.
        points_per_quarter: n, points on each quarter.

    Returns:
        (4 n, 2) float64 points x, y in order around the lesion; the end points are among them.

    Raises:
        ValueError: recist is not 8 finite numbers.
    """
    center, axes = _half_axes(recist)
    angle = np.arange(points_per_quarter)[:, None] * (np.pi / 2 / points_per_quarter)
    quarters = [
        center + a * np.cos(angle) + b * np.sin(angle)
        for a, b in zip(axes, np.roll(axes, -1, axis=0), strict=True)
    ]
    return np.concatenate(quarters)


def ellipse_mask(recist: Sequence[float], height: int, width: int) -> np.ndarray:
    """The pixels inside :func:`ellipse_outline` (Tang et al., section 2.1).

    Counting the pixel centers inside the outline is off by several pixels for small lesions. So
    the pixels are ranked by how deep they lie (0 at the center, 1 on the outline), and as many are
    taken as the outline's area says: the area is right to half a pixel. Then what lies outside the
    image is cut off. A lesion on average thinner than a pixel is the line of its long diameter.

    Args:
        recist: x11, y11, x12, y12 (long diameter), x21, y21, x22, y22 (short one), pixels.
        height, width: the image's size, pixels.

    Returns:
        (height, width) bool; never empty for a lesion inside the image.

    Raises:
        ValueError: recist is not 8 finite numbers, or end points are farther apart in x or y than
            the image's longer side.
    """
    center, axes = _half_axes(recist)
    _check_extent(recist, height, width)
    outline = ellipse_outline(recist)
    x0, y0 = np.floor(outline.min(axis=0)).astype(int) - 1
    x1, y1 = np.ceil(outline.max(axis=0)).astype(int) + 2
    depth = np.hypot(*_quarter_coordinates(center, axes, (x0, y0, x1, y1)))

    area = np.pi / 4 * np.abs(_cross(axes, np.roll(axes, -1, axis=0))).sum()
    crop = np.zeros(depth.shape, np.uint8)
    crop.flat[np.argsort(depth, axis=None, kind="stable")[: round(area)]] = 1
    ends = np.reshape(recist, (4, 2)) - (x0, y0)
    if area < np.pi / 4 * np.hypot(*(ends[1] - ends[0])):
        ends = np.rint(ends).astype(int).tolist()
        cv2.line(crop, ends[0], ends[1], 1)
    crop[tuple(np.rint(center - (x0, y0)).astype(int)[::-1])] = 1
    return _paste(crop.astype(bool), (x0, y0), (height, width))


def grabcut_mask(
    image: np.ndarray, recist: Sequence[float], box: Sequence[float], *, margin: int = _MARGIN
) -> np.ndarray:
    """A lesion's mask by GrabCut (Zlocha et al., section 2.2), or its ellipse where that collapses.

    The quadrilateral of the four end points is foreground, outside the box is background, and
    GrabCut decides on the rest, on a crop around the box. Of its foreground we keep what hangs
    together with the quadrilateral, and fill the holes. It has collapsed where that is empty (no
    quadrilateral inside box and image, no background in the crop), or, which the paper does not
    have, where it is larger than the product of the two diameters (each 2 px longer, for the
    error of its ends): the short one is the longest chord across the long one, so GrabCut has run
    into what lies around the lesion. :func:`pseudo_mask` also tells whether it collapsed.

    Args:
        image: (H, W) uint8, see :func:`grabcut_image`.
        recist: x11, y11, x12, y12 (long diameter), x21, y21, x22, y22 (short one), pixels.
        box: x1, y1, x2, y2, pixels: DeepLesion's, the end points' extent plus 5 px a side.
        margin: pixels around the box that GrabCut learns the background from. The default was
            measured on phantoms (``prepare_masks --compare``); the slice's size takes it all.

    Returns:
        (H, W) bool. The same input gives the same mask.

    Raises:
        ValueError: image is not (H, W) uint8; recist or box are not 8 and 4 finite numbers.
    """
    return _grabcut(image, recist, box, margin).mask


def pseudo_mask(
    method: str,
    image: np.ndarray | None,
    recist: Sequence[float],
    box: Sequence[float],
    size: tuple[int, int] | None = None,
) -> PseudoMask:
    """A lesion's mask by either method, and whether GrabCut had to fall back to the ellipse.

    Args:
        method: "ellipse" (:func:`ellipse_mask`) or "grabcut" (:func:`grabcut_mask`).
        image: (H, W) uint8; "ellipse" needs only its size and takes None where ``size`` is given.
        recist, box: see :func:`grabcut_mask`; "ellipse" does not use the box.
        size: height and width, where there is no image.

    Raises:
        ValueError: unknown method, or what :func:`grabcut_mask` raises.
    """
    if method not in METHODS:
        raise ValueError(f"found mask method {method!r}, expected one of {list(METHODS)}")
    if method == "grabcut":
        return _grabcut(image, recist, box, _MARGIN)
    height, width = size if image is None else image.shape
    return PseudoMask(ellipse_mask(recist, height, width), False)


def grabcut_image(hu: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """A slice as :func:`grabcut_mask` wants it: rounded to 0..255 in a window.

    We take the DICOM window of the slice (``window`` in the data set's dicts): it is the one that
    the radiologist saw the lesion in.

    Args:
        hu: (H, W), HU.
        window: (low, high) HU.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: low is not smaller than high.
    """
    return np.rint(hu_to_pixels(hu, window)).astype(np.uint8)


def lesion_ends(annotation: Mapping) -> tuple[float, ...]:
    """The end points of a lesion's diameters, or those of the ellipse inscribed in its box.

    Args:
        annotation: with ``recist``; or with ``bbox`` and ``bbox_mode`` alone.

    Returns:
        x11, y11, x12, y12 (long diameter; of a box the one along x), x21, y21, x22, y22, pixels.
    """
    if "recist" in annotation:
        return tuple(annotation["recist"])
    x1, y1, x2, y2 = xyxy_box(annotation)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x1, y, x2, y, x, y1, x, y2


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _check_numbers(name: str, values: Sequence[float], count: int) -> np.ndarray:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{name}: found {values}, expected {count} finite numbers")
    return numbers


def _check_extent(recist: Sequence[float], height: int, width: int) -> None:
    """The mask is made as large as the lesion: a wrong end point would take any memory."""
    side = max(height, width)
    if np.ptp(np.reshape(recist, (4, 2)), axis=0).max() > side:
        raise ValueError(
            f"RECIST end points: found {list(recist)}, expected them no farther apart in x or y "
            f"than the {side} pixels of the image's longer side"
        )


def _half_axes(recist: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Center (2,) and the end points seen from it (4, 2), in order around it."""
    ends = _check_numbers("RECIST end points", recist, 8).reshape(4, 2)
    long, short = ends[1] - ends[0], ends[3] - ends[2]
    det = _cross(long, short)
    if abs(det) > 1e-9 * np.hypot(*long) * np.hypot(*short):
        gap = ends[2] - ends[0]
        along_long, along_short = _cross(gap, short) / det, _cross(gap, long) / det
        if 0 <= along_long <= 1 and 0 <= along_short <= 1:
            center = ends[0] + along_long * long
            return center, ends[[0, 2, 1, 3]] - center
    center = ends.mean(axis=0)
    axes = ends - center
    return center, axes[np.argsort(np.arctan2(axes[:, 1], axes[:, 0]), kind="stable")]


def _quarter_coordinates(
    center: np.ndarray, axes: np.ndarray, region: tuple[int, int, int, int]
) -> np.ndarray:
    """Every pixel as center + s a + t b in its own quarter: (s, t), both >= 0.

    s + t <= 1 is the quadrilateral of the end points, s^2 + t^2 <= 1 is the quarter ellipses.

    Args:
        center, axes: of :func:`_half_axes`.
        region: x0, y0, x1, y1, pixels; x1 and y1 excluded.

    Returns:
        (2, y1 - y0, x1 - x0); infinite where no quarter with an area reaches.
    """
    x0, y0, x1, y1 = region
    y, x = np.mgrid[y0:y1, x0:x1]
    offset = np.stack([x, y], axis=-1) - center
    coordinates = np.full((2, y1 - y0, x1 - x0), np.inf)
    for a, b in zip(axes, np.roll(axes, -1, axis=0), strict=True):
        det = _cross(a, b)
        if abs(det) < 1e-9:
            continue
        pair = np.stack([_cross(offset, b), _cross(a, offset)]) / det
        inside = (pair >= -1e-9).all(axis=0)
        coordinates[:, inside] = np.maximum(pair[:, inside], 0)
    return coordinates


def _paste(crop: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """``crop`` (h, w) in a (H, W) mask, its first pixel at ``corner`` (x, y); cut at the border."""
    mask = np.zeros(size, dtype=bool)
    (x0, y0), (height, width) = corner, crop.shape
    rows, columns = slice(max(y0, 0), y0 + height), slice(max(x0, 0), x0 + width)
    if rows.stop > 0 and columns.stop > 0:
        target = mask[rows, columns]
        top, left = max(-y0, 0), max(-x0, 0)
        target[:] = crop[top : top + target.shape[0], left : left + target.shape[1]]
    return mask


def _grabcut(
    image: np.ndarray, recist: Sequence[float], box: Sequence[float], margin: int
) -> PseudoMask:
    if image.dtype != np.uint8 or image.ndim != 2:
        raise ValueError(f"found a {image.dtype} image of {image.shape}, expected (H, W) uint8")
    box = _check_numbers("box", box, 4)
    height, width = image.shape
    low = np.maximum(np.floor(box[:2]).astype(int) - margin, 0)
    high = np.minimum(np.ceil(box[2:]).astype(int) + margin + 1, (width, height))
    ellipse = ellipse_mask(recist, height, width)
    crop = image[low[1] : high[1], low[0] : high[0]]
    if crop.size == 0:
        return PseudoMask(ellipse, True)
    quadrilateral, undecided = _trimap(recist, box, (*low, *high))
    found = _cut(crop, quadrilateral, undecided)
    if not found.any() or found.sum() > _largest_area(recist):
        return PseudoMask(ellipse, True)
    return PseudoMask(_paste(found, tuple(low), (height, width)), False)


def _largest_area(recist: Sequence[float]) -> float:
    """What a lesion with these diameters can have at most, square pixels.

    The short diameter is the longest chord across the long one, so the lesion is no larger than
    their product. Either may be too short by the error of its two end points.
    """
    ends = np.reshape(recist, (4, 2))
    lengths = np.hypot(*(ends[1::2] - ends[::2]).T)
    return float(np.prod(lengths + 2 * _END_POINT_ERROR))


def _trimap(
    recist: Sequence[float], box: np.ndarray, region: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Foreground (the quadrilateral) and undecided pixels of a region, (h, w) bool each."""
    center, axes = _half_axes(recist)
    quadrilateral = _quarter_coordinates(center, axes, region).sum(axis=0) <= 1 + 1e-9
    x0, y0, x1, y1 = region
    y, x = np.ogrid[y0:y1, x0:x1]
    quadrilateral |= (x == round(center[0])) & (y == round(center[1]))  # it may miss all centers
    in_box = (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])
    return quadrilateral & in_box, in_box & ~quadrilateral


def _cut(crop: np.ndarray, foreground: np.ndarray, undecided: np.ndarray) -> np.ndarray:
    """GrabCut's foreground, (h, w) bool: what hangs together with the quadrilateral, holes filled.

    All False where there is nothing to learn from: no foreground or no background.
    """
    if not foreground.any() or (foreground | undecided).all():
        return np.zeros(crop.shape, dtype=bool)
    trimap = np.full(crop.shape, cv2.GC_BGD, np.uint8)
    trimap[undecided] = cv2.GC_PR_FGD
    trimap[foreground] = cv2.GC_FGD
    cv2.setRNGSeed(0)  # it starts from random clusters
    image = np.repeat(crop[:, :, None], 3, axis=2)
    cv2.grabCut(image, trimap, None, None, None, _ITERATIONS, cv2.GC_INIT_WITH_MASK)
    labels = _label((trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD))
    return _fill_holes(np.isin(labels, np.unique(labels[foreground])))


def _label(mask: np.ndarray) -> np.ndarray:
    """Numbers of a mask's 4-connected components, from 1 on; 0 where the mask is not."""
    return cv2.connectedComponents(mask.view(np.uint8), connectivity=4)[1]


def _fill_holes(mask: np.ndarray) -> np.ndarray:
    """A mask with all that no way of 4-connected pixels leads out of."""
    around = _label(np.pad(~mask, 1, constant_values=True))
    return (around != around[0, 0])[1:-1, 1:-1]
