"""Box regression losses of dense detectors, for boxes in 2-D and 3-D."""

import torch
from detectron2.layers import cat, ciou_loss, diou_loss
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from fvcore.nn import smooth_l1_loss
from torch import Tensor

from .. import layers
from .waiting import rows_that_count, sum_of_rows

_OVERLAP_LOSSES = {
    # Equals fvcore's giou_loss, which synchronizes a GPU seven times.
    4: {"giou": layers.giou_loss, "diou": diou_loss, "ciou": ciou_loss},
    6: {"giou": layers.giou_loss},
}


def check_box_loss(
    name: str, box_dim: int, *, key: str = "MODEL.RETINANET.BBOX_REG_LOSS_TYPE"
) -> None:
    """Check that a box loss exists for the dimension of the boxes.

    Args:
        name: name of the loss.
        box_dim: 4 or 6, length of a box.
        key: config key, for the message.

    Raises:
        ValueError: the name is unknown, or not available in this dimension.
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
    at_most: int | None = None,
) -> Tensor:
    """Sum the box regression loss over positive anchors.

    In 2-D it equals Detectron2's, which encodes the boxes of all anchors. Volumes have a million
    anchors, but only some tens of positive ones; here only these are encoded.

    Args:
        anchors: one per FPN level, R in total, with B = 4 or 6 numbers.
        transform: the box transform of the deltas.
        pred_deltas: (N, R_i, B), one per level.
        gt_boxes: (R, B), one per image.
        is_positive: (N, R) bool.
        box_reg_loss_type: "smooth_l1" on deltas; "giou" or, in 2-D, "diou" or "ciou" on boxes.
        smooth_l1_beta: transition of the smooth L1 loss from quadratic to linear; 0 for L1.
        at_most: upper limit of the number of positive anchors, which saves work on a GPU.

    Returns:
        A scalar.

    Raises:
        ValueError: the loss does not exist for these boxes.
    """
    sources, targets = type(anchors[0]).cat(anchors).tensor, torch.stack(gt_boxes)
    counts, (sources, deltas, targets) = rows_that_count(
        is_positive,
        sources.expand_as(targets),
        cat(pred_deltas, dim=1),
        targets,
        at_most=at_most,
    )
    return matched_box_loss(
        transform,
        sources,
        deltas,
        targets,
        box_reg_loss_type=box_reg_loss_type,
        smooth_l1_beta=smooth_l1_beta,
        counts=counts,
    )


def matched_box_loss(
    transform: Box2BoxTransform,
    sources: Tensor,
    deltas: Tensor,
    targets: Tensor,
    *,
    box_reg_loss_type: str,
    smooth_l1_beta: float,
    counts: Tensor | None = None,
) -> Tensor:
    """Sum the box regression loss over matched anchors or regions.

    Args:
        transform: the box transform of the deltas.
        sources: (n, B) anchors, B = 4 or 6.
        deltas: (n, B), predicted.
        targets: (n, B) ground-truth boxes.
        box_reg_loss_type, smooth_l1_beta: see :func:`box_regression_loss`.
        counts: (n,) bool, the rows to include; None for all.

    Returns:
        A scalar.

    Raises:
        ValueError: the loss does not exist for these boxes.
    """
    if counts is not None:  # other boxes may be empty, and give NaN gradients
        targets = targets.where(counts[:, None], sources)
        deltas = deltas.masked_fill(~counts[:, None], 0)
    if box_reg_loss_type == "smooth_l1":
        wanted = transform.get_deltas(sources, targets)
        losses = smooth_l1_loss(deltas, wanted, beta=smooth_l1_beta, reduction="none")
        return sum_of_rows(losses, counts)
    check_box_loss(box_reg_loss_type, sources.shape[1])
    overlap_loss = _OVERLAP_LOSSES[sources.shape[1]][box_reg_loss_type]
    losses = overlap_loss(transform.apply_deltas(deltas, sources), targets, reduction="none")
    return sum_of_rows(losses, counts)
