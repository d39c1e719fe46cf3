"""The config: all keys of this project, and the reader of its files."""

from .keys import (
    FROC_RATES,
    add_lesion_config,
    broadcast_pixel_values,
    trains_on_masks,
    uses_pseudo_labels,
)
from .node import LesionConfig, get_lesion_config
from .yaml_files import read_yaml

__all__ = [
    "FROC_RATES",
    "LesionConfig",
    "add_lesion_config",
    "broadcast_pixel_values",
    "get_lesion_config",
    "read_yaml",
    "trains_on_masks",
    "uses_pseudo_labels",
]
