"""Checks that keys without effect here are not set."""

from collections.abc import Iterator

from detectron2.config import CfgNode, get_cfg

from ...config.old_keys import OLD_KEYS, old_keys_in
from ..input_errors import InputError, value_of

_SIZES = "INPUT.CT sets the size of images"
_CROPS = "INPUT.PATCH cuts training images into patches"
_KEYPOINTS = "no data set here has keypoints"
_PROPOSALS = "no data set here has proposals of its own"
_VIEWS = "TEST.ENSEMBLE has several views of an image"
_SAMPLER = "DATALOADER.EMPTY_IMAGE_RATIO and CLASS_BALANCE set how often images come"
#: A key, or a prefix with a dot for all keys below it, and what is used instead.
UNUSED_KEYS: dict[str, str] = {
    "INPUT.MIN_SIZE_TRAIN": _SIZES,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": _SIZES,
    "INPUT.MAX_SIZE_TRAIN": _SIZES,
    "INPUT.MIN_SIZE_TEST": _SIZES,
    "INPUT.MAX_SIZE_TEST": _SIZES,
    "INPUT.RANDOM_FLIP": "INPUT.AUG sets how images are mirrored",
    "INPUT.CROP.": _CROPS,
    "INPUT.FORMAT": "the channels of images are slices (INPUT.CT.NUM_SLICES)",
    "INPUT.MASK_FORMAT": "masks are always bitmasks",
    "TEST.AUG.": _VIEWS,
    "TEST.KEYPOINT_OKS_SIGMAS": _KEYPOINTS,
    "MODEL.KEYPOINT_ON": _KEYPOINTS,
    "MODEL.LOAD_PROPOSALS": _PROPOSALS,
    "DATASETS.PROPOSAL_FILES_TRAIN": _PROPOSALS,
    "DATASETS.PROPOSAL_FILES_TEST": _PROPOSALS,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": _PROPOSALS,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": _PROPOSALS,
    "DATALOADER.REPEAT_THRESHOLD": _SAMPLER,
    "DATALOADER.REPEAT_SQRT": _SAMPLER,
}


def check_unused(cfg: CfgNode) -> None:
    """Check that Detectron2's keys without effect here have their default values.

    Old names of keys, which files and command lines may have, do nothing where code assigns them.

    Raises:
        InputError: a key has another value; the message names the first, and what to set instead.
    """
    for old in old_keys_in(cfg):
        raise InputError(f"{old}: found the old name of a key, expected {OLD_KEYS[old]}")
    defaults = get_cfg()
    for key, instead in UNUSED_KEYS.items():
        for name in _names(defaults, key):
            found, expected = value_of(cfg, name), value_of(defaults, name)
            if found != expected:
                raise InputError(
                    f"{name}: found {found!r}, expected {expected!r}: it does nothing here, "
                    f"{instead}"
                )


def _names(cfg: CfgNode, key: str) -> Iterator[str]:
    if key.endswith("."):
        return (f"{key}{name}" for name in value_of(cfg, key[:-1]))
    return iter((key,))
