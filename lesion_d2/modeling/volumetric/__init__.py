"""Parts of models in 3-D."""

from .anchor_generator import AnchorGenerator3D
from .box_head import FastRCNNConvFCHead3D, FastRCNNOutputLayers3D
from .box_regression import Box2BoxTransform3D
from .conv import Conv3d, conv3d
from .fpn import FPN3D, UNetFPN3D, build_resnet_fpn_3d_backbone, build_resnet_unet_fpn_3d_backbone
from .mask_head import MaskRCNNConvUpsampleHead3D
from .norms import FrozenBatchNorm3d, get_norm_3d
from .poolers import ROIPooler3D
from .resnet import ResNet3D
from .retinanet_head import RetinaNetHead3D
from .roi_heads import LesionROIHeads3D
from .rpn import LesionRPN3D, StandardRPNHead3D
from .shape import VolumeShape

__all__ = [
    "FPN3D",
    "AnchorGenerator3D",
    "Box2BoxTransform3D",
    "Conv3d",
    "FastRCNNConvFCHead3D",
    "FastRCNNOutputLayers3D",
    "FrozenBatchNorm3d",
    "LesionROIHeads3D",
    "LesionRPN3D",
    "MaskRCNNConvUpsampleHead3D",
    "ROIPooler3D",
    "ResNet3D",
    "RetinaNetHead3D",
    "StandardRPNHead3D",
    "UNetFPN3D",
    "VolumeShape",
    "build_resnet_fpn_3d_backbone",
    "build_resnet_unet_fpn_3d_backbone",
    "conv3d",
    "get_norm_3d",
]
