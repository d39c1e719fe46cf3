"""Boxes, masks and regions, in 2-D and 3-D, and their representation in files."""

from .bit_masks import BitMasks3D
from .boxes3d import Boxes3D
from .image_list import ImageList3D
from .overlaps import pairwise_giou, pairwise_intersection, pairwise_iou

__all__ = [
    "BitMasks3D",
    "Boxes3D",
    "ImageList3D",
    "pairwise_giou",
    "pairwise_intersection",
    "pairwise_iou",
]
