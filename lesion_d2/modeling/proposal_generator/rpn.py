import torch
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor


@PROPOSAL_GENERATOR_REGISTRY.register()
class LesionRPN(RPN):
    """Detectron2's RPN that knows annotations to ignore, by a class below 0.

    Detectron2's RetinaNet and ROI heads leave out anchors and proposals of such a class by
    themselves; its RPN looks at no class.
    """

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As in Detectron2, where anchors are drawn from those without an annotation to ignore.

        Args:
            anchors: one an FPN level.
            gt_instances: with ``gt_boxes`` and ``gt_classes``, one an image.

        Returns:
            Labels (R,) 1, 0 or, for what does not count, -1, and matched boxes (R, 4), one an
            image.
        """
        # One call of _subsample_labels an image, in their order.
        self._ignored = iter([self._on_ignored(anchors, instances) for instances in gt_instances])
        return super().label_and_sample_anchors(anchors, gt_instances)

    def _on_ignored(self, anchors: list[Boxes], instances: Instances) -> Tensor | None:
        """(R,) bool, anchors whose best match is an annotation to ignore; None without any."""
        ignored = instances.gt_classes < 0
        if not ignored.any():
            return None
        matches, labels = self.anchor_matcher(pairwise_iou(instances.gt_boxes, Boxes.cat(anchors)))
        return ignored[matches] & (labels == 1)

    def _subsample_labels(self, label: Tensor) -> Tensor:
        ignored = next(self._ignored)
        if ignored is not None:
            label[ignored] = -1
        return super()._subsample_labels(label)
