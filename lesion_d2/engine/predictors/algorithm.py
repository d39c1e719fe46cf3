"""Metadata of predictions: class names, and identification of the model."""

import hashlib
import os
from functools import lru_cache

import lesion_d2

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import GeneralizedRCNN

from ...data.catalog import is_registered
from ...findings import Algorithm
from ..checkpoint_files.best_checkpoints import checkpoint_files
from ..input_errors import has_uldor_heads, is_a


def class_names(cfg: CfgNode) -> list[str]:
    """Return the names of a model's classes, from its first data set that has names.

    The last class of ULDor's heads is "false positive". Classes without a name are called "class 3"
    and so on; a single class without a name is "lesion".
    """
    heads = cfg.MODEL.ROI_HEADS if is_a(cfg, GeneralizedRCNN) else cfg.MODEL.RETINANET
    number = heads.NUM_CLASSES
    found = (
        MetadataCatalog.get(name).get("thing_classes")
        for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
        if is_registered(name) or name in MetadataCatalog
    )
    names = list(next(filter(None, found), ()))
    is_uldor = has_uldor_heads(cfg)
    number -= is_uldor
    names = names[:number] or (["lesion"] if number == 1 else [])
    names += [f"class {i}" for i in range(len(names), number)]
    return [*names, "false positive"] if is_uldor else names


def describe_algorithm(cfg: CfgNode, config_file: str | None = None) -> Algorithm:
    """Describe the model for findings and reports.

    Args:
        cfg: config of the predictor.
        config_file: file that the config was read from.
    """
    files = weight_files(cfg)
    digests = [_digest_of(file) for file in files]
    return Algorithm(
        name="lesion_d2",
        version=lesion_d2.__version__,
        config_file=config_file,
        meta_architecture=cfg.MODEL.META_ARCHITECTURE,
        weights=", ".join(files) or None,
        weights_sha256=", ".join(digests) if digests and all(digests) else None,
    )


def weight_files(cfg: CfgNode) -> list[str]:
    """Return the weight files of a prediction; several for an ensemble."""
    options = cfg.TEST.ENSEMBLE
    if options.ENABLED and options.CHECKPOINTS:
        return [os.fspath(file) for file in checkpoint_files(options.CHECKPOINTS)]
    return [cfg.MODEL.WEIGHTS] if cfg.MODEL.WEIGHTS else []


def _digest_of(file: str) -> str | None:
    """SHA-256 of a file; None for a URL."""
    if not os.path.isfile(file):
        return None
    status = os.stat(file)
    return _digest(file, status.st_mtime_ns, status.st_size)


@lru_cache
def _digest(file: str, changed: int, size: int) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while chunk := opened.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
