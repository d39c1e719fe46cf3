from .detections import ImageDetections
from .evaluation import CocoEvaluation

__all__ = ["CocoEvaluation", "ImageDetections"]
