"""Renamed keys and folders; the old names of keys are accepted for one version, with a warning."""

import logging
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from ..utils.errors import short_repr

logger = logging.getLogger(__name__)

_MAX_LINES = 3  # of warnings about a file

#: Old name -> new name. Before version 0.2 a :class:`~lesion_d2.config.LesionConfig` accepts both.
OLD_KEYS = {
    "DATALOADER.EMPTY_SHARE": "DATALOADER.EMPTY_IMAGE_RATIO",
    "DATASETS.HIDDEN_SEED": "DATASETS.MISSING_ANNOTATION_SEED",
    "DATASETS.HIDDEN_SHARE": "DATASETS.MISSING_ANNOTATION_RATIO",
    "HARD_NEGATIVES.GOOD_IOU": "HARD_NEGATIVES.POSITIVE_IOU_THRESH",
    "INPUT.BOX_MASKS": "INPUT.PSEUDO_MASK_FROM_BOX",
    "INPUT.CT.CUT_BORDERS": "INPUT.CT.CROP_TO_BODY",
    "MODEL.MEAN_TEACHER.POLICY": "MODEL.MEAN_TEACHER.PSEUDO_LABELS",
    "MODEL.RETINA_UNET.BOX_MARGIN": "INPUT.BOX_MARGIN",
    "MODEL.RETINA_UNET.PREDICT_MASKS": "MODEL.SEG_HEAD.PREDICT_MASKS",
    "MODEL.RETINA_UNET.SEG_CLASS_AGNOSTIC": "MODEL.SEG_HEAD.CLASS_AGNOSTIC",
    "MODEL.RETINA_UNET.SEG_FOCAL_ALPHA": "MODEL.SEG_HEAD.FOCAL_ALPHA",
    "MODEL.RETINA_UNET.SEG_FOCAL_GAMMA": "MODEL.SEG_HEAD.FOCAL_GAMMA",
    "MODEL.RETINA_UNET.SEG_LOSS": "MODEL.SEG_HEAD.LOSS_TYPE",
    "MODEL.SLICE_IMAGES.NUM_REUSED": "MODEL.SLICE_IMAGES.FEATURE_CACHE_SIZE",
    "MODEL.VOLUMETRIC.CHECKPOINT": "MODEL.VOLUMETRIC.GRADIENT_CHECKPOINTING",
    "SOLVER.KEEP_CHECKPOINTS": "SOLVER.CHECKPOINT_MAX_TO_KEEP",
    "TEST.INCLUSIVE": "TEST.INCLUSIVE_BOXES",
    "TEST.KEEP_BEST": "TEST.NUM_BEST_CHECKPOINTS",
}

#: Folders of configs before version 0.2 -> their new names.
OLD_FOLDERS = {"bai": "mean_teacher", "tao": "3dce_attention", "zlocha": "improved_retinanet"}


def renamed_folder(file: str) -> str:
    """Return " (configs/OLD is now configs/NEW)" if a path is in a renamed folder of configs."""
    for folder, part in pairwise(Path(os.path.abspath(file)).parts[:-1]):
        if folder == "configs" and part in OLD_FOLDERS:
            return f" (configs/{part} is now configs/{OLD_FOLDERS[part]})"
    return ""


def rename_in_file(file: str, content: dict[str, Any]) -> None:
    """Rename the old keys of a file, with a warning for each.

    For more than three, as in a dumped config, there is a single warning.

    Args:
        file: its path, for messages.
        content: its content, without its bases; modified in place.

    Raises:
        ValueError: it has a key under both names.
    """
    found = old_keys_in(content)
    for old in found:
        new, section, name = OLD_KEYS[old], _section_of(content, old), old.rpartition(".")[2]
        new_section, new_name = _made_section(file, content, new), new.rpartition(".")[2]
        if new_name in new_section:
            raise ValueError(_both(f"{file}: ", old, new))
        new_section[new_name] = section.pop(name)
    if len(found) > _MAX_LINES:
        _warn(f"{file}: {len(found)} keys, such as ", found[0], OLD_KEYS[found[0]])
    else:
        for old in found:
            _warn(f"{file}: ", old, OLD_KEYS[old])


def rename_in_list(pairs: Sequence[Any]) -> list[Any]:
    """Rename the old keys in a list of keys and values, with a warning for each.

    Args:
        pairs: alternating keys and values, as for :meth:`LesionConfig.merge_from_list`.

    Raises:
        ValueError: it has a key under both names.
    """
    keys = {str(key) for key in pairs[::2]}
    for old in (old for old in OLD_KEYS if old in keys):
        if OLD_KEYS[old] in keys:
            raise ValueError(_both("", old, OLD_KEYS[old]))
        _warn("", old, OLD_KEYS[old])
    return with_new_keys(pairs)


def with_new_keys(pairs: Sequence[Any]) -> list[Any]:
    """As :func:`rename_in_list`, without warnings and errors."""
    renamed = list(pairs)
    renamed[::2] = [OLD_KEYS.get(str(key), key) for key in pairs[::2]]
    return renamed


def with_old_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a config file with the old names, as in older files."""
    before = {k: with_old_keys(v) if isinstance(v, Mapping) else v for k, v in content.items()}
    for old, new in OLD_KEYS.items():
        section, name = _section_of(before, new), new.rpartition(".")[2]
        if section is not None and name in section:
            _made_section("", before, old)[old.rpartition(".")[2]] = section.pop(name)
            _drop_empty(before, new)
    return before


def old_keys_in(cfg: Mapping[str, Any]) -> list[str]:
    """Return the old keys in a config; code that assigns them adds them to a node."""
    return [
        old
        for old in OLD_KEYS
        if (section := _section_of(cfg, old)) is not None and old.rpartition(".")[2] in section
    ]


def _section_of(content: Mapping[str, Any], key: str) -> Any:
    """The section of a key; None if it does not exist."""
    section: Any = content
    for name in key.split(".")[:-1]:
        section = section.get(name) if isinstance(section, Mapping) else None
    return section if isinstance(section, Mapping) else None


def _made_section(file: str, content: dict[str, Any], key: str) -> dict[str, Any]:
    """As :func:`_section_of`, but creates a missing section.

    Raises:
        ValueError: there is a value instead of a section.
    """
    section, *names = content, *key.split(".")[:-1]
    for place, name in enumerate(names, 1):
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            where = ".".join(names[:place])
            raise ValueError(
                f"{file}: {where}: found {short_repr(section)}, expected keys below it"
            )
    return section


def _drop_empty(content: dict[str, Any], key: str) -> None:
    """Remove the section of a key if it is empty."""
    section = key.rpartition(".")[0]
    if _section_of(content, key) == {}:
        _section_of(content, section).pop(section.rpartition(".")[2])


def _both(place: str, old: str, new: str) -> str:
    return f"{place}{old}: found together with its new name {new}, expected only {new}"


def _warn(place: str, old: str, new: str) -> None:
    if comm.is_main_process():  # each process of a run reads the same
        logger.warning(
            f"{place}{old}: found the old name of a key, expected {new}; version 0.2 refuses it"
        )
