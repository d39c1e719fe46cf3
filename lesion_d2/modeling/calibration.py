"""Calibration of scores by masks (Zlocha et al., section 2.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Factor of the window around a box in which the mask is searched: large enough to contain the whole
# mask if the box is too small or shifted, small enough to exclude neighbors.
_WINDOW = 1.5


def calibrate_scores(scores: Tensor, agreement: Tensor, strength: float) -> Tensor:
    """Calibrate scores by the agreement of boxes and masks (Zlocha et al., section 2.2).

    The paper gives no formula. Ours is score x (1 - strength x (1 - agreement)): the score itself
    at strength 0, and score x agreement at 1. In between, a lesion without a mask keeps a part of
    its score; with a power of the agreement its score would be 0 at any strength.

    Args:
        scores: (n,).
        agreement: (n,) in [0, 1], see :func:`mask_agreement`.
        strength: in [0, 1].

    Returns:
        (n,) scores, at most the input scores.
    """
    return scores * (1 - strength * (1 - agreement))


def mask_agreement(
    boxes: Tensor, classes: Tensor, class_masks: Tensor, *, margin: float = 0.0
) -> Tensor:
    """Compute the IoU of each predicted box with the box around the predicted mask.

    The mask is that of the detection's class inside the box enlarged by half; ``margin`` is added
    to each side of the box around it. Both boxes are clipped to the image.

    Args:
        boxes: (n, 4) XYXY in pixels of the masks; integers are pixel centers.
        classes: (n,) int.
        class_masks: (K, H, W) bool.
        margin: margin in pixels of annotated boxes around lesions (5 in DeepLesion).

    Returns:
        (n,) in [0, 1]; 0 without a mask.
    """
    boxes = _clip(boxes.nan_to_num(), class_masks)
    around, found = boxes_around_masks(boxes, classes, class_masks)
    around = _clip(around + around.new_tensor([-margin, -margin, margin, margin]), class_masks)
    shared = torch.minimum(boxes[:, 2:], around[:, 2:]) - torch.maximum(boxes[:, :2], around[:, :2])
    shared = shared.clamp(min=0).prod(dim=1)
    areas = [(b[:, 2:] - b[:, :2]).clamp(min=0).prod(dim=1) for b in (boxes, around)]
    return torch.where(found, shared / (sum(areas) - shared).clamp(min=1e-6), 0.0)


def _clip(boxes: Tensor, masks: Tensor) -> Tensor:
    height, width = masks.shape[-2:]
    corner = boxes.new_tensor([width, height, width, height]) - 0.5
    return torch.minimum(boxes.clamp(min=-0.5), corner)


def boxes_around_masks(
    boxes: Tensor, classes: Tensor, class_masks: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the extent of mask pixels in each box's window, for all boxes at once.

    Cumulative sums of the masks give by two lookups whether a column has a mask pixel between two
    rows, so that n boxes take n (H + W) steps instead of n H W.

    Args:
        boxes: (n, 4) XYXY; the window is the box enlarged by half about its center.
        classes: (n,) int.
        class_masks: (K, H, W) bool.

    Returns:
        (n, 4) XYXY, the outer edges of the outermost pixels, and (n,) bool, whether there is a mask
        pixel; the box is undefined without one.
    """
    height, width = class_masks.shape[-2:]
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * _WINDOW
    size = boxes.new_tensor([width, height])
    low = torch.minimum((center - half).ceil().clamp(min=0), size).long()
    high = torch.minimum((center + half).floor() + 1, size).clamp(min=0).long()
    x1, x2 = _extent(class_masks, classes, low.flip(1), high.flip(1))
    y1, y2 = _extent(class_masks.transpose(1, 2), classes, low, high)
    return torch.stack([x1 - 0.5, y1 - 0.5, x2 + 0.5, y2 + 0.5], dim=1), x2 >= 0


def _extent(masks: Tensor, classes: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """First and last column with a mask pixel in the windows low to high - 1 (rows, columns).

    Args:
        masks: (K, R, C) bool.
        classes: (n,).
        low, high: (n, 2).

    Returns:
        (n,) and (n,) float; C and -1 for a window without mask pixels.
    """
    num_columns = masks.shape[2]
    sums = F.pad(masks.cumsum(dim=1, dtype=torch.int32), (0, 0, 1, 0))
    inside = sums[classes, high[:, 0]] > sums[classes, low[:, 0]]
    column = torch.arange(num_columns, device=masks.device)
    inside &= (column >= low[:, 1:]) & (column < high[:, 1:])
    first = torch.where(inside, column, num_columns).amin(dim=1)
    last = torch.where(inside, column, -1).amax(dim=1)
    return first.float(), last.float()
