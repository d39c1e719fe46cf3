"""Box regression losses of dense detectors, for boxes along two axes and along three."""

import torch
from detectron2.layers import cat, ciou_loss, diou_loss
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor

from .. import layers

_OVERLAP_LOSSES = {
    4: {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss},
    6: {"giou": layers.giou_loss},
}


def check_box_loss(
    name: str, box_dim: int, *, key: str = "MODEL.RETINANET.BBOX_REG_LOSS_TYPE"
) -> None:
    """Refuse a loss that boxes do not have.

    Args:
        name: the loss.
        box_dim: 4 or 6, the numbers of a box.
        key: of the config, for the message.

    Raises:
        ValueError: the name is unknown, or one of another dimension.
    """
    names = ["smooth_l1", *_OVERLAP_LOSSES[box_dim]]
    if name not in names:
        raise ValueError(
            f"{key}: found {name!r}, expected one of {', '.join(names)} for boxes of {box_dim} "
            "numbers"
        )


def box_regression_loss(
    anchors: list[Boxes],
    transform: Box2BoxTransform,
    pred_deltas: list[Tensor],
    gt_boxes: list[Tensor],
    is_positive: Tensor,
    *,
    box_reg_loss_type: str,
    smooth_l1_beta: float,
) -> Tensor:
    """The box regression loss of positive anchors, summed.

    In 2-D it is Detectron2's, which codes the boxes of all anchors: volumes have a million, of
    which some tens are positive, and only these are coded here.

    Args:
        anchors: one an FPN level, R in all, of B = 4 or 6 numbers.
        transform: what the deltas are of.
        pred_deltas: (N, R_i, B), one a level.
        gt_boxes: (R, B), one an image.
        is_positive: (N, R) bool.
        box_reg_loss_type: "smooth_l1" of the deltas; "giou" or, in 2-D, "diou" or "ciou" of the
            boxes.
        smooth_l1_beta: where the smooth L1 loss goes over from a square to a line; 0 for L1.

    Returns:
        A scalar.

    Raises:
        ValueError: there is no such loss for these boxes.
    """
    image, position = is_positive.nonzero(as_tuple=True)
    sources = type(anchors[0]).cat(anchors).tensor[position]
    deltas, targets = cat(pred_deltas, dim=1)[image, position], torch.stack(gt_boxes)
    targets = targets[image, position]
    return matched_box_loss(
        transform,
        sources,
        deltas,
        targets,
        box_reg_loss_type=box_reg_loss_type,
        smooth_l1_beta=smooth_l1_beta,
    )


def matched_box_loss(
    transform: Box2BoxTransform,
    sources: Tensor,
    deltas: Tensor,
    targets: Tensor,
    *,
    box_reg_loss_type: str,
    smooth_l1_beta: float,
) -> Tensor:
    """The box regression loss of anchors, or regions, that are matched already, summed.

    Args:
        transform: what the deltas are of.
        sources: (n, B) anchors, B = 4 or 6.
        deltas: (n, B), predicted.
        targets: (n, B) boxes.
        box_reg_loss_type, smooth_l1_beta: see :func:`box_regression_loss`.

    Returns:
        A scalar.

    Raises:
        ValueError: there is no such loss for these boxes.
    """
    if box_reg_loss_type == "smooth_l1":
        wanted = transform.get_deltas(sources, targets)
        return smooth_l1_loss(deltas, wanted, beta=smooth_l1_beta, reduction="sum")
    check_box_loss(box_reg_loss_type, sources.shape[1])
    overlap_loss = _OVERLAP_LOSSES[sources.shape[1]][box_reg_loss_type]
    return overlap_loss(transform.apply_deltas(deltas, sources), targets, reduction="sum")
