"""Non-maximum suppression in 3-D in pure PyTorch.

A box is kept if its IoU with every kept box of a higher score is at most the threshold. Boxes with
equal scores are processed in input order.
"""

import torch
from detectron2.layers import batched_nms as batched_nms_2d
from torch import Tensor

from .box_overlaps import box_iou

# Boxes processed together on a CPU. Those that they suppress are dropped before the next chunk.
_HOST_BLOCK = 128
# Pairs of boxes that a GPU compares at once, which limits memory to 64 MB per tensor.
_PAIRS = 2**24
# Rounds on a GPU between checks for convergence. Detections need less than ten.
_ROUNDS = 16


def nms_3d(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that non-maximum suppression keeps; ``torchvision.ops.nms`` in 3-D.

    On a GPU it synchronizes once, for the result.

    Args:
        boxes: (n, 6) XYZXYZ.
        scores: (n,).
        iou_threshold: a box whose IoU with a better one exceeds it is removed.

    Returns:
        (kept,) int64, by falling score.
    """
    return _nms(boxes, scores, None, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression within each group of boxes, in 2-D and 3-D.

    Args:
        boxes: (n, 4) XYXY, passed to Detectron2's ``batched_nms``, or (n, 6) XYZXYZ.
        scores: (n,).
        idxs: (n,) group of each box, such as its class or level; boxes of different groups do not
            suppress each other.
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
        # The only synchronization: which boxes are kept, and whether it converged.
        *kept, done = torch.cat([kept, done[None]]).tolist()
        if done:
            where = torch.tensor([i for i, keep in enumerate(kept) if keep], dtype=torch.int64)
            return order[where.to(order.device, non_blocking=True)]
        rounds *= 8


def _on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


_Group = tuple[Tensor, Tensor | None]  # (n, 6) boxes, and (n,) groups if any


def _pair(
    boxes: Tensor, groups: Tensor | None, first: Tensor | slice, second: Tensor | slice
) -> tuple[_Group, _Group]:
    """Two subsets of the boxes, with their groups."""
    if groups is None:
        return (boxes[first], None), (boxes[second], None)
    return (boxes[first], groups[first]), (boxes[second], groups[second])


def _suppresses(first: _Group, second: _Group, threshold: float) -> Tensor:
    """(n, m) bool, whether boxes of the same group have an IoU above the threshold."""
    too_much = box_iou(first[0], second[0]) > threshold
    if first[1] is not None:
        too_much &= first[1][:, None] == second[1]
    return too_much


def _settle(alive: Tensor, above: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression by iterations over the matrix of overlaps.

    Each round decides the boxes whose possible suppressors are all decided. It takes as many rounds
    as the longest chain of boxes of which each overlaps the next.

    Args:
        alive: (n,) bool, boxes that may be kept, by descending score.
        above: (n, n) bool; [i, j] is True if i precedes j and overlaps it.
        rounds: maximum number of rounds.

    Returns:
        (n,) bool, the boxes that are kept, and whether the last round changed nothing.
    """
    kept = before = alive
    for _ in range(rounds):
        before, kept = kept, alive & ~(above & kept[:, None]).any(dim=0)
        if _on_host(kept) and torch.equal(before, kept):
            break
    return kept, (before == kept).all()


def _keep_on_host(boxes: Tensor, groups: Tensor | None, threshold: float) -> Tensor:
    """(kept,) indices into boxes sorted by descending score."""
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
    """(n,) bool, which of the boxes by descending score are kept, and whether it converged."""
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
