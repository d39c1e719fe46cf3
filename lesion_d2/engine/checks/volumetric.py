"""Checks of a run with a model of volumes."""

import logging
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode

from ...config import trains_on_masks
from ...config.volumetric import is_volumetric
from ...data.samplers import count_epoch
from ...data.volumetric import VolumePatchMapper, volume_records
from ...data.volumetric.loader import check_volumes
from ...data.volumetric.reading import model_shape
from ...modeling import VolumetricDetector
from ...scans.limits import check_size
from ...structures.ignore_regions import lesions_of
from ...structures.slice_geometry import EXPECTED_SPACING, is_spacing
from ..input_errors import InputError, as_input_error, is_a, switched_on, value_of
from .values import Check, check_values

logger = logging.getLogger(__name__)


def _are_sides(value: Sequence) -> bool:
    if not (len(value) == 3 and all(isinstance(side, int) and side > 0 for side in value)):
        return False
    try:
        check_size("", tuple(value))
    except ValueError:
        return False
    return True


_CHECKS: tuple[Check, ...] = (
    (
        "INPUT.VOLUME.PATCH_SIZE",
        _are_sides,
        "depth, height and width in whole voxels above 0, no more than a scan has, or (0, 0, 0) "
        "for a model of slices",
    ),
    (
        "TEST.VOLUME_TILE_SIZE",
        lambda v: _are_sides(v) or tuple(v) == (0, 0, 0),
        "depth, height and width in whole voxels above 0, or (0, 0, 0) for INPUT.VOLUME.PATCH_SIZE",
    ),
    (
        "INPUT.VOLUME.SPACING",
        lambda v: len(v) == 3 and all(side == 0 or is_spacing(side) for side in v),
        f"x, y and z in mm, 0 where an axis stays as it is or {EXPECTED_SPACING}",
    ),
    (
        "INPUT.CT.HU_WINDOW",
        lambda v: len(v) == 2 and -(2**15) <= v[0] < v[1] <= 2**15 - 1,
        "low < high, HU of 16 bits: -32768 to 32767",
    ),
)
# Keys that are not supported for volumes, their required values, and the reasons.
_REFUSED: tuple[tuple[str, object, str], ...] = (
    ("INPUT.CT.PIXEL_SPACING", 0.0, "INPUT.VOLUME.SPACING is that of volumes"),
    ("INPUT.CT.CROP_TO_BODY", False, "volumes keep their borders"),
    ("INPUT.INSERTED_LESIONS.PROBABILITY", 0.0, "lesions are inserted into slices alone"),
    ("INPUT.PATCH.SIZE", (0, 0), "INPUT.VOLUME.PATCH_SIZE is that of volumes"),
    ("TEST.ENSEMBLE.TILE_SIZE", 0, "TEST.VOLUME_TILE_SIZE is that of volumes"),
    ("MODEL.MEAN_TEACHER.ENABLED", False, "a mean teacher looks at slices"),
    ("MODEL.RETINA_UNET.CALIBRATION", 0.0, "scores are calibrated on slices alone"),
    ("MODEL.UNET_FPN.ATTENTION", False, "attention gates are of slices"),
)
# Keys that only models of volumes use; INPUT.VOLUME.SPACING is set in shared base configs.
_OF_VOLUMES = (
    *(f"INPUT.VOLUME.{name}" for name in ("ELASTIC", "NOISE", "BRIGHTNESS", "CONTRAST")),
    "TEST.VOLUME_TILE_SIZE",
)
_OF_SLICES = (
    ("HARD_NEGATIVES.", "hard negatives are mined on slices"),
    (
        "TEST.LOSS_",
        "the loss on held-out images is that of slices",
    ),
)


def check_volumetric(cfg: CfgNode) -> None:
    """Check that all parts of a config are for volumes, or none.

    Raises:
        InputError: the model does not match INPUT.VOLUME.PATCH_SIZE, a value is invalid, or an
            option is enabled that is only supported for slices, or for volumes.
    """
    found, size = cfg.MODEL.META_ARCHITECTURE, tuple(cfg.INPUT.VOLUME.PATCH_SIZE)
    if not is_volumetric(cfg):
        if is_a(cfg, VolumetricDetector):
            raise InputError(
                f"INPUT.VOLUME.PATCH_SIZE: found {size}, expected the depth, height and width of "
                f"patches for a {found}"
            )
        for key in _OF_VOLUMES:
            if np.any(value_of(cfg, key)):
                raise InputError(
                    f"{key}: found {value_of(cfg, key)}, expected 0 for a {found}, which looks at "
                    f"slices (INPUT.VOLUME.PATCH_SIZE is {size})"
                )
        return
    if not is_a(cfg, VolumetricDetector):
        raise InputError(
            f"MODEL.META_ARCHITECTURE: found {found!r}, expected a model of volumes such as "
            f"'RetinaUNet3D' (INPUT.VOLUME.PATCH_SIZE is {size})"
        )
    check_values(cfg, _CHECKS)
    for key, expected, why in _REFUSED:
        value = value_of(cfg, key)
        value = tuple(value) if isinstance(value, list) else value
        if value != expected:
            raise InputError(f"{key}: found {value!r}, expected {expected!r} for a {found}: {why}")
    for prefix, why in _OF_SLICES:
        what = switched_on(cfg, prefix)
        if what:
            raise InputError(f"{what}, expected 0 for a {found}: {why}")
    channels = len(cfg.MODEL.PIXEL_MEAN)
    if channels != 1:
        raise InputError(
            f"MODEL.PIXEL_MEAN: found {channels} numbers, expected 1 for a {found}: volumes have "
            "one channel"
        )


def check_patches(cfg: CfgNode) -> None:
    """Check the keys for cropping and augmenting patches in training.

    Raises:
        InputError: see :class:`VolumePatchMapper`.
    """
    with as_input_error(""):
        VolumePatchMapper(cfg)


def check_kinds(cfg: CfgNode, kind: str) -> None:
    """Check that the data sets of DATASETS.TRAIN or TEST contain volumes, before they are read.

    Raises:
        InputError: a data set contains single slices.
    """
    with as_input_error(f"DATASETS.{kind}: "):
        for name in cfg.DATASETS[kind]:
            check_volumes(name)


def check_records(cfg: CfgNode, kind: str, datasets: Sequence[list[dict]]) -> int:
    """Check that the data sets of DATASETS.TRAIN or TEST contain volumes that the model supports.

    Args:
        cfg: of the run.
        kind: "TRAIN" or "TEST".
        datasets: their dicts of slices, see :func:`~.datasets.load_datasets`.

    Returns:
        The number of volumes (runs of slices) per epoch.

    Raises:
        InputError: a data set contains single slices, its slices do not form volumes, a required
            spacing is missing, there is no lesion, or a lesion has no mask although training needs
            it.
    """
    check_kinds(cfg, kind)
    records = []
    with as_input_error(f"DATASETS.{kind}: "):
        for name, images in zip(cfg.DATASETS[kind], datasets, strict=True):
            records += volume_records(images, name)
        for record in records:
            model_shape(record, cfg.INPUT.VOLUME.SPACING)
    if kind != "TRAIN":
        return len(records)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = [record for record in records if lesions_of(record["annotations"])]
    if not records:
        raise InputError(f"DATASETS.TRAIN: found no lesion in {', '.join(cfg.DATASETS.TRAIN)}")
    if trains_on_masks(cfg):
        _check_masks(cfg, records)
    _tell_of_thin_lesions(records)
    with as_input_error(""):
        return count_epoch(records, cfg)


def _check_masks(cfg: CfgNode, records: Sequence[dict]) -> None:
    """Check that each lesion has a mask, or may use its box; log the latter."""
    lesions = [(r["image_id"], a) for r in records for a in lesions_of(r["annotations"])]
    bare = [name for name, annotation in lesions if "segmentation" not in annotation]
    if not bare:
        return
    found = (
        f"DATASETS.TRAIN: found {len(bare)} of {len(lesions)} lesions without a mask on all their "
        f"slices (the first in volume {bare[0]})"
    )
    if not cfg.INPUT.PSEUDO_MASK_FROM_BOX:
        raise InputError(
            f"{found}, expected 'segmentation' for a model that learns masks, or "
            "INPUT.PSEUDO_MASK_FROM_BOX True"
        )
    logger.info(f"{found}: their masks are ellipsoids in their boxes")


def _tell_of_thin_lesions(records: Sequence[dict]) -> None:
    """Warn if most lesions have a box on a single slice only, as on key slices."""
    depths = [
        (record["image_id"], annotation["bbox"][5] - annotation["bbox"][2])
        for record in records
        if record["shape"][0] > 1
        for annotation in lesions_of(record["annotations"])
    ]
    thin = [name for name, depth in depths if depth <= 1]
    if len(thin) > len(depths) / 2:
        logger.warning(
            f"DATASETS.TRAIN: found {len(thin)} of {len(depths)} lesions on a single slice (the "
            f"first in volume {thin[0]}), expected boxes on all slices of a lesion: a model of "
            "volumes learns boxes as deep as these are"
        )
