from .rfcn import PositionSensitivePooler, RFCNROIHeads
from .uldor import ULDorOutputLayers, ULDorROIHeads

__all__ = ["PositionSensitivePooler", "RFCNROIHeads", "ULDorOutputLayers", "ULDorROIHeads"]
