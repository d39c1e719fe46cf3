import torch
import torch.nn.functional as F
from detectron2.modeling import StandardROIHeads
from detectron2.structures import Instances
from torch import Tensor

from ...ignore_regions import IGNORED_CLASS, lie_inside, split_regions


class RegionROIHeads(StandardROIHeads):
    """StandardROIHeads that know regions to ignore (:mod:`lesion_d2.ignore_regions`).

    Negative proposals in one are not drawn. What draws in another way overrides
    :meth:`_draw_proposals`.
    """

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """As in Detectron2."""
        pairs = list(map(split_regions, targets))
        # One call of _sample_proposals an image, in their order.
        self._in_regions = iter(
            [
                regions if regions is None else lie_inside(p.proposal_boxes, regions.gt_boxes)
                for p, (_, regions) in zip(proposals, pairs, strict=True)
            ]
        )
        return super().label_and_sample_proposals(proposals, [lesions for lesions, _ in pairs])

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        inside = next(self._in_regions)
        if inside is not None:
            # Annotated boxes, where they are among the proposals, come last; none is negative.
            inside = F.pad(inside, (0, len(matched_labels) - len(inside)))
            matched_labels = matched_labels.masked_fill(inside & (matched_labels == 0), -1)
            if len(gt_classes) == 0:  # labels only count where there is something to match
                gt_classes = gt_classes.new_full((1,), IGNORED_CLASS)
        return self._draw_proposals(matched_idxs, matched_labels, gt_classes)

    def _draw_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As Detectron2's ``_sample_proposals``."""
        return super()._sample_proposals(matched_idxs, matched_labels, gt_classes)
