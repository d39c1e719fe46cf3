from .attention import AttentionGate, record_attention
from .backbone import VGG, UNetFPN
from .calibration import calibrate_scores, mask_agreement
from .losses import focal_segmentation_loss, segmentation_loss
from .meta_arch import DetUNet, LesionRCNN, RetinaUNet
from .roi_heads import ULDorOutputLayers, ULDorROIHeads

__all__ = [
    "VGG",
    "AttentionGate",
    "DetUNet",
    "LesionRCNN",
    "RetinaUNet",
    "ULDorOutputLayers",
    "ULDorROIHeads",
    "UNetFPN",
    "calibrate_scores",
    "focal_segmentation_loss",
    "mask_agreement",
    "record_attention",
    "segmentation_loss",
]
