from .backbone import UNetFPN, build_resnet_unet_fpn_backbone
from .losses import segmentation_loss
from .meta_arch import RetinaUNet

__all__ = ["RetinaUNet", "UNetFPN", "build_resnet_unet_fpn_backbone", "segmentation_loss"]
