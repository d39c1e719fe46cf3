"""RetinaNet with optional low-quality matches and ATSS."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ...structures import pairwise_iou
from ...structures.ignore_regions import IGNORED_CLASS, lie_inside, split_regions
from ..atss import ATSSMatcher
from ..matching import unmatch_untouched


@META_ARCH_REGISTRY.register()
class LesionRetinaNet(RetinaNet):
    """Detectron2's RetinaNet, optionally without low-quality matches.

    In Detectron2 the best anchors of every lesion are positive for any IoU. In the RetinaNet of
    Zlocha et al. (keras-retinanet) no anchor is positive if none reaches the highest of
    MODEL.RETINANET.IOU_THRESHOLDS, and the lesion becomes background.

    Negative anchors inside regions to ignore are ignored
    (:mod:`lesion_d2.structures.ignore_regions`).

    Args:
        allow_low_quality_matches: whether the best anchors of a lesion are positive below the
            threshold.
        atss_candidates: number of positions per level for an :class:`ATSSMatcher`, which replaces
            the thresholds; 0 to use thresholds.
        atss_center_inside: see :class:`ATSSMatcher`.
        kwargs: see :class:`RetinaNet`.
    """

    atss: ATSSMatcher | None = None

    @configurable
    def __init__(
        self,
        *,
        allow_low_quality_matches: bool = True,
        atss_candidates: int = 0,
        atss_center_inside: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.anchor_matcher.allow_low_quality_matches = allow_low_quality_matches
        if atss_candidates > 0:
            self.atss = ATSSMatcher(atss_candidates, atss_center_inside)

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments of ``LesionRetinaNet(cfg)``."""
        return {
            **super().from_config(cfg),
            "allow_low_quality_matches": cfg.MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES,
            "atss_candidates": cfg.MODEL.RETINANET.ATSS_CANDIDATES,
            "atss_center_inside": cfg.MODEL.RETINANET.ATSS_CENTER_INSIDE,
        }

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As in Detectron2; labels are -1 for unmatched anchors in regions to ignore.

        Args:
            anchors: one per FPN level, R in total, of B = 4 or 6 numbers.
            gt_instances: with ``gt_boxes`` and ``gt_classes``, one per image.

        Returns:
            Labels (R,) per image, K for background and -1 for ignored anchors, and matched boxes
            (R, B) per image.
        """
        pairs = [self._label_anchors(anchors, instances) for instances in gt_instances]
        return [label for label, _ in pairs], [box for _, box in pairs]

    def _label_anchors(self, anchors: list[Boxes], instances: Instances) -> tuple[Tensor, Tensor]:
        lesions, regions = split_regions(instances)
        matches, match_labels = self.match_anchors(lesions.gt_boxes, anchors)
        all_anchors = type(anchors[0]).cat(anchors)
        if len(lesions) > 0:
            boxes, labels = lesions.gt_boxes.tensor[matches], lesions.gt_classes[matches]
            labels.masked_fill_(match_labels == 0, self.num_classes)
            labels.masked_fill_(match_labels == -1, IGNORED_CLASS)
        else:
            boxes = torch.zeros_like(all_anchors.tensor)
            labels = torch.full_like(matches, self.num_classes)
        if regions is not None:
            inside = lie_inside(all_anchors, regions.gt_boxes)
            labels.masked_fill_(inside & (labels == self.num_classes), IGNORED_CLASS)
        return labels, boxes

    def match_anchors(self, boxes: Boxes, anchors: list[Boxes]) -> tuple[Tensor, Tensor]:
        """Match each anchor of an image with a lesion.

        Args:
            boxes: boxes of the lesions; may be empty.
            anchors: one per FPN level, R in total.

        Returns:
            (R,) int64 indices of lesions and (R,) int8 labels: 1 for a match, 0 for background, -1
            for an ignored anchor.
        """
        if self.atss is not None:
            return self.atss(boxes, anchors, self.anchor_generator.num_anchors)
        overlaps = pairwise_iou(boxes, type(anchors[0]).cat(anchors))
        matches, labels = self.anchor_matcher(overlaps)
        unmatch_untouched(matches, labels, overlaps)
        return matches, labels
