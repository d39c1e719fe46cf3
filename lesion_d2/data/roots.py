"""Where data sets are on disk."""

import os


def resolve_root(root: str) -> str:
    """A data set's folder: ``~``, and ``$DETECTRON2_DATASETS`` (default "datasets"), filled in."""
    datasets = os.getenv("DETECTRON2_DATASETS", "datasets")
    return os.path.expanduser(root.replace("$DETECTRON2_DATASETS", datasets))
