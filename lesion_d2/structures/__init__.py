from .boxes3d import Boxes3D
from .image_list import ImageList3D
from .overlaps import giou_loss, pairwise_giou, pairwise_intersection, pairwise_iou

__all__ = [
    "Boxes3D",
    "ImageList3D",
    "giou_loss",
    "pairwise_giou",
    "pairwise_intersection",
    "pairwise_iou",
]
