"""Types of command line arguments."""

import argparse
from pathlib import Path

from lesion_d2.data.deeplesion import resolve_root


def positive(text: str) -> int:
    """An integer of at least 1, for ``add_argument(type=positive)``."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def data_set_folder(name: str) -> Path:
    """The folder of a data set of volumes: in $DETECTRON2_DATASETS, or named with its path."""
    return Path(name if "/" in name else resolve_root(f"$DETECTRON2_DATASETS/{name}"))
