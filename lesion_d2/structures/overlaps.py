"""Overlaps of boxes in 2-D and 3-D."""

from detectron2.structures import Boxes
from torch import Tensor

from ..layers.box_overlaps import box_giou, box_intersection, box_iou


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Intersection of every pair of boxes, in pixels or voxels.

    Args:
        boxes1: n.
        boxes2: m of the same kind, on the same device.

    Returns:
        (n, m); in 2-D, bitwise equal to Detectron2's.
    """
    return box_intersection(boxes1.tensor, boxes2.tensor)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Intersection over union of every pair of boxes; 0 for boxes without area.

    Args:
        boxes1: n.
        boxes2: m of the same kind, on the same device.

    Returns:
        (n, m) in 0..1; in 2-D, bitwise equal to Detectron2's.
    """
    return box_iou(boxes1.tensor, boxes2.tensor)


def pairwise_giou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Generalized IoU of every pair of boxes (Rezatofighi et al., 2019, Algorithm 1).

    Args:
        boxes1: n.
        boxes2: m of the same kind, on the same device.

    Returns:
        (n, m) in -1..1: the IoU minus the fraction of the smallest enclosing box that neither
        covers.
    """
    return box_giou(boxes1.tensor, boxes2.tensor)
