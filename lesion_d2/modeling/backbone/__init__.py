from .slice_images import (
    ALL_IMAGES,
    SliceImages,
    build_slice_images_backbone,
    count_images,
    reuse_features,
)
from .unet_fpn import LastLevelP6, ResNetWithStem, UNetFPN, build_resnet_unet_fpn_backbone
from .vgg import VGG, build_vgg_backbone, build_vgg_fpn_backbone, build_vgg_unet_fpn_backbone

__all__ = [
    "ALL_IMAGES",
    "VGG",
    "LastLevelP6",
    "ResNetWithStem",
    "SliceImages",
    "UNetFPN",
    "build_resnet_unet_fpn_backbone",
    "build_slice_images_backbone",
    "build_vgg_backbone",
    "build_vgg_fpn_backbone",
    "build_vgg_unet_fpn_backbone",
    "count_images",
    "reuse_features",
]
