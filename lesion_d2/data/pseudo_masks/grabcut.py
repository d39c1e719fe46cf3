"""Lesion masks from a slice and RECIST diameters: GrabCut (Zlocha et al., section 2.2)."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ...structures.recist import recist_lengths
from ..slices.ct import hu_to_pixels
from .ellipse import ellipse_mask
from .quarters import check_numbers, half_axes, paste, quarter_coordinates

# GrabCut's settings, measured on phantoms: a larger margin costs time and adds organs that do not
# touch the lesion; masks do not change after three iterations.
MARGIN = 10
_ITERATIONS = 3
# Tolerance in pixels of each end of a diameter.
_END_POINT_ERROR = 1.0


class PseudoMask(NamedTuple):
    """A lesion's mask, (H, W) bool, and whether it is the ellipse because GrabCut collapsed."""

    mask: np.ndarray
    fell_back: bool


def grabcut_mask(
    image: np.ndarray, recist: Sequence[float], box: Sequence[float], *, margin: int = MARGIN
) -> np.ndarray:
    """Segment a lesion by GrabCut (Zlocha et al., section 2.2); its ellipse if that collapses.

    The quadrilateral of the four end points is foreground, all pixels outside the box are
    background, and GrabCut segments the rest, on a crop around the box. We keep the component of
    the foreground that is connected to the quadrilateral, and fill its holes. GrabCut has collapsed
    if the result is empty (no quadrilateral inside box and image, or no background in the crop) or,
    our addition to the paper, if its area exceeds the product of the two diameters (each 2 px
    longer, for the error of its ends): the short diameter is the longest chord across the long one,
    so the mask has leaked into the lesion's surroundings. :func:`pseudo_mask` also returns whether
    it collapsed.

    Args:
        image: (H, W) uint8, see :func:`grabcut_image`.
        recist: x11, y11, x12, y12 (long diameter), x21, y21, x22, y22 (short one), pixels.
        box: x1, y1, x2, y2, pixels: DeepLesion's, the end points' extent plus 5 px a side.
        margin: pixels around the box that GrabCut learns the background from. The default was
            measured on phantoms (``prepare_masks --compare``); with the slice's size, all of it is
            used.

    Returns:
        (H, W) bool. The same input gives the same mask.

    Raises:
        ValueError: image is not (H, W) uint8; recist or box are not 8 and 4 finite numbers.
    """
    return grabcut(image, recist, box, margin).mask


def grabcut_image(hu: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Convert a slice to the input of :func:`grabcut_mask`: a window, rounded to 0..255.

    We use the slice's DICOM window (``window`` in the data set's dicts), in which the radiologist
    viewed the lesion.

    Args:
        hu: (H, W), HU.
        window: (low, high) HU.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: low is not smaller than high.
    """
    return np.rint(hu_to_pixels(hu, window)).astype(np.uint8)


def grabcut(
    image: np.ndarray, recist: Sequence[float], box: Sequence[float], margin: int
) -> PseudoMask:
    """Like :func:`grabcut_mask`; also returns whether GrabCut collapsed."""
    if image.dtype != np.uint8 or image.ndim != 2:
        raise ValueError(f"found a {image.dtype} image of {image.shape}, expected (H, W) uint8")
    box = check_numbers("box", box, 4)
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
    return PseudoMask(paste(found, tuple(low), (height, width)), False)


def _largest_area(recist: Sequence[float]) -> float:
    """Upper limit of the area of a lesion with these diameters, in square pixels.

    The short diameter is the longest chord across the long one, so the area is at most their
    product. Each diameter may be too short by the error of its two end points.
    """
    return float(np.prod(recist_lengths(recist) + 2 * _END_POINT_ERROR))


def _trimap(
    recist: Sequence[float], box: np.ndarray, region: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Foreground (the quadrilateral) and unknown pixels of a region, (h, w) bool each."""
    center, axes = half_axes(recist)
    quadrilateral = quarter_coordinates(center, axes, region).sum(axis=0) <= 1 + 1e-9
    x0, y0, x1, y1 = region
    y, x = np.ogrid[y0:y1, x0:x1]
    quadrilateral |= (x == round(center[0])) & (y == round(center[1]))  # at least one pixel
    in_box = (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])
    return quadrilateral & in_box, in_box & ~quadrilateral


def _cut(crop: np.ndarray, foreground: np.ndarray, undecided: np.ndarray) -> np.ndarray:
    """GrabCut's foreground connected to the quadrilateral, (h, w) bool, with holes filled.

    All False if there is no foreground or no background to learn from.
    """
    if not foreground.any() or (foreground | undecided).all():
        return np.zeros(crop.shape, dtype=bool)
    trimap = np.full(crop.shape, cv2.GC_BGD, np.uint8)
    trimap[undecided] = cv2.GC_PR_FGD
    trimap[foreground] = cv2.GC_FGD
    cv2.setRNGSeed(0)  # GrabCut starts from random clusters
    image = np.repeat(crop[:, :, None], 3, axis=2)
    cv2.grabCut(image, trimap, None, None, None, _ITERATIONS, cv2.GC_INIT_WITH_MASK)
    labels = label_components((trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD))
    return fill_holes(np.isin(labels, np.unique(labels[foreground])))


def label_components(mask: np.ndarray) -> np.ndarray:
    """Label the 4-connected components of a mask (H, W) bool from 1; 0 outside the mask."""
    return cv2.connectedComponents(mask.view(np.uint8), connectivity=4)[1]


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill the holes of a mask (H, W) bool: background not 4-connected to the border."""
    around = label_components(np.pad(~mask, 1, constant_values=True))
    return (around != around[0, 0])[1:-1, 1:-1]
