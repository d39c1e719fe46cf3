"""Selection of an RPN's proposals, in 2-D and 3-D."""

import torch
from detectron2.layers import cat
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ...layers import batched_nms
from ..waiting import HostCopy


@torch.no_grad()
def find_top_proposals(
    anchors: list[Boxes],
    pred_objectness_logits: list[Tensor],
    pred_anchor_deltas: list[Tensor],
    image_sizes: list[tuple[int, ...]],
    transform: Box2BoxTransform,
    *,
    nms_threshold: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float = 0.0,
    is_training: bool = False,
) -> list[Instances]:
    """Select the proposals of an RPN, as Detectron2's ``find_top_rpn_proposals`` in 2-D.

    On each level, boxes are decoded for the highest logits and clipped to the image, followed by
    NMS; then the highest logits of all levels are selected. Detectron2 decodes all boxes first,
    which are hundreds of thousands in a volume; the proposals are the same.

    Args:
        anchors: one per level, (R_i, 4) in 2-D and (R_i, 6) in 3-D; proposals have the same class
            of boxes.
        pred_objectness_logits: (N, R_i), one per level.
        pred_anchor_deltas: (N, R_i, 4) or (N, R_i, 6), one per level.
        image_sizes: height and width, or depth, height and width, of the N images.
        transform: the box transform of the deltas.
        nms_threshold: IoU threshold of NMS.
        pre_nms_topk: maximum number of boxes per level before NMS.
        post_nms_topk: maximum number of proposals per image.
        min_box_size: drop boxes with a side of at most this many pixels.
        is_training: raise an error for non-finite boxes instead of dropping them.

    Returns:
        ``proposal_boxes`` and ``objectness_logits`` of each image, by descending logit.

    Raises:
        FloatingPointError: a box or a logit is non-finite in training.
    """
    tops = [
        _decode_top(*level, transform, pre_nms_topk)
        for level in zip(anchors, pred_objectness_logits, pred_anchor_deltas, strict=True)
    ]
    logits, boxes = (cat(list(parts), dim=1) for parts in zip(*tops, strict=True))
    numbers = [top.shape[1] for top, _ in tops]
    levels = cat(
        [torch.full((n,), level, device=logits.device) for level, n in enumerate(numbers)], dim=0
    )
    results = []
    for image_size, image_logits, image_boxes in zip(image_sizes, logits, boxes, strict=True):
        proposals = Instances(image_size, proposal_boxes=type(anchors[0])(image_boxes))
        proposals.objectness_logits, proposals.levels = image_logits, levels
        proposals = _suppress(proposals, nms_threshold, min_box_size, is_training)
        proposals.remove("levels")
        results.append(proposals[:post_nms_topk])
    return results


def _decode_top(
    anchors: Boxes, logits: Tensor, deltas: Tensor, transform: Box2BoxTransform, number: int
) -> tuple[Tensor, Tensor]:
    """Logits (N, k) and boxes (N, k, 4 or 6) of a level's k <= ``number`` highest anchors."""
    logits, index = logits.topk(min(number, logits.shape[1]), dim=1)
    box_dim = deltas.shape[2]
    deltas = deltas.gather(1, index[:, :, None].expand(-1, -1, box_dim))
    boxes = transform.apply_deltas(deltas.flatten(0, 1), anchors.tensor[index.flatten()])
    return logits, boxes.view(*index.shape, box_dim)


def _suppress(
    proposals: Instances, threshold: float, min_box_size: float, is_training: bool
) -> Instances:
    """Clip boxes to the image, drop empty and non-finite ones, and apply NMS.

    There is rarely a box to drop. To avoid a GPU synchronization, this is only checked after NMS,
    which synchronizes anyway; if there was one, NMS is repeated without it.
    """
    boxes, logits = proposals.proposal_boxes, proposals.objectness_logits
    is_usable = torch.isfinite(boxes.tensor).all(dim=1) & torch.isfinite(logits)
    all_finite = HostCopy(is_usable.all())
    # Non-finite boxes become empty.
    proposals.proposal_boxes = type(boxes)(boxes.tensor.masked_fill(~is_usable[:, None], 0))
    proposals.proposal_boxes.clip(proposals.image_size)
    if is_training and not all_finite.read():
        raise FloatingPointError(
            "Predicted boxes or scores contain Inf/NaN. Training has diverged."
        )
    is_usable &= proposals.proposal_boxes.nonempty(threshold=min_box_size)
    all_usable = HostCopy(is_usable.all())
    if all_usable.has_arrived() and not all_usable.read():
        return _nms(proposals[is_usable], threshold)
    found = _nms(proposals, threshold)
    return found if all_usable.read() else _nms(proposals[is_usable], threshold)


def _nms(proposals: Instances, threshold: float) -> Instances:
    boxes, scores = proposals.proposal_boxes.tensor, proposals.objectness_logits
    return proposals[batched_nms(boxes, scores, proposals.levels, threshold)]
