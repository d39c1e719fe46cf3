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
    """StandardROIHeads that can draw the proposals it learns from by SHEM (Jaeger et al., 4.2).

    The paper runs all models with the same scheme, and does not tell its details for two stages. As
    in its authors' code: of an image at most ``positive_fraction`` of ``batch_size_per_image``
    proposals are positive ones, drawn at random, and as many negative ones as keep that fraction
    (one at least) are drawn from the hardest, by the probability of a class that the box head
    itself gives them, for which it looks at all proposals first. The losses are Detectron2's.

    Args:
        shem_pool: negatives are drawn from the hardest so many times their number; 0 for
            Detectron2's drawing.
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
            # One call of _sample_proposals an image, in their order.
            self._hardness = self._foreground_probabilities(features, proposals)
        return super().forward(images, features, proposals, targets)

    @torch.no_grad()
    def _foreground_probabilities(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> Iterator[Tensor]:
        """(R_i,) of the R_i proposals of every image: the highest probability of a class."""
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
        # Annotated boxes, where they are among the proposals, come last; none of them is negative.
        num_others = len(is_negative) - len(hardness)
        hardness = torch.cat([hardness, hardness.new_full((num_others,), -1)])
        limit = int(self.batch_size_per_image * self.positive_fraction)
        is_positive = (classes >= 0) & ~is_negative
        hardness = hardness.masked_fill(~is_negative, -1)
        numbers = torch.stack([is_positive.sum(), (~(hardness < 0)).sum()])
        num_positive, num_negative = numbers.tolist()  # the one wait for a GPU
        positives = sample_positives(is_positive, limit, count=num_positive)
        number = max(1, int(len(positives) / self.positive_fraction) - len(positives))
        negatives = sample_hard_negatives(hardness, number, pool=self.shem_pool, count=num_negative)
        chosen = torch.cat([positives, negatives])
        return chosen, classes[chosen]
