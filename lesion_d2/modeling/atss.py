"""Adaptive training sample selection (ATSS): matching without a fixed threshold."""

import torch
from detectron2.structures import Boxes
from torch import Tensor

from ..layers import matched_iou


class ATSSMatcher:
    """Matches anchors by statistics of each lesion (Zhang et al., 2020, Algorithm 1).

    The candidates of a lesion are, on every level, the anchors with the nearest centers. Its
    threshold is the mean plus the standard deviation of their IoUs with the lesion; candidates that
    reach it, with an IoU above 0, are positive. All other anchors are background; none is ignored.

    Args:
        num_candidates: number of positions per level whose anchors are candidates: 9 in the paper,
            4 in nnDetection.
        center_inside: require the center of a positive anchor inside the lesion's box, with a
            margin of 0.01 pixels, as in the paper. nnDetection does not: small lesions may contain
            no center.
    """

    def __init__(self, num_candidates: int, center_inside: bool = False):
        self.num_candidates = num_candidates
        self.center_inside = center_inside

    @torch.no_grad()
    def __call__(
        self, boxes: Boxes, anchors: list[Boxes], num_anchors: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Match each anchor of an image with a lesion.

        Args:
            boxes: boxes of n >= 0 lesions, in 2-D or 3-D.
            anchors: anchors of each level, R in total.
            num_anchors: number of anchors per position, for each level.

        Returns:
            (R,) int64 indices of lesions, 0 without a match, and (R,) int8 labels: 1 for positive
            anchors, 0 for background, as in Detectron2's ``Matcher``. If an anchor is positive for
            two lesions, the one with the higher IoU is used.
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
        # The standard deviation of one candidate is 0.
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
        """(n, k) indices of the anchors nearest to each of n centers, by level."""
        found, start = [], 0
        for size, number in zip(sizes, num_anchors, strict=True):
            level = centers[start : start + size]
            # From differences: products of coordinates lose precision in large volumes.
            exact = "donot_use_mm_for_euclid_dist"
            distances = torch.cdist(targets, level, compute_mode=exact)
            count = min(self.num_candidates * number, size)
            found.append(distances.topk(count, dim=1, largest=False).indices + start)
            start += size
        return torch.cat(found, dim=1)


def _inside(points: Tensor, boxes: Tensor, margin: float = 0.01) -> Tensor:
    """(n, k): whether points (n, k, axes) are in boxes (n, 2 axes), with a margin."""
    axes = points.shape[-1]
    low, high = boxes[:, None, :axes], boxes[:, None, axes:]
    return ((points - low > margin) & (high - points > margin)).all(dim=2)
