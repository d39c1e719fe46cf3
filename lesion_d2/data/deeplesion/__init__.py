"""DeepLesion (Yan et al., JMI 2018): its files on disk, as Detectron2's dicts.

Key slices come from ``DL_info.csv``, sub-volumes from published annotation files.
"""

from ...structures.lesion_types import COARSE_TYPES
from .key_slices import lesion_classes, load_deeplesion, register_deeplesion

__all__ = ["COARSE_TYPES", "lesion_classes", "load_deeplesion", "register_deeplesion"]
