from .attention import AttentionGate, ContextualAttention, SpatialAttention, record_attention
from .backbone import (
    VGG,
    DenseNet,
    FusedImages,
    ImageStack,
    SliceImages,
    UNetFPN,
    batch_images,
    reuse_features,
)
from .calibration import calibrate_scores, mask_agreement
from .losses import focal_segmentation_loss, segmentation_loss
from .meta_arch import (
    RFCN3DCE,
    DetUNet,
    LesionRCNN,
    LesionRetinaNet,
    MeanTeacher,
    RetinaNet3D,
    RetinaUNet,
    RetinaUNet3D,
    VolumetricDetector,
)
from .mining import MiningCounts, mine_lesions, summarize_mining
from .proposal_generator import LesionRPN
from .roi_heads import (
    LesionROIHeads,
    PositionSensitivePooler,
    RegionROIHeads,
    RFCNROIHeads,
    ULDorOutputLayers,
    ULDorROIHeads,
    position_sensitive_pool,
)
from .switches import changed, no_masks
from .volumetric import FPN3D, AnchorGenerator3D, Box2BoxTransform3D, UNetFPN3D, VolumeShape

__all__ = [
    "FPN3D",
    "RFCN3DCE",
    "VGG",
    "AnchorGenerator3D",
    "AttentionGate",
    "Box2BoxTransform3D",
    "ContextualAttention",
    "DenseNet",
    "DetUNet",
    "FusedImages",
    "ImageStack",
    "LesionRCNN",
    "LesionROIHeads",
    "LesionRPN",
    "LesionRetinaNet",
    "MeanTeacher",
    "MiningCounts",
    "PositionSensitivePooler",
    "RFCNROIHeads",
    "RegionROIHeads",
    "RetinaNet3D",
    "RetinaUNet",
    "RetinaUNet3D",
    "SliceImages",
    "SpatialAttention",
    "ULDorOutputLayers",
    "ULDorROIHeads",
    "UNetFPN",
    "UNetFPN3D",
    "VolumeShape",
    "VolumetricDetector",
    "batch_images",
    "calibrate_scores",
    "changed",
    "focal_segmentation_loss",
    "mask_agreement",
    "mine_lesions",
    "no_masks",
    "position_sensitive_pool",
    "record_attention",
    "reuse_features",
    "segmentation_loss",
    "summarize_mining",
]
