"""A lesion's mask by the method that a config names, from an annotation."""

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
        return grabcut(image, recist, box, MARGIN)
    height, width = size if image is None else image.shape
    return PseudoMask(ellipse_mask(recist, height, width), False)


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
