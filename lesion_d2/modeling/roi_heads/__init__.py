from .uldor import ULDorOutputLayers, ULDorROIHeads

__all__ = ["ULDorOutputLayers", "ULDorROIHeads"]
