from .rfcn import PositionSensitivePooler, RFCNROIHeads, position_sensitive_pool
from .uldor import ULDorOutputLayers, ULDorROIHeads

__all__ = [
    "PositionSensitivePooler",
    "RFCNROIHeads",
    "ULDorOutputLayers",
    "ULDorROIHeads",
    "position_sensitive_pool",
]
