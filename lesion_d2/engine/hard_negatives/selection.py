"""The rule that selects hard negatives (Tang et al., section 2.2)."""

import numpy as np
import torch
from torch import Tensor


def select_hard_negatives(
    scores: np.ndarray,
    mask_ious: np.ndarray,
    *,
    max_negatives: int = 3,
    good_iou: float = 0.3,
    min_score: float = 0.7,
    rng: np.random.Generator,
) -> np.ndarray:
    """Select the hard negatives among one image's detections (Tang et al., section 2.2).

    Let i be the highest-scored detection with a mask IoU above ``good_iou``, a good detection. If
    there is one, E contains the detections with a higher score than i; otherwise those with a score
    above ``min_score``. m = min(``max_negatives``, size of E) detections are sampled from E.

    Args:
        scores: (n,) S1, the lesion probability, in any order.
        mask_ious: (n,) S2, the highest mask IoU with any of the image's pseudo-masks; for models
            without masks, and for other lesions of a volume, the highest box IoU.
        max_negatives: upper limit of m; 3 in the paper.
        good_iou, min_score: 0.3 and 0.7 in the paper.
        rng: random generator.

    Returns:
        (m,) indices, ascending.
    """
    scores, mask_ious = np.asarray(scores), np.asarray(mask_ious)
    is_good = mask_ious > good_iou
    bound = scores[is_good].max() if is_good.any() else min_score
    candidates = np.flatnonzero(scores > bound)
    count = min(max_negatives, len(candidates))
    return np.sort(rng.choice(candidates, count, replace=False))


def best_mask_ious(masks: Tensor, true_masks: Tensor) -> Tensor:
    """Compute the highest IoU of each mask with any of the true masks.

    Args:
        masks: (n, H, W) bool.
        true_masks: (m, H, W) bool; on the CPU, to avoid GPU synchronization.

    Returns:
        (n,) float32; 0 if m is 0 or a mask is empty.
    """
    best = torch.zeros(len(masks), device=masks.device)
    rows, columns = (true_masks.any(dim=0).any(dim=d).nonzero().flatten() for d in (1, 0))
    if len(masks) == 0 or len(rows) == 0:
        return best
    # Most detections do not overlap a lesion: whole masks are only counted for those that do.
    top, bottom, left, right = (int(v) for axis in (rows, columns) for v in (axis[0], axis[-1] + 1))
    true = true_masks[:, top:bottom, left:right].flatten(1).to(masks.device).float()
    intersections = masks[:, top:bottom, left:right].flatten(1).float() @ true.T
    touching = intersections.any(dim=1).nonzero().flatten()
    areas = masks[touching].flatten(1).sum(dim=1)
    unions = areas[:, None] + true.sum(dim=1) - intersections[touching]
    best[touching] = (intersections[touching] / unions).amax(dim=1)
    return best
