"""Checks of the config keys for evaluation."""

import argparse
import logging
import math
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ...evaluation import AP_METHODS, parse_criteria, volume_metrics_of
from ...inference import LINKINGS
from ...inference.ensemble import CONSOLIDATIONS
from ...structures.ignore_regions import lesions_of
from ..input_errors import InputError, as_input_error, switched_on, value_of
from .values import Check, check_values

logger = logging.getLogger(__name__)

_ENSEMBLE_CHECKS: tuple[Check, ...] = (
    ("TEST.IMS_PER_BATCH", lambda v: 1 <= v <= 2**16, "1 to 2^16"),
    ("TEST.ENSEMBLE.TILE_SIZE", lambda v: v >= 0, "0 (no tiles) or more pixels"),
    ("TEST.ENSEMBLE.TILE_OVERLAP", lambda v: 0 <= v < 1, "a share from 0 to below 1"),
    (
        "TEST.ENSEMBLE.CONSOLIDATION",
        lambda v: v in CONSOLIDATIONS,
        f"one of {', '.join(CONSOLIDATIONS)}",
    ),
    ("TEST.ENSEMBLE.IOU_THRESH", lambda v: 0 <= v < 1, "an IoU from 0 to below 1"),
    ("TEST.ENSEMBLE.TILE_IOU_THRESH", lambda v: 0 <= v < 1, "an IoU from 0 to below 1"),
    ("TEST.LINKING", lambda v: v in LINKINGS, f"one of {', '.join(LINKINGS)}"),
    ("TEST.MERGE_IOU_THRESH", lambda v: 0 <= v < 1, "an IoU from 0 to below 1"),
    ("TEST.TRACKING.IOU_THRESH", lambda v: 0 <= v < 1, "an IoU from 0 to below 1"),
    ("TEST.TRACKING.MAX_GAP", lambda v: v >= 0, "0 (none) or more slices"),
    ("TEST.VOLUME_AP", lambda v: v in AP_METHODS, f"one of {', '.join(AP_METHODS)}"),
    (
        "TEST.VOLUME_FROC_RATES",
        lambda v: len(v) > 0 and all(isinstance(r, (int, float)) and 0 < r < math.inf for r in v),
        "finite numbers above 0, at least one",
    ),
)


# Keys that depend on evaluations if above 0.
_BY_METRIC = ("SOLVER.PLATEAU_PATIENCE", "SOLVER.EARLY_STOP_PATIENCE", "TEST.NUM_BEST_CHECKPOINTS")


def check_ensemble(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Check the keys for ensembles and volumes.

    Raises:
        InputError: a value is invalid; the message names the key.
    """
    check_values(cfg, _ENSEMBLE_CHECKS)
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


def check_evaluations(cfg: CfgNode) -> None:
    """Check that there is what TEST.NUM_BEST_CHECKPOINTS and the patience of schedules go by."""
    loss = switched_on(cfg, "TEST.LOSS_")
    if loss and not cfg.DATASETS.TEST:
        raise InputError(f"DATASETS.TEST: found no data set, expected one for its loss ({loss})")
    metric = cfg.SOLVER.PATIENCE_METRIC
    kind, of_what = ("LOSS", f" of the {metric}") if metric else ("EVAL", "")
    for key in _BY_METRIC:
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
        fault = "" if metric else _best_metric_fault(cfg)
        if fault:
            raise InputError(f"{fault} ({key} is {value})")


def check_lesions(cfg: CfgNode, test_sets: Mapping[str, list[dict]]) -> None:
    """Check that TEST.BEST_METRIC is defined: its data set has this metric, and lesions.

    If only ``model_best.pth`` depends on it, a warning is logged that there will be none.

    Args:
        cfg: of a training.
        test_sets: name -> dicts.

    Raises:
        InputError: a schedule, the early stop or TEST.NUM_BEST_CHECKPOINTS would go by what is not
            defined.
    """
    if not test_sets or cfg.SOLVER.PATIENCE_METRIC or not switched_on(cfg, "TEST.EVAL_"):
        return
    fault = _best_metric_fault(cfg)
    if fault:  # if a schedule depends on it, check_evaluations has raised an error
        logger.warning(f"{fault}: there will be no model_best.pth")
    name = _best_metric_set(cfg)
    if any(lesions_of(image["annotations"]) for image in test_sets[name]):
        return
    found = f"DATASETS.TEST, {name}: found no lesion, so that {cfg.TEST.BEST_METRIC} is not defined"
    for key in _BY_METRIC:
        value = value_of(cfg, key)
        if value > 0:
            raise InputError(f"{found}, expected some ({key} is {value})")
    logger.warning(f"{found}: there will be no model_best.pth")


def _best_metric_set(cfg: CfgNode) -> str:
    names = cfg.DATASETS.TEST
    return next((n for n in names if cfg.TEST.BEST_METRIC.startswith(f"{n}/")), names[0])


def _best_metric_fault(cfg: CfgNode) -> str:
    """The error of TEST.BEST_METRIC for its data set; empty if there is none."""
    metric, name = cfg.TEST.BEST_METRIC, _best_metric_set(cfg)
    metadata = MetadataCatalog.get(name)
    rates, criteria = cfg.TEST.VOLUME_FROC_RATES, cfg.TEST.VOLUME_CRITERIA
    known = volume_metrics_of(criteria, rates, metadata.get("thing_classes", ()))
    is_volume = metadata.get("evaluator_type") == "lesion_volume"
    found = metric.removeprefix(f"{name}/")
    if (found in known) if is_volume else not found.startswith(("volume/", "volume_")):
        return ""
    expected = known[0] if is_volume else "one of an evaluation of slices"
    return f"TEST.BEST_METRIC: found {metric!r}, expected {expected} for {name}"
