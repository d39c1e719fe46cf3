"""Fast R-CNN's head and outputs in 3-D."""

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_BOX_HEAD_REGISTRY,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
)
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ...layers import batched_nms
from ..box_losses import check_box_loss, matched_box_loss
from .box_regression import Box2BoxTransform3D
from .conv import add_hidden_convs
from .shape import VolumeShape


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead3D(FastRCNNConvFCHead):
    """Detectron2's :class:`FastRCNNConvFCHead` for regions of volumes.

    Args:
        input_shape: channels, depth, height and width of a pooled region.
        conv_dims: channels of the 3x3x3 convolutions, which precede the fully connected layers.
        fc_dims: channels of the fully connected layers. The published code of Jaeger et al. has
            two, with four times the pyramid's channels.
        conv_norm: normalization of the convolutions, see :func:`get_norm_3d`.
    """

    @configurable
    def __init__(
        self,
        input_shape: VolumeShape,
        *,
        conv_dims: Sequence[int],
        fc_dims: Sequence[int],
        conv_norm: str = "",
    ):
        nn.Sequential.__init__(self)
        channels = add_hidden_convs(self, "conv", input_shape.channels, conv_dims, conv_norm)
        self.add_module("flatten", nn.Flatten())
        channels *= input_shape.depth * input_shape.height * input_shape.width
        for number, fc_dim in enumerate(fc_dims, start=1):
            layer = nn.Linear(channels, fc_dim)
            weight_init.c2_xavier_fill(layer)
            self.add_module(f"fc{number}", layer)
            self.add_module(f"fc_relu{number}", nn.ReLU())
            channels = fc_dim
        self._num_outputs = channels

    @property
    def output_shape(self) -> ShapeSpec:
        """Shape of the output for a region: channels only."""
        return ShapeSpec(channels=self._num_outputs)


class FastRCNNOutputLayers3D(FastRCNNOutputLayers):
    """Detectron2's :class:`FastRCNNOutputLayers` for boxes in volumes.

    Args:
        args, kwargs: see :class:`FastRCNNOutputLayers`.

    Raises:
        ValueError: MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE is not a loss for boxes in 3-D.
    """

    @configurable
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_box_loss(self.box_reg_loss_type, 6, key="MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE")

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        """Arguments of ``FastRCNNOutputLayers3D(cfg, input_shape)``."""
        weights = cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS
        return {
            **super().from_config(cfg, input_shape),
            "box2box_transform": Box2BoxTransform3D(weights),
        }

    def box_reg_loss(
        self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor
    ) -> Tensor:
        """As in Detectron2: the sum over foreground regions, divided by the number of all regions.

        Args:
            proposal_boxes: (R, 6).
            gt_boxes: (R, 6).
            pred_deltas: (R, K * 6), or (R, 6) for all classes.
            gt_classes: (R,), K for background, below 0 for ignored regions.
        """
        rows = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero()[:, 0]
        by_class = pred_deltas.view(len(pred_deltas), -1, proposal_boxes.shape[1])
        deltas = by_class[rows, gt_classes[rows] if by_class.shape[1] > 1 else 0]
        loss = matched_box_loss(
            self.box2box_transform,
            proposal_boxes[rows],
            deltas,
            gt_boxes[rows],
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        return loss / max(len(gt_classes), 1)

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """As in Detectron2, with boxes of the proposals' class."""
        found = [
            detect_in_image(
                type(each.proposal_boxes),
                boxes,
                scores,
                each.image_size,
                score_threshold=self.test_score_thresh,
                nms_threshold=self.test_nms_thresh,
                max_detections=self.test_topk_per_image,
            )
            for each, boxes, scores in zip(
                proposals,
                self.predict_boxes(predictions, proposals),
                self.predict_probs(predictions, proposals),
                strict=True,
            )
        ]
        return [instances for instances, _ in found], [regions for _, regions in found]


def detect_in_image(
    kind: type[Boxes],
    boxes: Tensor,
    scores: Tensor,
    image_size: tuple[int, ...],
    *,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
) -> tuple[Instances, Tensor]:
    """Select the detections of an image from its regions, as Detectron2's Fast R-CNN in 2-D.

    Args:
        kind: class of the detections' boxes, with B columns.
        boxes: (R, K * B) for class-specific boxes, or (R, B) for class-agnostic ones.
        scores: (R, K + 1); the last column is the background.
        image_size: boxes are clipped to it.
        score_threshold: keep detections with higher scores.
        nms_threshold: IoU above which NMS drops the lower-scored of two detections of a class.
        max_detections: maximum number per image; below 0 for no limit.

    Returns:
        ``pred_boxes``, ``scores`` and ``pred_classes`` by descending score, and their region
        indices (n,).
    """
    box_dim = kind(boxes.new_zeros(0)).tensor.shape[1]
    is_finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    regions = is_finite.nonzero()[:, 0]
    boxes, scores = boxes[regions], scores[regions, :-1]
    cut = kind(boxes.reshape(-1, box_dim))
    cut.clip(image_size)
    boxes = cut.tensor.view(len(scores), -1, box_dim)  # R x K or 1 x B
    rows, classes = (scores > score_threshold).nonzero().unbind(dim=1)
    boxes = boxes[rows, classes if boxes.shape[1] > 1 else torch.zeros_like(classes)]
    scores = scores[rows, classes]
    keep = batched_nms(boxes, scores, classes, nms_threshold)
    if max_detections >= 0:
        keep = keep[:max_detections]
    instances = Instances(image_size, pred_boxes=kind(boxes[keep]), scores=scores[keep])
    instances.pred_classes = classes[keep]
    return instances, regions[rows[keep]]
