from .unet_fpn import LastLevelP6, ResNetWithStem, UNetFPN, build_resnet_unet_fpn_backbone
from .vgg import VGG, build_vgg_backbone, build_vgg_fpn_backbone, build_vgg_unet_fpn_backbone

__all__ = [
    "VGG",
    "LastLevelP6",
    "ResNetWithStem",
    "UNetFPN",
    "build_resnet_unet_fpn_backbone",
    "build_vgg_backbone",
    "build_vgg_fpn_backbone",
    "build_vgg_unet_fpn_backbone",
]
