"""Types of command line arguments."""

import argparse
from difflib import get_close_matches
from pathlib import Path

from lesion_d2.data.deeplesion import resolve_root
from lesion_d2.data.volume_set.form import FILE_NAME

_MAX_NAMES = 5  # in a message


def positive(text: str) -> int:
    """An integer of at least 1, for ``add_argument(type=positive)``."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def data_set_folder(name: str) -> Path:
    """The folder of a data set of volumes: in $DETECTRON2_DATASETS, or named with its path.

    Raises:
        FileNotFoundError: it has no ``volume_set.json``; the message names some that have.
    """
    root = Path(name if "/" in name else resolve_root(f"$DETECTRON2_DATASETS/{name}"))
    if not (root / FILE_NAME).exists():
        known = sorted(file.parent.name for file in root.parent.glob(f"*/{FILE_NAME}"))
        names = ", ".join(get_close_matches(root.name, known) or known[:_MAX_NAMES])
        raise FileNotFoundError(
            f"{root / FILE_NAME}: no such file, expected a data set of volumes"
            + (f" such as {names}" if names else "")
        )
    return root
