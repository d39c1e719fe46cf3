"""ROI heads."""

from .lesion import LesionROIHeads
from .regions import RegionROIHeads
from .rfcn import PositionSensitivePooler, RFCNROIHeads, position_sensitive_pool
from .uldor import ULDorOutputLayers, ULDorROIHeads

__all__ = [
    "LesionROIHeads",
    "PositionSensitivePooler",
    "RFCNROIHeads",
    "RegionROIHeads",
    "ULDorOutputLayers",
    "ULDorROIHeads",
    "position_sensitive_pool",
]
