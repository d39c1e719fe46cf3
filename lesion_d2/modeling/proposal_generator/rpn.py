"""The RPN."""

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from detectron2.utils.memory import retry_if_cuda_oom
from torch import Tensor

from ...structures import pairwise_iou
from ...structures.ignore_regions import lie_inside, split_regions
from ..box_losses import box_regression_loss, check_box_loss
from ..matching import unmatch_untouched
from ..shem import box_loss_per_image, count_anchors, draw_positives, shem_loss
from ..waiting import put_scalar, rows_that_count, sum_of_rows
from .proposals import find_top_proposals


@PROPOSAL_GENERATOR_REGISTRY.register()
class LesionRPN(RPN):
    """Detectron2's RPN with support for regions to ignore and for SHEM, in 2-D and 3-D.

    Detectron2's RetinaNet and ROI heads ignore anchors and proposals that match annotations of
    negative classes; its RPN does not use classes. Negative anchors inside a region to ignore are
    ignored, too (:mod:`lesion_d2.structures.ignore_regions`).

    Args:
        shem_pool: negatives are sampled from a pool of the hardest, this many times their number
            (Jaeger et al., section 4.2). The losses are :func:`shem_loss` and
            :func:`box_loss_per_image`, as in the published code; at most ``positive_fraction`` of
            ``batch_size_per_image`` anchors per image are positive. 0 for Detectron2's sampling and
            losses.
        kwargs: see :class:`RPN`.

    Raises:
        ValueError: the box regression loss is unknown, or only available in 2-D.
    """

    @configurable
    def __init__(self, *, shem_pool: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.shem_pool = shem_pool
        box_dim, key = self.anchor_generator.box_dim, "MODEL.RPN.BBOX_REG_LOSS_TYPE"
        check_box_loss(self.box_reg_loss_type, box_dim, key=key)

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        """Arguments of ``LesionRPN(cfg, input_shape)``."""
        shem_pool = cfg.MODEL.LESION_RCNN.SHEM_POOL
        return {**super().from_config(cfg, input_shape), "shem_pool": shem_pool}

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As in Detectron2; anchors are sampled from those that are not ignored.

        With SHEM all negatives keep their label: :meth:`losses` samples from them.

        Args:
            anchors: one per FPN level.
            gt_instances: with ``gt_boxes`` and ``gt_classes``, one per image.

        Returns:
            Labels (R,), 1, 0 or, for ignored anchors, -1, and matched boxes (R, 4), one per image.
        """
        everywhere = type(anchors[0]).cat(anchors)
        pairs = [self._label(everywhere, instances) for instances in gt_instances]
        labels, boxes = [labels for labels, _ in pairs], [boxes for _, boxes in pairs]
        if self.shem_pool == 0:
            return list(map(self._subsample_labels, labels)), boxes
        classes = _as_classes(torch.stack(labels))
        limit = int(self.batch_size_per_image * self.positive_fraction)
        classes, _ = draw_positives(classes, count_anchors(classes, 1), limit, num_classes=1)
        return list(_as_classes(classes)), boxes

    def _label(self, anchors: Boxes, instances: Instances) -> tuple[Tensor, Tensor]:
        """Labels (R,) and matched boxes (R, 4) of one image before sampling."""
        instances, regions = split_regions(instances)
        gt_boxes = instances.gt_boxes
        overlaps = retry_if_cuda_oom(pairwise_iou)(gt_boxes, anchors)
        matches, labels = retry_if_cuda_oom(self.anchor_matcher)(overlaps)
        unmatch_untouched(matches, labels, overlaps.to(labels.device))
        # If GPU memory is insufficient, Detectron2 matches on the CPU.
        matches, labels = matches.to(gt_boxes.device), labels.to(gt_boxes.device)
        if self.anchor_boundary_thresh >= 0:
            inside = anchors.inside_box(instances.image_size, self.anchor_boundary_thresh)
            labels.masked_fill_(~inside, -1)
        if len(instances) > 0:
            ignored = instances.gt_classes < 0
            labels.masked_fill_(ignored[matches] & (labels == 1), -1)
        if regions is not None:
            labels.masked_fill_(lie_inside(anchors, regions.gt_boxes) & (labels == 0), -1)
        if len(instances) == 0:
            return labels, torch.zeros_like(anchors.tensor)
        return labels, gt_boxes[matches].tensor

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, ...]],
    ) -> list[Instances]:
        """As in Detectron2, see :func:`find_top_proposals`."""
        return find_top_proposals(
            anchors,
            pred_objectness_logits,
            pred_anchor_deltas,
            image_sizes,
            self.box2box_transform,
            nms_threshold=self.nms_thresh,
            pre_nms_topk=self.pre_nms_topk[self.training],
            post_nms_topk=self.post_nms_topk[self.training],
            min_box_size=self.min_box_size,
            is_training=self.training,
        )

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """As in Detectron2; with SHEM, see ``shem_pool``.

        Args:
            anchors: one per level, R in total, with B = 4 or 6 numbers.
            pred_objectness_logits: (N, R_i), one per level.
            gt_labels, gt_boxes: see :meth:`label_and_sample_anchors`.
            pred_anchor_deltas: (N, R_i, B), one per level.

        Returns:
            ``loss_rpn_cls`` and ``loss_rpn_loc``.
        """
        labels, logits = torch.stack(gt_labels), cat(pred_objectness_logits, dim=1)
        is_positive = labels == 1
        put_scalar("rpn/num_pos_anchors", is_positive.sum().double() / len(labels))
        boxes = (anchors, self.box2box_transform, pred_anchor_deltas, gt_boxes, is_positive)
        options = {
            "box_reg_loss_type": self.box_reg_loss_type,
            "smooth_l1_beta": self.smooth_l1_beta,
        }
        if self.shem_pool > 0:
            classes = _as_classes(labels).long()
            shem = {"pool": self.shem_pool, "counts": count_anchors(classes, 1)}
            loss_cls = shem_loss(logits[..., None], classes, softmax=False, **shem)
            loss_loc = box_loss_per_image(*boxes, **options, counts=shem["counts"])
        else:
            put_scalar("rpn/num_neg_anchors", (labels == 0).sum().double() / len(labels))
            number = self.batch_size_per_image * len(labels)  # at most
            counts, (rows, targets) = rows_that_count(labels >= 0, logits, labels, at_most=number)
            loss_cls = F.binary_cross_entropy_with_logits(
                rows, targets.to(torch.float32), reduction="none"
            )
            loss_cls = sum_of_rows(loss_cls, counts) / number
            loss_loc = box_regression_loss(*boxes, **options, at_most=number) / number
        losses = {"loss_rpn_cls": loss_cls, "loss_rpn_loc": loss_loc}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}


def _as_classes(labels: Tensor) -> Tensor:
    """Convert labels to the classes of SHEM, lesion 0 and background 1, or back."""
    return labels.where(labels < 0, 1 - labels)
