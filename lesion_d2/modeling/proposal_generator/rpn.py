import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ...ignore_regions import lie_inside, split_regions
from ..shem import box_loss_per_image, sample_positives, shem_loss


@PROPOSAL_GENERATOR_REGISTRY.register()
class LesionRPN(RPN):
    """Detectron2's RPN that knows annotations and regions to ignore, and SHEM.

    Detectron2's RetinaNet and ROI heads leave out anchors and proposals of annotations with a class
    below 0 by themselves; its RPN looks at no class. Negative anchors in a region to ignore do not
    count either (:mod:`lesion_d2.ignore_regions`).

    Args:
        shem_pool: negatives are drawn from the hardest so many times their number (Jaeger et al.,
            section 4.2), and the losses are :func:`shem_loss` and :func:`box_loss_per_image`, as in
            the authors' code; of an image at most ``positive_fraction`` of ``batch_size_per_image``
            anchors are positive ones. 0 for Detectron2's drawing and losses.
        kwargs: see :class:`RPN`.
    """

    @configurable
    def __init__(self, *, shem_pool: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.shem_pool = shem_pool

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        shem_pool = cfg.MODEL.LESION_RCNN.SHEM_POOL
        return {**super().from_config(cfg, input_shape), "shem_pool": shem_pool}

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As in Detectron2, where anchors are drawn from those that are not to be ignored.

        With SHEM all negative ones keep their label: :meth:`losses` draws from them.

        Args:
            anchors: one an FPN level.
            gt_instances: with ``gt_boxes`` and ``gt_classes``, one an image.

        Returns:
            Labels (R,) 1, 0 or, for what does not count, -1, and matched boxes (R, 4), one an
            image.
        """
        pairs = list(map(split_regions, gt_instances))
        gt_instances = [annotated for annotated, _ in pairs]
        # One call of _subsample_labels an image, in their order.
        self._ignored = iter([self._on_ignored(anchors, instances) for instances in gt_instances])
        self._in_regions = iter(
            [r if r is None else lie_inside(Boxes.cat(anchors), r.gt_boxes) for _, r in pairs]
        )
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
        in_regions = next(self._in_regions)
        if in_regions is not None:
            label.masked_fill_(in_regions & (label == 0), -1)
        if self.shem_pool == 0:
            return super()._subsample_labels(label)
        is_positive = label == 1
        limit = int(self.batch_size_per_image * self.positive_fraction)
        label[is_positive] = -1
        label[sample_positives(is_positive, limit)] = 1
        return label

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """As in Detectron2; other ones with SHEM."""
        if self.shem_pool == 0:
            return super().losses(
                anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes
            )
        labels, logits = torch.stack(gt_labels), cat(pred_objectness_logits, dim=1)
        is_positive = labels == 1
        num_positive = is_positive.sum().item() / len(labels)
        get_event_storage().put_scalar("rpn/num_pos_anchors", num_positive)
        # To the loss a lesion is class 0 of one, and background comes after it.
        classes = labels.where(labels < 0, 1 - labels).long()
        losses = {
            "loss_rpn_cls": shem_loss(
                logits[..., None], classes, pool=self.shem_pool, softmax=False
            ),
            "loss_rpn_loc": box_loss_per_image(
                anchors,
                self.box2box_transform,
                pred_anchor_deltas,
                gt_boxes,
                is_positive,
                box_reg_loss_type=self.box_reg_loss_type,
                smooth_l1_beta=self.smooth_l1_beta,
            ),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}
