from .unet_fpn import LastLevelP6, ResNetWithStem, UNetFPN, build_resnet_unet_fpn_backbone

__all__ = ["LastLevelP6", "ResNetWithStem", "UNetFPN", "build_resnet_unet_fpn_backbone"]
