"""Adaptive training sample selection: matching without a threshold of the user's."""

import torch
from detectron2.structures import Boxes
from torch import Tensor

from ..layers import matched_iou


class ATSSMatcher:
    """Match anchors with lesions by each lesion's own statistics (Zhang et al., 2020, Algorithm 1).

    A lesion's candidates are, on every level, the anchors whose centers are nearest to its own. Its
    threshold is the mean of their IoUs with it plus their standard deviation, and the candidates
    that reach it are positive, if they overlap it at all. All other anchors are background: none is
    left out of the loss.

    Args:
        num_candidates: positions of a level whose anchors are candidates. The paper has 9,
            nnDetection 4.
        center_inside: whether a positive's center has to lie in the lesion's box by a hundredth of
            a pixel on each side, as in the paper. nnDetection goes without: in small lesions there
            may lie no center.
    """

    def __init__(self, num_candidates: int, center_inside: bool = False):
        self.num_candidates = num_candidates
        self.center_inside = center_inside

    @torch.no_grad()
    def __call__(
        self, boxes: Boxes, anchors: list[Boxes], num_anchors: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Find the lesion that goes with each anchor of an image.

        Args:
            boxes: of n lesions, in 2-D or 3-D; there may be none.
            anchors: of each level, R in all.
            num_anchors: of each level, at one position.

        Returns:
            (R,) int64 indices of lesions, 0 where there is none, and (R,) int8 labels: 1 for
            positive anchors, 0 for background, as Detectron2's ``Matcher``. An anchor that two
            lesions want goes to the one with the higher IoU.
        """
        centers = torch.cat([level.get_centers() for level in anchors])
        if len(boxes) == 0:
            matches = torch.zeros(len(centers), dtype=torch.int64, device=centers.device)
            return matches, matches.to(torch.int8)
        nearest = self._candidates(
            boxes.get_centers(), centers, list(map(len, anchors)), num_anchors
        )
        every = type(anchors[0]).cat(anchors).tensor
        iou = matched_iou(boxes.tensor[:, None], every[nearest])
        # One candidate deviates from nothing.
        deviation = iou.std(dim=1, keepdim=True, correction=min(1, iou.shape[1] - 1))
        wanted = (iou >= iou.mean(dim=1, keepdim=True) + deviation) & (iou > 0)
        if self.center_inside:
            wanted &= _inside(centers[nearest], boxes.tensor)
        best = torch.full((len(boxes), len(every)), -1.0, device=every.device)
        best.scatter_(1, nearest, iou.masked_fill(~wanted, -1.0))
        values, matches = best.max(dim=0)
        return matches, (values >= 0).to(torch.int8)

    def _candidates(
        self, targets: Tensor, centers: Tensor, sizes: list[int], num_anchors: list[int]
    ) -> Tensor:
        """(n, k) indices of the anchors near each of n centers, level by level."""
        found, start = [], 0
        for size, number in zip(sizes, num_anchors, strict=True):
            level = centers[start : start + size]
            # By differences: products of coordinates round to whole pixels in large volumes.
            exact = "donot_use_mm_for_euclid_dist"
            distances = torch.cdist(targets, level, compute_mode=exact)
            count = min(self.num_candidates * number, size)
            found.append(distances.topk(count, dim=1, largest=False).indices + start)
            start += size
        return torch.cat(found, dim=1)


def _inside(points: Tensor, boxes: Tensor, margin: float = 0.01) -> Tensor:
    """(n, k) which of (n, k, axes) points lie in (n, 2 axes) boxes, a margin from their sides."""
    axes = points.shape[-1]
    low, high = boxes[:, None, :axes], boxes[:, None, axes:]
    return ((points - low > margin) & (high - points > margin)).all(dim=2)
