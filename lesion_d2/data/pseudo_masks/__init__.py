"""Lesion masks from RECIST diameters: ULDor's quarter ellipses, and GrabCut."""

from .ellipse import ellipse_mask, ellipse_outline
from .grabcut import PseudoMask, grabcut_image, grabcut_mask
from .methods import METHODS, lesion_ends, pseudo_mask

__all__ = [
    "METHODS",
    "PseudoMask",
    "ellipse_mask",
    "ellipse_outline",
    "grabcut_image",
    "grabcut_mask",
    "lesion_ends",
    "pseudo_mask",
]
