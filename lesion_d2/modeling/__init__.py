from .attention import AttentionGate, ContextualAttention, SpatialAttention, record_attention
from .backbone import VGG, SliceImages, UNetFPN, reuse_features
from .calibration import calibrate_scores, mask_agreement
from .losses import focal_segmentation_loss, segmentation_loss
from .meta_arch import RFCN3DCE, DetUNet, LesionRCNN, RetinaUNet
from .roi_heads import PositionSensitivePooler, RFCNROIHeads, ULDorOutputLayers, ULDorROIHeads

__all__ = [
    "RFCN3DCE",
    "VGG",
    "AttentionGate",
    "ContextualAttention",
    "DetUNet",
    "LesionRCNN",
    "PositionSensitivePooler",
    "RFCNROIHeads",
    "RetinaUNet",
    "SliceImages",
    "SpatialAttention",
    "ULDorOutputLayers",
    "ULDorROIHeads",
    "UNetFPN",
    "calibrate_scores",
    "focal_segmentation_loss",
    "mask_agreement",
    "record_attention",
    "reuse_features",
    "segmentation_loss",
]
