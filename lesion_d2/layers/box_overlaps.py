"""Overlaps of boxes along any number of axes: in 2-D, equal to Detectron2's to the bit.

Boxes are (..., 4) XYXY or (..., 6) XYZXYZ.
"""

import torch
from torch import Tensor

# fvcore's giou_loss has this number.
_EPSILON = 1e-7


def box_volumes(boxes: Tensor) -> Tensor:
    """Areas of (..., 4) boxes, volumes of (..., 6)."""
    axes = boxes.shape[-1] // 2
    product = boxes[..., axes] - boxes[..., 0]
    for axis in range(1, axes):
        product = product * (boxes[..., axes + axis] - boxes[..., axis])
    return product


def box_intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """(n, m) areas or volumes that every two of n and m boxes share."""
    return _extents_product(boxes1[:, None], boxes2[None], hull=False)


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """(n, m) intersection over union of every two of n and m boxes; 0 for boxes without area."""
    return matched_iou(boxes1[:, None], boxes2[None])


def matched_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """(...) intersection over union of boxes that go with each other; other axes broadcast."""
    shared = _extents_product(boxes1, boxes2, hull=False)
    union = box_volumes(boxes1) + box_volumes(boxes2) - shared
    return torch.where(shared > 0, shared / union, shared.new_zeros(1))


def box_giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """(n, m) generalized IoU of every two of n and m boxes (Rezatofighi et al., 2019)."""
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
        boxes2: as ``boxes1``; the two are matched row by row.
        reduction: "none", "sum" or "mean"; the mean of no pairs is 0.

    Returns:
        (n,) in 0..2, or a number.

    Raises:
        ValueError: another reduction.
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
    """What pairs share, or the smallest box around both.

    Axis by axis: a tensor (n, m, axes) and its product along a short axis take three times as long.

    Args:
        boxes1: (..., 2 axes).
        boxes2: the same axes; other sizes broadcast.
        hull: whether to go around both.
    """
    axes = boxes1.shape[-1] // 2
    lows, highs = (torch.min, torch.max) if hull else (torch.max, torch.min)
    product = None
    for axis in range(axes):
        high = highs(boxes1[..., axes + axis], boxes2[..., axes + axis])
        extent = (high - lows(boxes1[..., axis], boxes2[..., axis])).relu_()
        product = extent if product is None else product * extent
    return product
