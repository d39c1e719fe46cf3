"""Non-maximum suppression in 3-D, without compiled code.

A box is kept where no kept box of a higher score overlaps it by more than the threshold. Boxes of
equal scores come in the order that they are given in.
"""

import torch
from detectron2.layers import batched_nms as batched_nms_2d
from torch import Tensor

from .box_overlaps import box_iou

# Boxes that the host looks at together: it then drops what they suppress, and the fewer are left
# the less there is to compare.
_HOST_BLOCK = 128
# Pairs of boxes that a GPU compares at once, which bounds the memory: 64 MB a tensor.
_PAIRS = 2**24
# Rounds on a GPU before it is asked whether they were enough. Detections need less than ten.
_ROUNDS = 16


def nms_3d(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that non-maximum suppression keeps, as ``torchvision.ops.nms`` in 2-D.

    On a GPU nothing waits for the host but the result, once.

    Args:
        boxes: (n, 6) XYZXYZ.
        scores: (n,).
        iou_threshold: a box goes where its IoU with a better one is above it.

    Returns:
        (kept,) int64, by falling score.
    """
    return _nms(boxes, scores, None, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression in each group of boxes, in 2-D and 3-D.

    Args:
        boxes: (n, 4) XYXY, which go to Detectron2's ``batched_nms``, or (n, 6) XYZXYZ.
        scores: (n,).
        idxs: (n,) group of each box, such as its class or its level: boxes of different groups do
            not suppress each other.
        iou_threshold: see :func:`nms_3d`.

    Returns:
        (kept,) int64, by falling score.
    """
    if boxes.shape[1] == 4:
        return batched_nms_2d(boxes, scores, idxs, iou_threshold)
    return _nms(boxes, scores, idxs, iou_threshold)


@torch.no_grad()
def _nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, threshold: float) -> Tensor:
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order].float()
    if groups is not None:
        groups = groups[order]
    if _on_host(boxes):
        return order[_keep_on_host(boxes, groups, threshold)]
    rounds = _ROUNDS
    while True:
        kept, done = _keep_on_device(boxes, groups, threshold, rounds)
        # The one wait: which boxes stay, and whether the rounds were enough.
        *kept, done = torch.cat([kept, done[None]]).tolist()
        if done:
            where = torch.tensor([i for i, keep in enumerate(kept) if keep], dtype=torch.int64)
            return order[where.to(order.device, non_blocking=True)]
        rounds *= 8


def _on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


_Group = tuple[Tensor, Tensor | None]  # (n, 6) boxes, and (n,) the group of each, if any


def _pair(
    boxes: Tensor, groups: Tensor | None, first: Tensor | slice, second: Tensor | slice
) -> tuple[_Group, _Group]:
    """Two parts of the boxes."""
    if groups is None:
        return (boxes[first], None), (boxes[second], None)
    return (boxes[first], groups[first]), (boxes[second], groups[second])


def _suppresses(first: _Group, second: _Group, threshold: float) -> Tensor:
    """(n, m) whether each of n boxes overlaps each of m of its group too much."""
    too_much = box_iou(first[0], second[0]) > threshold
    if first[1] is not None:
        too_much &= first[1][:, None] == second[1]
    return too_much


def _settle(alive: Tensor, above: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression by a matrix.

    Every round settles the boxes whose suppressors are all settled: the first box at once, and then
    as many rounds as the longest chain of boxes has of which each overlaps the next.

    Args:
        alive: (n,) bool, boxes by falling score that may stay.
        above: (n, n) bool; [i, j] where i comes before j and overlaps it.
        rounds: at most so many are made.

    Returns:
        (n,) which stay, and whether the last round changed nothing.
    """
    kept = before = alive
    for _ in range(rounds):
        before, kept = kept, alive & ~(above & kept[:, None]).any(dim=0)
        if _on_host(kept) and torch.equal(before, kept):
            break
    return kept, (before == kept).all()


def _keep_on_host(boxes: Tensor, groups: Tensor | None, threshold: float) -> Tensor:
    """(kept,) indices of boxes by falling score."""
    kept, left = [], torch.arange(len(boxes))
    while len(left) > 0:
        block, left = left[:_HOST_BLOCK], left[_HOST_BLOCK:]
        too_much = _suppresses(*_pair(boxes, groups, block, block), threshold).triu(1)
        alive = torch.ones(len(block), dtype=torch.bool)
        stays, _ = _settle(alive, too_much, rounds=len(block) + 1)
        kept.append(block[stays])
        too_much = _suppresses(*_pair(boxes, groups, kept[-1], left), threshold)
        left = left[~too_much.any(dim=0)]
    return torch.cat(kept) if kept else left


def _keep_on_device(
    boxes: Tensor, groups: Tensor | None, threshold: float, rounds: int
) -> tuple[Tensor, Tensor]:
    """(n,) which boxes by falling score stay, and whether the rounds were enough: no wait."""
    alive = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    done = torch.ones((), dtype=torch.bool, device=boxes.device)
    rows = max(1, _PAIRS // max(len(boxes), 1))
    for start in range(0, len(boxes), rows):
        end = start + rows
        pair = _pair(boxes, groups, slice(start, end), slice(start, None))
        too_much = _suppresses(*pair, threshold)
        number = len(too_much)
        stays, enough = _settle(alive[start:end], too_much[:, :number].triu(1), rounds)
        alive[start:end] = stays
        alive[end:] &= ~(too_much[:, number:] & stays[:, None]).any(dim=0)
        done &= enough
    return alive, done
