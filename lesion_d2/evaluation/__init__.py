from .evaluator import LesionEvaluator
from .froc import FrocCurve, froc_curve
from .matching import Matches, match_detections, match_images
from .plots import plot_froc

__all__ = [
    "FrocCurve",
    "LesionEvaluator",
    "Matches",
    "froc_curve",
    "match_detections",
    "match_images",
    "plot_froc",
]
