"""Universal lesion detection in CT as a Detectron2 project.

Importing the package makes ``detectron2`` importable, and registers the data sets and the models.
"""

from ._detectron2 import ensure_detectron2

ensure_detectron2()

from . import data, modeling  # noqa: E402  (they import detectron2)
from .config import add_lesion_config  # noqa: E402

__all__ = ["add_lesion_config", "data", "modeling"]
__version__ = "0.1.0"
