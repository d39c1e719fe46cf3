"""Keys that do nothing in a run, as tables."""

from collections.abc import Mapping
from fnmatch import filter as matching
from functools import cache

from detectron2.config import CfgNode

from ...config import get_lesion_config
from ...config.old_keys import OLD_KEYS, old_keys_in
from ...config.volumetric import is_volumetric
from ..input_errors import InputError, value_of
from .values import flat

#: Patterns of keys -> what is used instead.
UNUSED_KEYS: Mapping[str, str] = {
    "INPUT.M??_SIZE_*": "INPUT.CT sets the size of images",
    "INPUT.RANDOM_FLIP": "INPUT.AUG sets how images are mirrored",
    "INPUT.CROP.*": "INPUT.PATCH cuts training images into patches",
    "INPUT.FORMAT": "the channels of images are slices (INPUT.CT.NUM_SLICES)",
    "INPUT.MASK_FORMAT": "masks are always bitmasks",
    "TEST.AUG.*": "TEST.ENSEMBLE has several views of an image",
    "TEST.KEYPOINT_OKS_SIGMAS MODEL.KEYPOINT_ON": "no data set here has keypoints",
    "MODEL.LOAD_PROPOSALS DATASETS.PROPOSAL_FILES_* DATASETS.PRECOMPUTED_PROPOSAL_*": (
        "no data set here has proposals of its own"
    ),
    "DATALOADER.REPEAT_*": (
        "DATALOADER.EMPTY_IMAGE_RATIO and CLASS_BALANCE set how often images come"
    ),
}
_UNUSED_FOR_VOLUMES = {
    "INPUT.CT.PIXEL_SPACING": "INPUT.VOLUME.SPACING is that of volumes",
    "INPUT.CT.CROP_TO_BODY": "volumes keep their borders",
    "INPUT.INSERTED_LESIONS.PROBABILITY": "lesions are inserted into slices alone",
    "INPUT.PATCH.SIZE": "INPUT.VOLUME.PATCH_SIZE is that of volumes",
    "TEST.ENSEMBLE.TILE_SIZE": "TEST.VOLUME_TILE_SIZE is that of volumes",
    "MODEL.MEAN_TEACHER.ENABLED": "a mean teacher looks at slices",
    "MODEL.UNET_FPN.ATTENTION": "attention gates are of slices",
    "HARD_NEGATIVES.PERIOD HARD_NEGATIVES.EPOCHS": "hard negatives are mined on slices",
    "TEST.LOSS_*": "the loss on held-out images is that of slices",
}
# INPUT.VOLUME.SPACING is set in shared base configs.
_UNUSED_FOR_SLICES = {
    "INPUT.VOLUME.ELASTIC INPUT.VOLUME.NOISE INPUT.VOLUME.BRIGHTNESS INPUT.VOLUME.CONTRAST "
    "TEST.VOLUME_TILE_SIZE": "the model looks at slices (INPUT.VOLUME.PATCH_SIZE is (0, 0, 0))",
}
_defaults = cache(lambda: dict(flat(get_lesion_config())))


def check_unused(cfg: CfgNode) -> None:
    """Check that keys without effect, of Detectron2 or of this project, have their default values.

    Old names of keys, which files and command lines may have, do nothing where code assigns them.

    Raises:
        InputError: a key has another value; the message names the first, and what to set instead.
    """
    for old in old_keys_in(cfg):
        raise InputError(f"{old}: found the old name of a key, expected {OLD_KEYS[old]}")
    unused = UNUSED_KEYS | (_UNUSED_FOR_VOLUMES if is_volumetric(cfg) else _UNUSED_FOR_SLICES)
    for patterns, instead in unused.items():
        for key in (k for pattern in patterns.split() for k in matching(_defaults(), pattern)):
            found, expected = value_of(cfg, key), _defaults()[key]
            found = tuple(found) if isinstance(found, list) else found
            if found != (tuple(expected) if isinstance(expected, list) else expected):
                message = f"{key}: found {found!r}, expected {expected!r}: it does nothing here, "
                raise InputError(message + instead)
