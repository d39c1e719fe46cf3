"""Pictures of CT slices, their lesions, a run's detections and what a model looks at."""

from .heat_map import HeatMap, color_bar, place
from .heat_table import heat_table
from .outcome import ImageOutcome, judge, outcome_quality, prediction_masks, truth_boxes
from .sheet import contact_sheet, save_picture, stack_pictures
from .visualizer import (
    FALSE_POSITIVE_COLOR,
    GRID_COLOR,
    GRID_LEGEND,
    HIDDEN_COLOR,
    HIDDEN_LEGEND,
    HIT_COLOR,
    MASK_COLOR,
    MINED_COLOR,
    MINED_LEGEND,
    NEGATIVE_LEGEND,
    OUTCOME_LEGEND,
    RECIST_COLOR,
    REFERENCE_COLOR,
    REGION_COLOR,
    REGION_LEGEND,
    TRUTH_COLOR,
    TRUTH_LEGEND,
    LesionVisualizer,
)
from .window import WINDOWS, parse_window, window_image

__all__ = [
    "FALSE_POSITIVE_COLOR",
    "GRID_COLOR",
    "GRID_LEGEND",
    "HIDDEN_COLOR",
    "HIDDEN_LEGEND",
    "HIT_COLOR",
    "MASK_COLOR",
    "MINED_COLOR",
    "MINED_LEGEND",
    "NEGATIVE_LEGEND",
    "OUTCOME_LEGEND",
    "RECIST_COLOR",
    "REFERENCE_COLOR",
    "REGION_COLOR",
    "REGION_LEGEND",
    "TRUTH_COLOR",
    "TRUTH_LEGEND",
    "WINDOWS",
    "HeatMap",
    "ImageOutcome",
    "LesionVisualizer",
    "color_bar",
    "contact_sheet",
    "heat_table",
    "judge",
    "outcome_quality",
    "parse_window",
    "place",
    "prediction_masks",
    "save_picture",
    "stack_pictures",
    "truth_boxes",
    "window_image",
]
