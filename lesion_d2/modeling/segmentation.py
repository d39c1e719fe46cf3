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
_PRIOR = 0.01  # of a foreground pixel, as RETINANET.PRIOR_PROB of a foreground anchor

#: Maps logits (N, K + 1, H, W) and labels (N, H, W), or those of volumes, to a scalar.
SegmentationLoss = Callable[[Tensor, Tensor], Tensor]


def build_segmentation_predictor(
    backbone: Backbone, num_classes: int, *, class_agnostic: bool = False
) -> nn.Conv2d | nn.Conv3d:
    """Build the 1x1 convolution from P0 to the logits of the background and K classes.

    Args:
        backbone: a :class:`UNetFPN`, whose ``decode`` gives P0; with one of volumes the convolution
            is one of volumes.
        num_classes: K.
        class_agnostic: one foreground in place of K classes.

    Raises:
        ValueError: the backbone is no U-FPN.
    """
    if not isinstance(backbone, UNetFPN):
        raise ValueError(
            f"MODEL.BACKBONE.NAME: found a {type(backbone).__name__}, expected a U-FPN for the "
            "segmentation, such as build_vgg_unet_fpn_backbone"
        )
    num_channels = 2 if class_agnostic else num_classes + 1
    predictor = backbone.plain_conv(backbone.decoder_shape.channels, num_channels, kernel_size=1)
    # As RetinaNet's own prior: nearly all pixels are background, and say so from the start.
    nn.init.zeros_(predictor.bias)
    nn.init.constant_(predictor.bias[:1], math.log((1 - _PRIOR) / _PRIOR))
    return predictor


def build_segmentation_loss(cfg) -> SegmentationLoss:
    """The loss that MODEL.RETINA_UNET.SEG_LOSS names.

    Raises:
        ValueError: the name is unknown.
    """
    options = cfg.MODEL.RETINA_UNET
    if options.SEG_LOSS == "ce_dice":
        return segmentation_loss
    if options.SEG_LOSS == "focal":
        return partial(
            focal_segmentation_loss, alpha=options.SEG_FOCAL_ALPHA, gamma=options.SEG_FOCAL_GAMMA
        )
    raise ValueError(
        f"MODEL.RETINA_UNET.SEG_LOSS: found {options.SEG_LOSS!r}, expected 'ce_dice' or 'focal'"
    )


def semantic_labels(
    gt_instances: list[Instances], images: ImageList, *, class_agnostic: bool = False
) -> Tensor:
    """Paint the instances' masks into one label map an image.

    The paper does not say whether the segmentation tells classes apart. In its authors' code it
    does in U-Faster R-CNN+ and DetU-Net, and not in Retina U-Net.

    Args:
        gt_instances: with ``gt_classes`` and ``gt_masks`` (BitMasks, or BitMasks3D of volumes), one
            an image.
        images: the batch.
        class_agnostic: whether the label is 1 inside the masks of all classes.

    Returns:
        (N, H, W), or of volumes (N, D, H, W), int64: 0 for background, class + 1 inside a mask (the
        later instance wins where two overlap), ``IGNORE`` in the masks of a class below 0 and in
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
    """Where an image of a size lies in a padded one."""
    return tuple(slice(side) for side in size)


def segmented_as(classes: Tensor, num_channels: int) -> Tensor:
    """Which foreground channel of the segmentation shows a class.

    Args:
        classes: (n,) int.
        num_channels: K, or 1 of a segmentation that does not tell classes apart.

    Returns:
        (n,) int: the classes, or all 0.
    """
    return torch.zeros_like(classes) if num_channels == 1 else classes


def resize_probabilities(
    probabilities: Tensor, image_size: tuple[int, ...], output_size: tuple[int, ...]
) -> Tensor:
    """Bring the probabilities of one image of a batch to output size.

    Args:
        probabilities: (K + 1, H, W), or (K + 1, D, H, W), of the padded image.
        image_size: height and width, or depth, height and width, of the image without its padding.
        output_size: the same of the output.

    Returns:
        (K + 1, *output_size), bilinear or trilinear; a view where the two sizes are the same.
    """
    cut = probabilities[(slice(None), *_corner(image_size))]
    if tuple(image_size) == tuple(output_size):
        return cut
    mode = _INTERPOLATIONS[len(image_size)]
    return F.interpolate(cut[None], size=output_size, mode=mode, align_corners=False)[0]
