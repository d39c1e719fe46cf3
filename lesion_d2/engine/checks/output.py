"""Checks of a run's output folder."""

import os
from pathlib import Path

from detectron2.config import CfgNode

from ..input_errors import InputError


def check_output(cfg: CfgNode) -> None:
    """Check that OUTPUT_DIR and its folder of results exist or can be created, and are writable.

    Nothing is created yet.

    Raises:
        InputError: the path is a file, or a folder is not writable.
    """
    if not cfg.OUTPUT_DIR:
        raise InputError("OUTPUT_DIR: found '', expected a folder")
    for folder in (Path(cfg.OUTPUT_DIR), Path(cfg.OUTPUT_DIR, "inference")):
        there = next((p for p in (folder, *folder.parents) if os.path.lexists(p)), Path())
        if not there.is_dir():
            raise InputError(
                f"OUTPUT_DIR: found {cfg.OUTPUT_DIR}, expected a folder, but {there} is none"
            )
        if not os.access(there, os.W_OK | os.X_OK):
            raise InputError(
                f"OUTPUT_DIR: found {cfg.OUTPUT_DIR}, expected a folder to write to, but {there} "
                "cannot be written to"
            )
