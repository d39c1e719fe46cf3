"""COCO's format: registers annotation files with Detectron2, and exports data sets."""

from .loading import load_ct_coco, register_ct_coco
from .reading import read_coco
from .records import CocoAnnotation, CocoFile, CocoImage

__all__ = [
    "CocoAnnotation",
    "CocoFile",
    "CocoImage",
    "load_ct_coco",
    "read_coco",
    "register_ct_coco",
]
