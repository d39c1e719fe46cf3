"""ROI heads with SHEM (Jaeger et al., section 4.2)."""

from collections.abc import Iterator

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor

from ..shem import sample_hard_negatives, sample_positives
from .regions import RegionROIHeads


@ROI_HEADS_REGISTRY.register()
class LesionROIHeads(RegionROIHeads):
    """StandardROIHeads with optional sampling of proposals by SHEM (Jaeger et al., 4.2).

    The paper uses SHEM for all models, without details for two stages. We follow the published
    code: per image, at most ``positive_fraction`` of ``batch_size_per_image`` proposals are
    positive, sampled at random. The number of negatives keeps that fraction (at least one); they
    are sampled from the hardest by the class probability of the box head, which is first applied to
    all proposals. The losses are Detectron2's.

    Args:
        shem_pool: negatives are sampled from a pool of the hardest, this many times their number; 0
            for Detectron2's sampling.
        kwargs: see :class:`RegionROIHeads`.
    """

    @configurable
    def __init__(self, *, shem_pool: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.shem_pool = shem_pool

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        """Arguments of ``LesionROIHeads(cfg, input_shape)``."""
        shem_pool = cfg.MODEL.LESION_RCNN.SHEM_POOL
        return {**super().from_config(cfg, input_shape), "shem_pool": shem_pool}

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As in Detectron2."""
        if self.training and self.shem_pool > 0:
            # _sample_proposals is called once per image, in order.
            self._hardness = self._foreground_probabilities(features, proposals)
        return super().forward(images, features, proposals, targets)

    @torch.no_grad()
    def _foreground_probabilities(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> Iterator[Tensor]:
        """The highest class probability of the proposals of every image, (R_i,) each."""
        levels = [features[name] for name in self.box_in_features]
        pooled = self.box_pooler(levels, [x.proposal_boxes for x in proposals])
        predictions = self.box_predictor(self.box_head(pooled))
        probabilities = self.box_predictor.predict_probs(predictions, proposals)
        return iter([p[:, :-1].amax(dim=1) for p in probabilities])

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.shem_pool == 0:
            return super()._sample_proposals(matched_idxs, matched_labels, gt_classes)
        classes = torch.full_like(matched_idxs, self.num_classes)
        if len(gt_classes) > 0:
            classes = gt_classes[matched_idxs].where(matched_labels == 1, self.num_classes)
            classes.masked_fill_(matched_labels == -1, -1)
        is_negative = classes == self.num_classes
        hardness = next(self._hardness)
        # Ground-truth boxes among the proposals come last; none of them is negative.
        num_others = len(is_negative) - len(hardness)
        hardness = torch.cat([hardness, hardness.new_full((num_others,), -1)])
        limit = int(self.batch_size_per_image * self.positive_fraction)
        is_positive = (classes >= 0) & ~is_negative
        hardness = hardness.masked_fill(~is_negative, -1)
        numbers = torch.stack([is_positive.sum(), (~(hardness < 0)).sum()])
        num_positive, num_negative = numbers.tolist()  # the only GPU synchronization
        positives = sample_positives(is_positive, limit, count=num_positive)
        number = max(1, int(len(positives) / self.positive_fraction) - len(positives))
        negatives = sample_hard_negatives(hardness, number, pool=self.shem_pool, count=num_negative)
        chosen = torch.cat([positives, negatives])
        return chosen, classes[chosen]
