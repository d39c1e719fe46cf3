from detectron2.structures import Boxes
from torch import Tensor

from ..layers.box_overlaps import box_giou, box_intersection, box_iou


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """What every two boxes share, in pixels or voxels.

    Args:
        boxes1: n.
        boxes2: m of the same kind, on the same device.

    Returns:
        (n, m); in 2-D, equal to Detectron2's to the bit.
    """
    return box_intersection(boxes1.tensor, boxes2.tensor)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Intersection over union of every two boxes; 0 for boxes without area.

    Args:
        boxes1: n.
        boxes2: m of the same kind, on the same device.

    Returns:
        (n, m) in 0..1; in 2-D, equal to Detectron2's to the bit.
    """
    return box_iou(boxes1.tensor, boxes2.tensor)


def pairwise_giou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Generalized IoU of every two boxes (Rezatofighi et al., 2019, Algorithm 1).

    Args:
        boxes1: n.
        boxes2: m of the same kind, on the same device.

    Returns:
        (n, m) in -1..1: the IoU less the share of the smallest box around both that neither fills.
    """
    return box_giou(boxes1.tensor, boxes2.tensor)
