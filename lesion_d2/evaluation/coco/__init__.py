"""COCO's numbers, equal to pycocotools' and faster."""

from .detections import ImageDetections
from .evaluation import CocoEvaluation

__all__ = ["CocoEvaluation", "ImageDetections"]
