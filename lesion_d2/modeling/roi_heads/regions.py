"""ROI heads with support for regions to ignore."""

import torch
from detectron2.modeling import StandardROIHeads
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.structures import Instances

from ...structures import pairwise_iou
from ...structures.ignore_regions import IGNORED_CLASS, lie_inside, split_regions
from ..waiting import put_scalar


class RegionROIHeads(StandardROIHeads):
    """StandardROIHeads that support regions to ignore (:mod:`lesion_d2.structures.ignore_regions`).

    Negative proposals inside such regions are not sampled. Boxes may be 2-D or 3-D. To change the
    sampling, override ``_sample_proposals``, as in Detectron2.
    """

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """As in Detectron2, for boxes in 2-D and in 3-D."""
        pairs = list(map(split_regions, targets))
        lesions = [each for each, _ in pairs]
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(lesions, proposals)
        drawn = [
            self._label_and_sample(*each, regions)
            for each, (_, regions) in zip(zip(proposals, lesions, strict=True), pairs, strict=True)
        ]
        classes = torch.cat([x.gt_classes for x in drawn])
        num_background = (classes == self.num_classes).sum().double()
        put_scalar("roi_head/num_fg_samples", (len(classes) - num_background) / len(drawn))
        put_scalar("roi_head/num_bg_samples", num_background / len(drawn))
        return drawn

    def _label_and_sample(
        self, proposals: Instances, lesions: Instances, regions: Instances | None
    ) -> Instances:
        """The sampled proposals of one image, with the fields of their matched lesions."""
        overlaps = pairwise_iou(lesions.gt_boxes, proposals.proposal_boxes)
        matches, labels = self.proposal_matcher(overlaps)
        gt_classes = lesions.gt_classes
        if regions is not None:
            inside = lie_inside(proposals.proposal_boxes, regions.gt_boxes)
            labels = labels.masked_fill(inside & (labels == 0), -1)
            if len(gt_classes) == 0:  # labels are only valid if there is something to match
                gt_classes = gt_classes.new_full((1,), IGNORED_CLASS)
        chosen, classes = self._sample_proposals(matches, labels, gt_classes)
        drawn, matches = proposals[chosen], matches[chosen]
        drawn.gt_classes = classes
        if len(lesions) > 0:
            for name, values in lesions.get_fields().items():
                if name.startswith("gt_") and not drawn.has(name):
                    drawn.set(name, values[matches])
        return drawn
