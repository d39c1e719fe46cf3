"""Locations of data sets on disk."""

import os


def resolve_root(root: str) -> str:
    """Expand ``~`` and ``$DETECTRON2_DATASETS`` (default "datasets") in a data set's folder."""
    datasets = os.getenv("DETECTRON2_DATASETS", "datasets")
    return os.path.expanduser(root.replace("$DETECTRON2_DATASETS", datasets))
