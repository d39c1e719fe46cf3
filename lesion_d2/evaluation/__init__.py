"""FROC, AP, matching of detections with lesions, and evaluators."""

from .average_precision import AP_METHODS, detection_average_precision, ranking_average_precision
from .combined import (
    CombinedEvaluation,
    VolumeDetections,
    combine_evaluations,
    read_volume_detections,
)
from .evaluator import LesionEvaluator
from .froc import FrocCurve, froc_curve
from .matching import Matches, match_detections, match_images
from .operating_points import OperatingPoints, read_operating_points
from .plots import plot_froc
from .volumetric.criteria import Criterion, parse_criteria, volume_metrics_of
from .volumetric.volume_evaluator import VolumeEvaluator

__all__ = [
    "AP_METHODS",
    "CombinedEvaluation",
    "Criterion",
    "FrocCurve",
    "LesionEvaluator",
    "Matches",
    "OperatingPoints",
    "VolumeDetections",
    "VolumeEvaluator",
    "combine_evaluations",
    "detection_average_precision",
    "froc_curve",
    "match_detections",
    "match_images",
    "parse_criteria",
    "plot_froc",
    "ranking_average_precision",
    "read_operating_points",
    "read_volume_detections",
    "volume_metrics_of",
]
