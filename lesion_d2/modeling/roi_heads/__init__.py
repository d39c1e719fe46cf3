from .lesion import LesionROIHeads
from .rfcn import PositionSensitivePooler, RFCNROIHeads, position_sensitive_pool
from .uldor import ULDorOutputLayers, ULDorROIHeads

__all__ = [
    "LesionROIHeads",
    "PositionSensitivePooler",
    "RFCNROIHeads",
    "ULDorOutputLayers",
    "ULDorROIHeads",
    "position_sensitive_pool",
]
