"""Computes a lesion's mask from an annotation, by the method of the config."""

from collections.abc import Mapping, Sequence

import numpy as np

from ...structures.boxes import xyxy_box
from .ellipse import ellipse_mask
from .grabcut import MARGIN, PseudoMask, grabcut

METHODS = ("ellipse", "grabcut")


def pseudo_mask(
    method: str,
    image: np.ndarray | None,
    recist: Sequence[float],
    box: Sequence[float],
    size: tuple[int, int] | None = None,
) -> PseudoMask:
    """Compute a lesion's mask, and whether GrabCut fell back to the ellipse.

    Args:
        method: "ellipse" (:func:`ellipse_mask`) or "grabcut" (:func:`grabcut_mask`).
        image: (H, W) uint8; "ellipse" uses only its size and accepts None if ``size`` is given.
        recist, box: see :func:`grabcut_mask`; "ellipse" does not use the box.
        size: height and width, if there is no image.

    Raises:
        ValueError: the method is unknown; or see :func:`grabcut_mask`.
    """
    if method not in METHODS:
        raise ValueError(f"found mask method {method!r}, expected one of {list(METHODS)}")
    if method == "grabcut":
        return grabcut(image, recist, box, MARGIN)
    height, width = size if image is None else image.shape
    return PseudoMask(ellipse_mask(recist, height, width), False)


def lesion_ends(annotation: Mapping) -> tuple[float, ...]:
    """Return the end points of a lesion's diameters, or of the ellipse inscribed in its box.

    Args:
        annotation: with ``recist``, or with only ``bbox`` and ``bbox_mode``.

    Returns:
        x11, y11, x12, y12 (long diameter; for a box, the one along x), x21, y21, x22, y22, pixels.
    """
    if "recist" in annotation:
        return tuple(annotation["recist"])
    x1, y1, x2, y2 = xyxy_box(annotation)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x1, y, x2, y, x, y1, x, y2
