"""Backbones for stacks of slices: U-FPN, VGG, DenseNet, and features of three-slice images."""

from .densenet import DenseNet, build_densenet_backbone
from .fused_fpn import FusedImages, build_fused_fpn_backbone
from .slice_images import (
    ALL_IMAGES,
    ImageStack,
    SliceImages,
    batch_images,
    build_slice_images_backbone,
    count_images,
    reuse_features,
)
from .unet_fpn import (
    LastLevelP6,
    ResNetWithStem,
    TopDownFPN,
    UNetFPN,
    build_fpn,
    build_resnet_fpn_stages_backbone,
    build_resnet_unet_fpn_backbone,
    build_unet_fpn,
)
from .vgg import VGG, build_vgg_backbone, build_vgg_fpn_backbone, build_vgg_unet_fpn_backbone

__all__ = [
    "ALL_IMAGES",
    "VGG",
    "DenseNet",
    "FusedImages",
    "ImageStack",
    "LastLevelP6",
    "ResNetWithStem",
    "SliceImages",
    "TopDownFPN",
    "UNetFPN",
    "batch_images",
    "build_densenet_backbone",
    "build_fpn",
    "build_fused_fpn_backbone",
    "build_resnet_fpn_stages_backbone",
    "build_resnet_unet_fpn_backbone",
    "build_slice_images_backbone",
    "build_unet_fpn",
    "build_vgg_backbone",
    "build_vgg_fpn_backbone",
    "build_vgg_unet_fpn_backbone",
    "count_images",
    "reuse_features",
]
