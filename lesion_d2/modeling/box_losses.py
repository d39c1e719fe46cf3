"""Box regression losses of dense detectors, for boxes along two axes and along three."""

import torch
from detectron2.layers import cat, ciou_loss, diou_loss
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from fvcore.nn import smooth_l1_loss
from torch import Tensor

from .. import layers
from .waiting import rows_that_count, sum_of_rows

_OVERLAP_LOSSES = {
    # fvcore's giou_loss, which is the same, waits for a GPU seven times.
    4: {"giou": layers.giou_loss, "diou": diou_loss, "ciou": ciou_loss},
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
    at_most: int | None = None,
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
        at_most: there are no more positive anchors, which saves a GPU to look at all.

    Returns:
        A scalar.

    Raises:
        ValueError: there is no such loss for these boxes.
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
    """The box regression loss of anchors, or regions, that are matched already, summed.

    Args:
        transform: what the deltas are of.
        sources: (n, B) anchors, B = 4 or 6.
        deltas: (n, B), predicted.
        targets: (n, B) boxes.
        box_reg_loss_type, smooth_l1_beta: see :func:`box_regression_loss`.
        counts: (n,) bool, the rows that count; None for all.

    Returns:
        A scalar.

    Raises:
        ValueError: there is no such loss for these boxes.
    """
    if counts is not None:  # the boxes of the others may be empty, and so may the predicted ones:
        # a gradient of 0 would then be multiplied by what is not a number
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
