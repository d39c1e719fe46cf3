from .average_precision import detection_average_precision, ranking_average_precision
from .evaluator import LesionEvaluator
from .froc import FrocCurve, froc_curve
from .matching import Matches, match_detections, match_images
from .plots import plot_froc
from .volume_evaluator import VolumeEvaluator

__all__ = [
    "FrocCurve",
    "LesionEvaluator",
    "Matches",
    "VolumeEvaluator",
    "detection_average_precision",
    "froc_curve",
    "match_detections",
    "match_images",
    "plot_froc",
    "ranking_average_precision",
]
