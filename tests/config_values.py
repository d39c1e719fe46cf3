"""The configs of experiments, and the values that they set."""

import functools
from pathlib import Path

from lesion_d2 import get_lesion_config
from lesion_d2.config.volumetric import is_volumetric
from lesion_d2.experiments.gpu_check.configs import narrow

CONFIGS = Path(__file__).parents[1] / "configs"


@functools.cache
def read(file):
    """A config as it is."""
    cfg = get_lesion_config()
    cfg.merge_from_file(str(file))
    cfg.freeze()
    return cfg


def reduced(file):
    """A config of which a step takes a moment on the CPU, for the phantoms."""
    cfg = read(file).clone()
    cfg.defrost()
    narrow(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.PIXEL_STD = [127.5] * cfg.INPUT.CT.NUM_SLICES  # other weights may want 1
    # At this size no default anchor reaches a lesion, and nothing would train the box regression.
    cfg.MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES = True
    cfg.INPUT.CT.IMAGE_SIZE = 64
    cfg.INPUT.CT.PIXEL_SPACING = 0.0
    cfg.INPUT.PSEUDO_MASK_FILES = ()
    cfg.DATASETS.TRAIN = ("phantom_train",)
    cfg.DATASETS.TEST = ("phantom_val",)
    cfg.DATASETS.EXCLUDED_VOLUMES = ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.EMPTY_IMAGE_RATIO = -1.0  # all of these have a lesion
    cfg.SOLVER.IMS_PER_BATCH = 2
    # What draws anchors may draw none of a level in a step.
    cfg.MODEL.RETINA_UNET.SHEM_POOL = cfg.MODEL.LESION_RCNN.SHEM_POOL = 0
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 100_000
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 512
    cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = True
    if is_volumetric(cfg):
        cfg.INPUT.VOLUME.PATCH_SIZE = (8, 64, 64)
        cfg.INPUT.VOLUME.SPACING = (0.0, 0.0, 0.0)
        cfg.DATASETS.TRAIN = ("phantom_volumes_train",)
    return cfg


def flat(node, prefix=""):
    """The values of all keys, by their whole names."""
    values = {}
    for key, value in node.items():
        nested = hasattr(value, "items")
        values.update(flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return values


def values_of(file):
    """The values that a config sets, by key."""
    return flat(read(file))
