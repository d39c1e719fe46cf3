from .box_overlaps import box_giou, box_intersection, box_iou, box_volumes, giou_loss
from .nms import batched_nms, nms_3d
from .roi_align import roi_align_3d

__all__ = [
    "batched_nms",
    "box_giou",
    "box_intersection",
    "box_iou",
    "box_volumes",
    "giou_loss",
    "nms_3d",
    "roi_align_3d",
]
