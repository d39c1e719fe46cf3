import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ...ignore_regions import IGNORED_CLASS, lie_inside, split_regions


@META_ARCH_REGISTRY.register()
class LesionRetinaNet(RetinaNet):
    """Detectron2's RetinaNet with a choice of what becomes of lesions that no anchor fits.

    Detectron2 takes the best anchors of every lesion for positive, however low their IoU is. The
    RetinaNet of Zlocha et al. (keras-retinanet) does not: where no anchor reaches the highest of
    MODEL.RETINANET.IOU_THRESHOLDS, none is positive, and the lesion trains as background.

    Negative anchors in a region to ignore do not count (:mod:`lesion_d2.ignore_regions`).

    Args:
        allow_low_quality_matches: whether the best anchors of a lesion are positive below the
            threshold too.
        kwargs: see :class:`RetinaNet`.
    """

    @configurable
    def __init__(self, *, allow_low_quality_matches: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.anchor_matcher.allow_low_quality_matches = allow_low_quality_matches

    @classmethod
    def from_config(cls, cfg) -> dict:
        allows = cfg.MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES
        return {**super().from_config(cfg), "allow_low_quality_matches": allows}

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As in Detectron2; labels are -1 for anchors in regions to ignore that fit no lesion."""
        pairs = list(map(split_regions, gt_instances))
        labels, boxes = super().label_anchors(anchors, [lesions for lesions, _ in pairs])
        for label, (_, regions) in zip(labels, pairs, strict=True):
            if regions is not None:
                inside = lie_inside(Boxes.cat(anchors), regions.gt_boxes)
                label.masked_fill_(inside & (label == self.num_classes), IGNORED_CLASS)
        return labels, boxes
