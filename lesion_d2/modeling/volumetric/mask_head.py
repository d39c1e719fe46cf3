"""Mask R-CNN's head in 3-D."""

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling.roi_heads import (
    ROI_MASK_HEAD_REGISTRY,
    BaseMaskRCNNHead,
    MaskRCNNConvUpsampleHead,
)
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor, nn

from ..waiting import put_scalar
from .conv import add_hidden_convs
from .shape import VolumeShape


def mask_loss(logits: Tensor, instances: list[Instances]) -> Tensor:
    """Mask R-CNN's loss: the mean binary cross entropy of the masks of the regions' classes.

    In 2-D it is Detectron2's ``mask_rcnn_loss``.

    Args:
        logits: (B, K, d, h, w) for B regions, or (B, 1, d, h, w) for class-agnostic masks.
        instances: one per image, with B regions in total and ``proposal_boxes``, ``gt_classes`` and
            ``gt_masks``.

    Returns:
        A scalar; 0 without regions.
    """
    instances = [each for each in instances if len(each) > 0]
    if not instances:
        return logits.sum() * 0
    size = tuple(logits.shape[2:])
    truth = torch.cat(
        [x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, size) for x in instances]
    ).to(logits.device)
    if logits.shape[1] == 1:
        logits = logits[:, 0]
    else:
        classes = torch.cat([x.gt_classes for x in instances])
        logits = logits[torch.arange(len(logits), device=logits.device), classes]
    is_right = (logits.detach() > 0) == truth
    put_scalar("mask_rcnn/accuracy", is_right.float().mean())
    return F.binary_cross_entropy_with_logits(logits, truth.to(torch.float32), reduction="mean")


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNConvUpsampleHead3D(MaskRCNNConvUpsampleHead):
    """Detectron2's :class:`MaskRCNNConvUpsampleHead` for regions of volumes.

    Args:
        input_shape: channels, depth, height and width of a pooled region; masks have twice this
            resolution along each axis.
        num_classes: K, or 1 for class-agnostic masks.
        conv_dims: channels of the 3x3x3 convolutions and, last, of the upsampling.
        conv_norm: normalization of the convolutions, see :func:`get_norm_3d`.
        kwargs: see :class:`BaseMaskRCNNHead`.
    """

    @configurable
    def __init__(
        self,
        input_shape: VolumeShape,
        *,
        num_classes: int,
        conv_dims: Sequence[int],
        conv_norm: str = "",
        **kwargs,
    ):
        BaseMaskRCNNHead.__init__(self, **kwargs)
        channels = add_hidden_convs(
            self, "mask_fcn", input_shape.channels, conv_dims[:-1], conv_norm
        )
        self.deconv = nn.ConvTranspose3d(channels, conv_dims[-1], kernel_size=2, stride=2)
        weight_init.c2_msra_fill(self.deconv)
        self.deconv_relu = nn.ReLU()
        self.predictor = nn.Conv3d(conv_dims[-1], num_classes, kernel_size=1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """Compute losses in training; otherwise add masks of the predicted classes to the
        instances.

        Args:
            x: (B, C, d, h, w), pooled regions of all images in order.
            instances: one per image, with B regions in total: in training as for :func:`mask_loss`,
                otherwise with ``pred_classes``.

        Returns:
            ``loss_mask``, or ``instances`` with ``pred_masks`` (n, 1, 2 d, 2 h, 2 w), probabilities
            inside their boxes.
        """
        logits = self.layers(x)
        if self.training:
            return {"loss_mask": mask_loss(logits, instances) * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances
