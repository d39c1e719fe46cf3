"""Operations on boxes and masks in 3-D, beside Detectron2's layers."""

from .box_overlaps import box_giou, box_intersection, box_iou, box_volumes, giou_loss, matched_iou
from .mask_ops import paste_masks_3d
from .nms import batched_nms, nms_3d
from .roi_align import roi_align_3d

__all__ = [
    "batched_nms",
    "box_giou",
    "box_intersection",
    "box_iou",
    "box_volumes",
    "giou_loss",
    "matched_iou",
    "nms_3d",
    "paste_masks_3d",
    "roi_align_3d",
]
