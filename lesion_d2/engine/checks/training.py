"""Checks of the config keys for training."""

from collections.abc import Iterable, Mapping

from detectron2.config import CfgNode
from detectron2.modeling import (
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    GeneralizedRCNN,
    RetinaNet,
)
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.utils.registry import Registry
from torch import nn

from ...config import trains_on_masks
from ...config.volumetric import is_volumetric
from ...modeling import DetUNet, LesionRetinaNet, LesionRPN, MeanTeacher, RegionROIHeads, RetinaUNet
from ...structures.ignore_regions import regions_of
from ...utils.values import is_number
from ..checkpoint_files import FORMATS
from ..input_errors import InputError, as_input_error, has_uldor_heads, is_a, switched_on
from ..solver.clipping import clipper
from ..solver.compilation import check_compiler
from ..solver.schedule import check_epochs, check_learning_rate_factors
from ..trainer import optimizer_class
from ..validation_loss import VALIDATION_LOSS
from .datasets import check_test_sets
from .evaluation import check_evaluations
from .model import ULDOR_HEADS, found_heads
from .values import Check, at_least, check_values

_SCHEDULE_CHECKS: tuple[Check, ...] = (
    *(
        (f"SOLVER.{key}", at_least(least), f"a finite number, at least {least}")
        for key, least in {
            "BASE_LR": 0,
            "BASE_LR_END": 0,
            "BIAS_LR_FACTOR": 0,
            "CHECKPOINT_PERIOD": 1,
            "GAMMA": 0,
            "MOMENTUM": 0,
            "REFERENCE_WORLD_SIZE": 0,
            "WARMUP_FACTOR": 0,
            "WARMUP_ITERS": 0,
            "WEIGHT_DECAY": 0,
            "WEIGHT_DECAY_NORM": 0,
        }.items()
    ),
    ("SOLVER.IMS_PER_BATCH", lambda v: 1 <= v <= 2**16, "1 to 2^16"),
    ("SOLVER.MAX_ITER", lambda v: 0 <= v < 2**31, "at least 0, below 2^31"),
    (
        "SOLVER.WEIGHT_DECAY_BIAS",
        lambda v: v is None or (is_number(v) and v >= 0),
        "None (SOLVER.WEIGHT_DECAY) or a finite number, at least 0",
    ),
    (
        "SOLVER.STEPS",
        lambda v: list(v) == sorted(v) and all(map(at_least(0), v)),
        "rising numbers of iterations",
    ),
    ("TEST.EVAL_PERIOD", lambda v: v >= 0, "0 (at the end) or more"),
)
_TRAINING_CHECKS: tuple[Check, ...] = (
    (
        "DATALOADER.SAMPLER_TRAIN",
        lambda v: v == "TrainingSampler",
        "'TrainingSampler', the only one of the training loader",
    ),
    ("DATALOADER.EMPTY_IMAGE_RATIO", lambda v: v < 1, "below 0 (as they are) or a share below 1"),
    ("SOLVER.PLATEAU_PATIENCE", lambda v: v >= 0, "0 (off) or more"),
    ("SOLVER.PLATEAU_FACTOR", lambda v: 0 < v < 1, "a factor between 0 and 1"),
    ("SOLVER.EARLY_STOP_PATIENCE", lambda v: v >= 0, "0 (off) or more"),
    (
        "SOLVER.PATIENCE_METRIC",
        lambda v: v in ("", VALIDATION_LOSS),
        f"'' (TEST.BEST_METRIC) or {VALIDATION_LOSS!r}",
    ),
    ("SOLVER.CHECKPOINT_FORMAT", lambda v: v in FORMATS, " or ".join(FORMATS)),
    ("SOLVER.CHECKPOINT_MAX_TO_KEEP", lambda v: v >= 0, "0 (all) or more"),
    ("TEST.LOSS_PERIOD", lambda v: v >= 0, "0 (off) or more"),
    ("TEST.NUM_BEST_CHECKPOINTS", lambda v: v >= 0, "0 (none) or more checkpoints"),
    ("DATASETS.MISSING_ANNOTATION_RATIO", lambda v: 0 <= v < 1, "a share from 0 to below 1"),
    ("DATASETS.MISSING_ANNOTATION_SEED", lambda v: v >= 0, "0 or more"),
    ("HARD_NEGATIVES.PERIOD", lambda v: v >= 0, "0 (off) or more"),
    ("HARD_NEGATIVES.START_ITER", lambda v: v >= 0, "0 or more"),
    ("HARD_NEGATIVES.MAX_PER_IMAGE", lambda v: v >= 1, "1 or more"),
    ("HARD_NEGATIVES.POSITIVE_IOU_THRESH", lambda v: 0 <= v <= 1, "0 to 1"),
    ("HARD_NEGATIVES.MIN_SCORE", lambda v: 0 <= v <= 1, "0 to 1"),
)


def check_training(cfg: CfgNode, num_processes: int) -> None:
    """Check the keys that only training uses.

    Raises:
        InputError: a value is invalid; the message names the key.
    """
    check_values(cfg, _SCHEDULE_CHECKS)
    with as_input_error(""):
        optimizer_class(cfg)
        clipper(cfg)
        check_learning_rate_factors(cfg)
    check_compiler(cfg)
    if num_processes > 1 and cfg.SOLVER.IMS_PER_BATCH % num_processes:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH: found {cfg.SOLVER.IMS_PER_BATCH}, expected a multiple of the "
            f"{num_processes} processes"
        )
    check_values(cfg, _TRAINING_CHECKS)
    with as_input_error(""):
        check_epochs(cfg)
    check_evaluations(cfg)
    _check_mining(cfg)
    share = cfg.DATALOADER.EMPTY_IMAGE_RATIO
    if share > 0 and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        raise InputError(
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS: found True, which leaves out all images without "
            f"a lesion, expected False (DATALOADER.EMPTY_IMAGE_RATIO is {share:g})"
        )
    check_test_sets(cfg)
    _check_mean_teacher(cfg)
    weight = cfg.MODEL.RETINA_UNET.SEG_LOSS_WEIGHT
    if is_a(cfg, DetUNet) and not cfg.MODEL.MASK_ON:
        raise InputError("MODEL.MASK_ON: found False, expected True for DetUNet")
    if is_a(cfg, RetinaUNet) and weight > 0 and not cfg.MODEL.MASK_ON:
        raise InputError(
            f"MODEL.MASK_ON: found False, expected True for the segmentation loss "
            f"(MODEL.RETINA_UNET.SEG_LOSS_WEIGHT is {weight})"
        )
    if weight == 0 and cfg.MODEL.RETINA_UNET.CALIBRATION > 0:
        raise InputError(
            "MODEL.RETINA_UNET.SEG_LOSS_WEIGHT: found 0, expected a segmentation loss for "
            f"MODEL.RETINA_UNET.CALIBRATION {cfg.MODEL.RETINA_UNET.CALIBRATION}"
        )


def _check_mean_teacher(cfg: CfgNode) -> None:
    options = cfg.MODEL.MEAN_TEACHER
    if not options.ENABLED:
        return
    with as_input_error(""):
        MeanTeacher(cfg, nn.Identity())
    if cfg.TEST.PRECISE_BN.ENABLED:
        raise InputError(
            "TEST.PRECISE_BN.ENABLED: found True, expected False: a mean teacher's statistics are "
            "the average of its student's (MODEL.MEAN_TEACHER.ENABLED is True)"
        )
    heads = "RETINANET" if is_a(cfg, RetinaNet) else "ROI_HEADS" * is_a(cfg, GeneralizedRCNN)
    lowest = cfg.MODEL[heads].SCORE_THRESH_TEST if heads else 0.0
    if options.PSEUDO_LABELS != "none" and lowest > options.SCORE_THRESH:
        raise InputError(
            f"MODEL.MEAN_TEACHER.SCORE_THRESH: found {options.SCORE_THRESH}, expected "
            f"MODEL.{heads}.SCORE_THRESH_TEST or more, which is {lowest}: the teacher gives no "
            "detection of a lower score"
        )
    if options.PSEUDO_LABELS == "ignore":
        _check_ignoring(cfg)


def _check_ignoring(cfg: CfgNode) -> None:
    """Check that all losses ignore annotations of class -1."""
    why = "for MODEL.MEAN_TEACHER.PSEUDO_LABELS 'ignore'"
    is_rcnn = is_a(cfg, GeneralizedRCNN)
    kinds = f"a {RetinaNet.__name__}, {DetUNet.__name__} or {GeneralizedRCNN.__name__} {why}"
    checks = [
        ("MODEL.META_ARCHITECTURE", lambda _: is_rcnn or is_a(cfg, RetinaNet, DetUNet), kinds)
    ]
    if is_rcnn:
        checks += [
            (
                "MODEL.PROPOSAL_GENERATOR.NAME",
                lambda v: _is_registered_as(PROPOSAL_GENERATOR_REGISTRY, v, LesionRPN),
                f"{LesionRPN.__name__!r} {why}",
            ),
            (
                "MODEL.ROI_HEADS.NAME",
                lambda v: not _is_registered_as(ROI_HEADS_REGISTRY, v, CascadeROIHeads),
                f"heads without a cascade {why}",
            ),
        ]
    check_values(cfg, checks)


def check_regions(cfg: CfgNode, images: Iterable[Mapping]) -> None:
    """Check that the model supports regions to ignore, if training has any.

    Lesions that are cut by patches become such regions.

    Args:
        cfg: config of a training run.
        images: the dicts of DATASETS.TRAIN.

    Raises:
        InputError: a part of the model treats such regions as background.
    """
    first = next((i["image_id"] for i in images if regions_of(i["annotations"])), None)
    if first is not None:
        why = f"for the regions to ignore of DATASETS.TRAIN (iscrowd, the first: {first})"
    elif any(cfg.INPUT.PATCH.SIZE):
        why = f"for the lesions that patches cut (INPUT.PATCH.SIZE is {cfg.INPUT.PATCH.SIZE})"
    elif is_volumetric(cfg):
        why = f"for the lesions that patches cut (INPUT.VOLUME is {dict(cfg.INPUT.VOLUME)})"
    else:
        return
    is_rcnn = is_a(cfg, GeneralizedRCNN)
    kinds = "a LesionRetinaNet, RetinaUNet, DetUNet or LesionRCNN"
    checks = [
        (
            "MODEL.META_ARCHITECTURE",
            lambda _: is_rcnn or is_a(cfg, LesionRetinaNet, DetUNet),
            f"{kinds} {why}",
        )
    ]
    if is_rcnn:
        checks += [
            (
                "MODEL.PROPOSAL_GENERATOR.NAME",
                lambda v: _is_registered_as(PROPOSAL_GENERATOR_REGISTRY, v, LesionRPN),
                f"'LesionRPN' {why}",
            ),
            (
                "MODEL.ROI_HEADS.NAME",
                lambda v: _is_registered_as(ROI_HEADS_REGISTRY, v, RegionROIHeads),
                f"'LesionROIHeads' or others of this project {why}",
            ),
        ]
    check_values(cfg, checks)


def _is_registered_as(registry: Registry, name: str, kind: type) -> bool:
    return name in registry and issubclass(registry.get(name), kind)


def _check_mining(cfg: CfgNode) -> None:
    mining = switched_on(cfg, "HARD_NEGATIVES.")
    if not mining:
        return
    if not has_uldor_heads(cfg):
        raise InputError(
            f"{found_heads(cfg)}, expected {ULDOR_HEADS!r} for hard negatives ({mining})"
        )
    if trains_on_masks(cfg) and not cfg.MODEL.MASK_ON:
        raise InputError(
            "MODEL.MASK_ON: found False, expected True: MODEL.LESION_RCNN.SEG_LOSS_WEIGHT "
            f"{cfg.MODEL.LESION_RCNN.SEG_LOSS_WEIGHT} needs the masks of hard negatives ({mining})"
        )
    if cfg.MODEL.LESION_RCNN.SEG_LOSS_WEIGHT > 0 and cfg.MODEL.SEG_HEAD.CLASS_AGNOSTIC:
        raise InputError(
            "MODEL.SEG_HEAD.CLASS_AGNOSTIC: found True, expected False: hard negatives are "
            f"no lesions, and one foreground of all classes would have them among it ({mining})"
        )
    unknown = [n for n in cfg.HARD_NEGATIVES.DATASETS if n not in cfg.DATASETS.TRAIN]
    if unknown:
        raise InputError(
            f"HARD_NEGATIVES.DATASETS: found {unknown[0]!r}, expected names of DATASETS.TRAIN: "
            f"{', '.join(cfg.DATASETS.TRAIN)} ({mining})"
        )
    if cfg.MODEL.ULDOR.COUNT_FALSE_POSITIVES:
        raise InputError(
            "MODEL.ULDOR.COUNT_FALSE_POSITIVES: found True, expected False in a training with hard "
            f"negatives ({mining}): it is for --eval-only"
        )
