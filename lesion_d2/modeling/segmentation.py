"""The auxiliary task of all models with a U-FPN: segmentation on P0."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from .backbone import UNetFPN
from .losses import IGNORE, focal_segmentation_loss, segmentation_loss

_INTERPOLATIONS = {2: "bilinear", 3: "trilinear"}  # by the number of axes
_PRIOR = 0.01  # prior probability of foreground pixels, as RETINANET.PRIOR_PROB of anchors

#: A function of logits (N, K + 1, H, W) and labels (N, H, W), or those of volumes, to a scalar.
SegmentationLoss = Callable[[Tensor, Tensor], Tensor]


def build_segmentation_predictor(
    backbone: Backbone, num_classes: int, *, class_agnostic: bool = False
) -> nn.Conv2d | nn.Conv3d:
    """Build the 1x1 convolution from P0 to the logits of the background and K classes.

    Args:
        backbone: a :class:`UNetFPN`, whose ``decode`` returns P0; for a backbone of volumes the
            convolution is 3-D.
        num_classes: K.
        class_agnostic: use one foreground class instead of K.

    Raises:
        ValueError: the backbone is not a U-FPN.
    """
    if not isinstance(backbone, UNetFPN):
        raise ValueError(
            f"MODEL.BACKBONE.NAME: found a {type(backbone).__name__}, expected a U-FPN for the "
            "segmentation, such as build_vgg_unet_fpn_backbone"
        )
    num_channels = 2 if class_agnostic else num_classes + 1
    predictor = backbone.plain_conv(backbone.decoder_shape.channels, num_channels, kernel_size=1)
    # Like RetinaNet's prior: nearly all pixels are background at initialization.
    nn.init.zeros_(predictor.bias)
    nn.init.constant_(predictor.bias[:1], math.log((1 - _PRIOR) / _PRIOR))
    return predictor


def build_segmentation_loss(cfg) -> SegmentationLoss:
    """The loss that MODEL.SEG_HEAD.LOSS_TYPE names.

    Raises:
        ValueError: the name is unknown.
    """
    options = cfg.MODEL.SEG_HEAD
    if options.LOSS_TYPE == "ce_dice":
        return segmentation_loss
    if options.LOSS_TYPE == "focal":
        return partial(
            focal_segmentation_loss, alpha=options.FOCAL_ALPHA, gamma=options.FOCAL_GAMMA
        )
    raise ValueError(
        f"MODEL.SEG_HEAD.LOSS_TYPE: found {options.LOSS_TYPE!r}, expected 'ce_dice' or 'focal'"
    )


def semantic_labels(
    gt_instances: list[Instances], images: ImageList, *, class_agnostic: bool = False
) -> Tensor:
    """Combine the instances' masks into one label map per image.

    The paper does not say whether the segmentation distinguishes classes. In the published code it
    does in U-Faster R-CNN+ and DetU-Net, but not in Retina U-Net.

    Args:
        gt_instances: with ``gt_classes`` and ``gt_masks`` (BitMasks, or BitMasks3D for volumes),
            one per image.
        images: the batch.
        class_agnostic: use label 1 for all classes.

    Returns:
        (N, H, W), or (N, D, H, W) for volumes, int64: 0 for background, class + 1 inside a mask
        (the later instance if masks overlap), ``IGNORE`` inside masks of negative classes and in
        the padding of the batch.
    """
    sides = images.tensor.shape[2:]
    labels = torch.full(
        (len(gt_instances), *sides), IGNORE, dtype=torch.int64, device=images.tensor.device
    )
    for padded, instances, size in zip(labels, gt_instances, images.image_sizes, strict=True):
        label = padded[_corner(size)]
        label.zero_()
        if len(instances) == 0:
            continue
        classes = instances.gt_classes
        foreground = torch.ones_like(classes) if class_agnostic else classes + 1
        values = foreground.masked_fill(classes < 0, IGNORE)
        for mask, value in zip(instances.gt_masks.tensor, values, strict=True):
            label.masked_fill_(mask, value)
    return labels


def _corner(size: tuple[int, ...]) -> tuple[slice, ...]:
    """The index of an image of a size in a padded one."""
    return tuple(slice(side) for side in size)


def segmented_as(classes: Tensor, num_channels: int) -> Tensor:
    """Return the foreground channel of the segmentation for each class.

    Args:
        classes: (n,) int.
        num_channels: K, or 1 for a class-agnostic segmentation.

    Returns:
        (n,) int: the classes, or zeros.
    """
    return torch.zeros_like(classes) if num_channels == 1 else classes


def resize_probabilities(
    probabilities: Tensor, image_size: tuple[int, ...], output_size: tuple[int, ...]
) -> Tensor:
    """Resize the probabilities of one image of a batch to output size.

    Args:
        probabilities: (K + 1, H, W), or (K + 1, D, H, W), for the padded image.
        image_size: height and width, or depth, height and width, of the image without its padding.
        output_size: the same for the output.

    Returns:
        (K + 1, *output_size), bilinear or trilinear; a view if both sizes are equal.
    """
    cut = probabilities[(slice(None), *_corner(image_size))]
    if tuple(image_size) == tuple(output_size):
        return cut
    mode = _INTERPOLATIONS[len(image_size)]
    return F.interpolate(cut[None], size=output_size, mode=mode, align_corners=False)[0]
