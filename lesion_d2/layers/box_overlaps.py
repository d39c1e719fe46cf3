"""Overlaps of boxes in 2-D and 3-D; in 2-D, bitwise equal to Detectron2's.

Boxes are (..., 4) XYXY or (..., 6) XYZXYZ.
"""

import torch
from torch import Tensor

# As in fvcore's giou_loss.
_EPSILON = 1e-7


def box_volumes(boxes: Tensor) -> Tensor:
    """Areas of (..., 4) boxes, volumes of (..., 6)."""
    axes = boxes.shape[-1] // 2
    product = boxes[..., axes] - boxes[..., 0]
    for axis in range(1, axes):
        product = product * (boxes[..., axes + axis] - boxes[..., axis])
    return product


def box_intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """(n, m) intersection areas or volumes of every pair of n and m boxes."""
    return _extents_product(boxes1[:, None], boxes2[None], hull=False)


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """(n, m) intersection over union of every pair of n and m boxes; 0 for boxes without area."""
    return matched_iou(boxes1[:, None], boxes2[None])


def matched_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """(...) intersection over union of paired boxes; the other axes broadcast."""
    shared = _extents_product(boxes1, boxes2, hull=False)
    union = box_volumes(boxes1) + box_volumes(boxes2) - shared
    return torch.where(shared > 0, shared / union, shared.new_zeros(1))


def box_giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """(n, m) generalized IoU of every pair of n and m boxes (Rezatofighi et al., 2019)."""
    shared = box_intersection(boxes1, boxes2)
    union = box_volumes(boxes1)[:, None] + box_volumes(boxes2) - shared
    hull = _extents_product(boxes1[:, None], boxes2[None], hull=True)
    zero = shared.new_zeros(1)
    iou = torch.where(shared > 0, shared / union, zero)
    return iou - torch.where(hull > 0, (hull - union) / hull, zero)


def giou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none") -> Tensor:
    """1 - generalized IoU of pairs of boxes, with gradients.

    In 2-D it is fvcore's ``giou_loss``.

    Args:
        boxes1: (n, 4) XYXY or (n, 6) XYZXYZ.
        boxes2: the same shape, paired row by row.
        reduction: "none", "sum" or "mean"; the mean over no pairs is 0.

    Returns:
        (n,) in 0..2, or a scalar.

    Raises:
        ValueError: unknown reduction.
    """
    shared = _extents_product(boxes1, boxes2, hull=False)
    union = box_volumes(boxes1) + box_volumes(boxes2) - shared
    iou = shared / (union + _EPSILON)
    hull = _extents_product(boxes1, boxes2, hull=True)
    loss = 1 - (iou - (hull - union) / (hull + _EPSILON))
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean() if loss.numel() > 0 else 0.0 * loss.sum()
    raise ValueError(f"reduction: found {reduction!r}, expected 'none', 'sum' or 'mean'")


def _extents_product(boxes1: Tensor, boxes2: Tensor, hull: bool) -> Tensor:
    """Area or volume of the intersection of pairs, or of the smallest enclosing box.

    Computed axis by axis: a product over a tensor (n, m, axes) takes three times as long.

    Args:
        boxes1: (..., 2 * axes).
        boxes2: likewise; the other axes broadcast.
        hull: whether to take the enclosing box.
    """
    axes = boxes1.shape[-1] // 2
    lows, highs = (torch.min, torch.max) if hull else (torch.max, torch.min)
    product = None
    for axis in range(axes):
        high = highs(boxes1[..., axes + axis], boxes2[..., axes + axis])
        extent = (high - lows(boxes1[..., axis], boxes2[..., axis])).relu_()
        product = extent if product is None else product * extent
    return product
