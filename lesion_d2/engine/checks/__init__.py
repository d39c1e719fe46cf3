"""Checks of a run's config and data, before anything is written."""

from .datasets import dataset_options
from .inputs import check_inputs, check_prediction

__all__ = ["check_inputs", "check_prediction", "dataset_options"]
