"""What is wrong with a run's inputs, found before anything is written."""

import argparse
import logging
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    GeneralizedRCNN,
    RetinaNet,
)
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.utils.registry import Registry
from torch import nn

from ..config import trains_on_masks
from ..data.mapper import LesionDatasetMapper
from ..evaluation import parse_criteria, volume_metrics_of
from ..files import one_line
from ..inference import LINKINGS
from ..inference.ensemble import CONSOLIDATIONS
from ..modeling import (
    AttentionGate,
    ContextualAttention,
    DetUNet,
    LesionRCNN,
    LesionRPN,
    RetinaUNet,
    SpatialAttention,
    ULDorROIHeads,
)
from ..modeling.meta_arch.mean_teacher import POLICIES
from .best_checkpoints import checkpoint_files
from .checkpoint import check_weights, read_checkpoint
from .data_checks import check_masks, check_mined_images, check_test_sets, load_datasets
from .input_errors import (
    InputError,
    as_input_error,
    has_uldor_heads,
    is_a,
    switched_on,
    value_of,
)
from .mean_teacher import STUDENT
from .schedule import check_epochs, resolve_epochs
from .trainer import optimizer_class
from .validation_loss import VALIDATION_LOSS

logger = logging.getLogger(__name__)

# A key, whether a value of it can be used, and what is expected.
_Check = tuple[str, Callable[[Any], bool], str]
_MODEL_CHECKS: tuple[_Check, ...] = (
    ("MODEL.RETINA_UNET.SEG_LOSS_WEIGHT", lambda v: v >= 0, "0 (off) or more"),
    ("MODEL.RETINA_UNET.SEG_FOCAL_ALPHA", lambda v: 0 <= v <= 1, "0 to 1"),
    ("MODEL.RETINA_UNET.SEG_FOCAL_GAMMA", lambda v: v >= 0, "0 or more"),
    ("MODEL.RETINA_UNET.BOX_MARGIN", lambda v: v >= 0, "0 or more pixels"),
    ("MODEL.RETINA_UNET.SHEM_POOL", lambda v: v >= 0, "0 (off) or more"),
    ("MODEL.LESION_RCNN.SEG_LOSS_WEIGHT", lambda v: v >= 0, "0 (off) or more"),
    ("MODEL.DET_UNET.MAX_COMPONENTS", lambda v: v >= 1, "1 or more"),
    ("MODEL.RFCN_3DCE.CONTEXTUAL_TEMPERATURE", lambda v: v > 0, "above 0"),
    ("MODEL.RFCN_3DCE.SPATIAL_TEMPERATURE", lambda v: v > 0, "above 0"),
    ("MODEL.RFCN_3DCE.NUM_SCORE_MAPS", lambda v: v >= 1, "1 or more"),
    ("MODEL.SLICE_IMAGES.NUM_REUSED", lambda v: v >= 0, "0 (none) or more images"),
)
_TEACHER_CHECKS: tuple[_Check, ...] = (
    ("MODEL.MEAN_TEACHER.MOMENTUM", lambda v: 0 <= v < 1, "0 to below 1"),
    ("MODEL.MEAN_TEACHER.POLICY", lambda v: v in POLICIES, f"one of {', '.join(POLICIES)}"),
    ("MODEL.MEAN_TEACHER.SCORE_THRESH", lambda v: 0 < v <= 1, "a score above 0, at most 1"),
    ("MODEL.MEAN_TEACHER.GT_NMS_THRESH", lambda v: 0 <= v <= 1, "an IoU from 0 to 1"),
)
_ENSEMBLE_CHECKS: tuple[_Check, ...] = (
    ("TEST.ENSEMBLE.TILE_SIZE", lambda v: v >= 0, "0 (no tiles) or more pixels"),
    ("TEST.ENSEMBLE.TILE_OVERLAP", lambda v: 0 <= v < 1, "a share from 0 to below 1"),
    (
        "TEST.ENSEMBLE.CONSOLIDATION",
        lambda v: v in CONSOLIDATIONS,
        f"one of {', '.join(CONSOLIDATIONS)}",
    ),
    ("TEST.ENSEMBLE.IOU_THRESH", lambda v: 0 <= v < 1, "an IoU from 0 to below 1"),
    ("TEST.LINKING", lambda v: v in LINKINGS, f"one of {', '.join(LINKINGS)}"),
    ("TEST.MERGE_IOU_THRESH", lambda v: 0 <= v < 1, "an IoU from 0 to below 1"),
    ("TEST.TRACKING.IOU_THRESH", lambda v: 0 <= v < 1, "an IoU from 0 to below 1"),
    ("TEST.TRACKING.MAX_GAP", lambda v: v >= 0, "0 (none) or more slices"),
    (
        "TEST.VOLUME_FROC_RATES",
        lambda v: len(v) > 0 and all(isinstance(r, (int, float)) and 0 < r < math.inf for r in v),
        "finite numbers above 0, at least one",
    ),
)
_TRAINING_CHECKS: tuple[_Check, ...] = (
    (
        "DATALOADER.SAMPLER_TRAIN",
        lambda v: v == "TrainingSampler",
        "'TrainingSampler', the only one of the training loader",
    ),
    ("SOLVER.PLATEAU_PATIENCE", lambda v: v >= 0, "0 (off) or more"),
    ("SOLVER.PLATEAU_FACTOR", lambda v: 0 < v < 1, "a factor between 0 and 1"),
    ("SOLVER.EARLY_STOP_PATIENCE", lambda v: v >= 0, "0 (off) or more"),
    (
        "SOLVER.PATIENCE_METRIC",
        lambda v: v in ("", VALIDATION_LOSS),
        f"'' (TEST.BEST_METRIC) or {VALIDATION_LOSS!r}",
    ),
    ("TEST.LOSS_PERIOD", lambda v: v >= 0, "0 (off) or more"),
    ("TEST.KEEP_BEST", lambda v: v >= 0, "0 (none) or more checkpoints"),
    ("DATASETS.HIDDEN_SHARE", lambda v: 0 <= v < 1, "a share from 0 to below 1"),
    ("DATASETS.HIDDEN_SEED", lambda v: v >= 0, "0 or more"),
    ("HARD_NEGATIVES.PERIOD", lambda v: v >= 0, "0 (off) or more"),
    ("HARD_NEGATIVES.START_ITER", lambda v: v >= 0, "0 or more"),
    ("HARD_NEGATIVES.MAX_PER_IMAGE", lambda v: v >= 1, "1 or more"),
    ("HARD_NEGATIVES.GOOD_IOU", lambda v: 0 <= v <= 1, "0 to 1"),
    ("HARD_NEGATIVES.MIN_SCORE", lambda v: 0 <= v <= 1, "0 to 1"),
)
_ULDOR_HEADS = ULDorROIHeads.__name__
# A key, the part that it switches on, and the backbones that have it.
_ATTENTIONS: tuple[tuple[str, type, str], ...] = (
    ("MODEL.UNET_FPN.ATTENTION", AttentionGate, "a U-FPN"),
    *(
        (f"MODEL.RFCN_3DCE.{name}_ATTENTION", kind, "build_slice_images_backbone")
        for name, kind in (("CONTEXTUAL", ContextualAttention), ("SPATIAL", SpatialAttention))
    ),
)


def check_inputs(cfg: CfgNode, args: argparse.Namespace) -> int:
    """Check what a run reads: the weights, every data set, and the keys that it goes by.

    Args:
        cfg: of the run.
        args: of Detectron2's ``default_argument_parser``.

    Returns:
        Images in DATASETS.TRAIN, without those that the training loader leaves out; 0 with
        ``--eval-only``.

    Raises:
        InputError: something is missing or empty, or a value is none of those known.
    """
    _check_ensemble(cfg, args)
    _check_weights(cfg, args, _check_model(cfg))
    with as_input_error(""):
        LesionDatasetMapper(cfg, not args.eval_only)
    if args.eval_only:
        load_datasets(cfg, "TEST", required=True)
        return 0
    _check_training(cfg, args.num_gpus * args.num_machines)
    images = load_datasets(cfg, "TRAIN", required=True)
    check_masks(cfg, images, "TRAIN")
    check_mined_images(cfg, images)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        images = [image for image in images if image["annotations"]]
    if not images:
        raise InputError(f"DATASETS.TRAIN: found no lesion in {', '.join(cfg.DATASETS.TRAIN)}")
    _check_iterations(cfg, len(images))
    test_images = load_datasets(cfg, "TEST", required=False)
    if switched_on(cfg, "TEST.LOSS_"):
        check_masks(cfg, test_images, "TEST")
    return len(images)


def _check_iterations(cfg: CfgNode, num_images: int) -> None:
    cfg = cfg.clone()
    resolve_epochs(cfg, num_images)
    period, start = cfg.HARD_NEGATIVES.PERIOD, cfg.HARD_NEGATIVES.START_ITER
    end = cfg.SOLVER.MAX_ITER
    if period > 0 and period * max(1, math.ceil(start / period)) >= end:
        raise InputError(
            f"HARD_NEGATIVES: found no mining in {end} iterations, expected a multiple of PERIOD "
            f"({period}) from START_ITER ({start}) on before the last one"
        )


def _check_model(cfg: CfgNode) -> nn.Module:
    """Build the model without memory for its weights, which checks the keys that it goes by."""
    _check_values(cfg, _MODEL_CHECKS)
    found, strength = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.RETINA_UNET.CALIBRATION
    if strength > 0 and not is_a(cfg, RetinaUNet):
        raise InputError(
            f"MODEL.META_ARCHITECTURE: found {found!r}, expected 'RetinaUNet' for the calibration "
            f"(MODEL.RETINA_UNET.CALIBRATION is {strength})"
        )
    seg_loss_weight = cfg.MODEL.LESION_RCNN.SEG_LOSS_WEIGHT
    if seg_loss_weight > 0 and not is_a(cfg, LesionRCNN):
        raise InputError(
            f"MODEL.META_ARCHITECTURE: found {found!r}, expected 'LesionRCNN' for its segmentation "
            f"loss (MODEL.LESION_RCNN.SEG_LOSS_WEIGHT is {seg_loss_weight})"
        )
    if cfg.INPUT.CT.CUT_BORDERS and not is_a(cfg, DetUNet, LesionRCNN, RetinaUNet):
        raise InputError(
            f"MODEL.META_ARCHITECTURE: found {found!r}, expected a DetUNet, LesionRCNN or "
            "RetinaUNet, which bring boxes back to the slice (INPUT.CT.CUT_BORDERS is True)"
        )
    try:
        with torch.device("meta"):
            model = META_ARCH_REGISTRY.get(found)(cfg)
    except (AssertionError, AttributeError, IndexError, KeyError, ValueError) as error:
        # Detectron2 tells of a name that does not exist by a KeyError of that name alone.
        text = one_line(error)
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "
        raise InputError(
            f"MODEL: found {found} on {cfg.MODEL.BACKBONE.NAME} not to be built: {kind}{text}"
        ) from error
    except (NotImplementedError, RuntimeError) as error:
        # Some backbones need values while they are built: the run itself builds and checks them.
        logger.info(f"{found} on {cfg.MODEL.BACKBONE.NAME} was not checked beforehand: {error}")
        return nn.Identity()
    for key, kind, expected in _ATTENTIONS:
        if value_of(cfg, key) and not any(isinstance(m, kind) for m in model.modules()):
            raise InputError(
                f"MODEL.BACKBONE.NAME: found {cfg.MODEL.BACKBONE.NAME}, expected {expected} for "
                f"{key} True"
            )
    if cfg.MODEL.ULDOR.COUNT_FALSE_POSITIVES and not has_uldor_heads(cfg):
        raise InputError(
            f"{_found_heads(cfg)}, expected {_ULDOR_HEADS!r} for "
            "MODEL.ULDOR.COUNT_FALSE_POSITIVES True"
        )
    return model


def _found_heads(cfg: CfgNode) -> str:
    if is_a(cfg, GeneralizedRCNN):
        return f"MODEL.ROI_HEADS.NAME: found {cfg.MODEL.ROI_HEADS.NAME!r}"
    found = cfg.MODEL.META_ARCHITECTURE
    return f"MODEL.META_ARCHITECTURE: found {found!r}, which has no MODEL.ROI_HEADS"


def _check_values(cfg: CfgNode, checks: Iterable[_Check]) -> None:
    for key, is_usable, expected in checks:
        value = value_of(cfg, key)
        if not is_usable(value):
            raise InputError(f"{key}: found {value!r}, expected {expected}")


def _check_training(cfg: CfgNode, num_processes: int) -> None:
    with as_input_error(""):
        optimizer_class(cfg)
    if num_processes > 1 and cfg.SOLVER.IMS_PER_BATCH % num_processes:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH: found {cfg.SOLVER.IMS_PER_BATCH}, expected a multiple of the "
            f"{num_processes} processes"
        )
    _check_values(cfg, _TRAINING_CHECKS)
    with as_input_error(""):
        check_epochs(cfg)
    _check_evaluations(cfg)
    _check_mining(cfg)
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
    _check_values(cfg, _TEACHER_CHECKS)
    if cfg.TEST.PRECISE_BN.ENABLED:
        raise InputError(
            "TEST.PRECISE_BN.ENABLED: found True, expected False: a mean teacher's statistics are "
            "the average of its student's (MODEL.MEAN_TEACHER.ENABLED is True)"
        )
    heads = "RETINANET" if is_a(cfg, RetinaNet) else "ROI_HEADS" * is_a(cfg, GeneralizedRCNN)
    lowest = cfg.MODEL[heads].SCORE_THRESH_TEST if heads else 0.0
    if options.POLICY != "none" and lowest > options.SCORE_THRESH:
        raise InputError(
            f"MODEL.MEAN_TEACHER.SCORE_THRESH: found {options.SCORE_THRESH}, expected "
            f"MODEL.{heads}.SCORE_THRESH_TEST or more, which is {lowest}: the teacher gives no "
            "detection of a lower score"
        )
    if options.POLICY == "ignore":
        _check_ignoring(cfg)


def _check_ignoring(cfg: CfgNode) -> None:
    """Check that all losses leave out annotations of class -1."""
    why = "for MODEL.MEAN_TEACHER.POLICY 'ignore'"
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
    _check_values(cfg, checks)


def _is_registered_as(registry: Registry, name: str, kind: type) -> bool:
    return name in registry and issubclass(registry.get(name), kind)


def _check_evaluations(cfg: CfgNode) -> None:
    """Check that there is what TEST.KEEP_BEST and the patience of schedules go by."""
    loss = switched_on(cfg, "TEST.LOSS_")
    if loss and not cfg.DATASETS.TEST:
        raise InputError(f"DATASETS.TEST: found no data set, expected one for its loss ({loss})")
    metric = cfg.SOLVER.PATIENCE_METRIC
    kind, of_what = ("LOSS", f" of the {metric}") if metric else ("EVAL", "")
    for key in ("SOLVER.PLATEAU_PATIENCE", "SOLVER.EARLY_STOP_PATIENCE", "TEST.KEEP_BEST"):
        value = value_of(cfg, key)
        if value == 0:
            continue
        if not cfg.DATASETS.TEST:
            raise InputError(
                f"DATASETS.TEST: found no data set, expected one to evaluate ({key} is {value})"
            )
        if not switched_on(cfg, f"TEST.{kind}_"):
            raise InputError(
                f"TEST.{kind}_PERIOD: found {cfg.TEST[f'{kind}_PERIOD']}, expected it or "
                f"TEST.{kind}_EPOCHS above 0 ({key} is {value} and goes by evaluations{of_what})"
            )
        if not metric:
            _check_best_metric(cfg, f"{key} is {value}")


def _check_best_metric(cfg: CfgNode, why: str) -> None:
    metric, names = cfg.TEST.BEST_METRIC, cfg.DATASETS.TEST
    name = next((n for n in names if metric.startswith(f"{n}/")), names[0])
    metadata = MetadataCatalog.get(name)
    rates, criteria = cfg.TEST.VOLUME_FROC_RATES, cfg.TEST.VOLUME_CRITERIA
    known = volume_metrics_of(criteria, rates, metadata.get("thing_classes", ()))
    is_volume = metadata.get("evaluator_type") == "lesion_volume"
    found = metric.removeprefix(f"{name}/")
    if (found not in known) if is_volume else found.startswith(("volume/", "volume_")):
        expected = known[0] if is_volume else "one of an evaluation of slices"
        raise InputError(
            f"TEST.BEST_METRIC: found {metric!r}, expected {expected} for {name} ({why})"
        )


def _check_mining(cfg: CfgNode) -> None:
    mining = switched_on(cfg, "HARD_NEGATIVES.")
    if not mining:
        return
    if not has_uldor_heads(cfg):
        raise InputError(
            f"{_found_heads(cfg)}, expected {_ULDOR_HEADS!r} for hard negatives ({mining})"
        )
    if trains_on_masks(cfg) and not cfg.MODEL.MASK_ON:
        raise InputError(
            "MODEL.MASK_ON: found False, expected True: MODEL.LESION_RCNN.SEG_LOSS_WEIGHT "
            f"{cfg.MODEL.LESION_RCNN.SEG_LOSS_WEIGHT} needs the masks of hard negatives ({mining})"
        )
    if cfg.MODEL.LESION_RCNN.SEG_LOSS_WEIGHT > 0 and cfg.MODEL.RETINA_UNET.SEG_CLASS_AGNOSTIC:
        raise InputError(
            "MODEL.RETINA_UNET.SEG_CLASS_AGNOSTIC: found True, expected False: hard negatives are "
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


def _check_ensemble(cfg: CfgNode, args: argparse.Namespace) -> None:
    _check_values(cfg, _ENSEMBLE_CHECKS)
    with as_input_error("TEST.VOLUME_CRITERIA: "):
        parse_criteria(cfg.TEST.VOLUME_CRITERIA)
    files = cfg.TEST.ENSEMBLE.CHECKPOINTS
    if files and not cfg.TEST.ENSEMBLE.ENABLED:
        raise InputError(
            "TEST.ENSEMBLE.ENABLED: found False, expected True for TEST.ENSEMBLE.CHECKPOINTS "
            f"({', '.join(files)})"
        )
    if files and args.eval_only and args.resume:
        raise InputError(
            "--resume: found TEST.ENSEMBLE.CHECKPOINTS too, expected one of them with --eval-only"
        )


def _check_checkpoints(cfg: CfgNode, model: nn.Module) -> None:
    with as_input_error("TEST.ENSEMBLE.CHECKPOINTS: "):
        for file in checkpoint_files(cfg.TEST.ENSEMBLE.CHECKPOINTS):
            check_weights(file, model, for_training=False)


def _check_weights(cfg: CfgNode, args: argparse.Namespace, model: nn.Module) -> None:
    if args.eval_only and cfg.TEST.ENSEMBLE.CHECKPOINTS:  # then MODEL.WEIGHTS is not used
        _check_checkpoints(cfg, model)
        return
    tag = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if args.resume and os.path.isfile(tag):
        _check_last_checkpoint(cfg, args, tag, model)
        return
    if args.eval_only and not cfg.MODEL.WEIGHTS:
        raise InputError("--eval-only: found no MODEL.WEIGHTS, expected a checkpoint's path")
    with as_input_error("MODEL.WEIGHTS: "):
        check_weights(cfg.MODEL.WEIGHTS, model, for_training=not args.eval_only)


def _check_last_checkpoint(
    cfg: CfgNode, args: argparse.Namespace, tag: str, model: nn.Module
) -> None:
    with open(tag) as file:
        checkpoint = os.path.join(os.path.dirname(tag), file.read().strip())
    try:
        check_weights(checkpoint, model, for_training=False)
        if not args.eval_only:
            _check_student(cfg, checkpoint)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(
            f"--resume: {error}; {tag} names it: remove {tag}, or start without --resume"
        ) from error


def _check_student(cfg: CfgNode, checkpoint: str) -> None:
    found, expected = STUDENT in read_checkpoint(checkpoint), cfg.MODEL.MEAN_TEACHER.ENABLED
    if found != expected:
        of_training = {True: "of a mean teacher's training", False: "of a plain training"}
        raise ValueError(
            f"{checkpoint}: found a checkpoint {of_training[found]}, expected one "
            f"{of_training[expected]} (MODEL.MEAN_TEACHER.ENABLED is {expected})"
        )
