"""Checks of the metric that selects the best checkpoint."""

import logging
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ...evaluation import volume_metrics_of
from ...structures.ignore_regions import lesions_of
from ..input_errors import InputError, switched_on, value_of
from .relations import BY_METRIC

logger = logging.getLogger(__name__)


def check_best_metric(cfg: CfgNode, test_sets: Mapping[str, list[dict]]) -> None:
    """Check that TEST.BEST_METRIC is defined: its data set has this metric, and lesions.

    If only ``model_best.pth`` depends on it, a warning is logged that there will be none.

    Args:
        cfg: of a training.
        test_sets: name -> dicts, of DATASETS.TEST.

    Raises:
        InputError: a schedule, the early stop or TEST.NUM_BEST_CHECKPOINTS would go by what is not
            defined.
    """
    if not test_sets or cfg.SOLVER.PATIENCE_METRIC or not switched_on(cfg, "TEST.EVAL_"):
        return
    metric, names = cfg.TEST.BEST_METRIC, list(test_sets)
    name = next((n for n in names if metric.startswith(f"{n}/")), names[0])
    fault = _fault(cfg, metric, name)
    if not fault and not any(lesions_of(image["annotations"]) for image in test_sets[name]):
        fault = f"DATASETS.TEST, {name}: found no lesion, expected some, which define {metric}"
    if not fault:
        return
    for key in BY_METRIC:
        value = value_of(cfg, key)
        if value > 0:
            raise InputError(f"{fault} ({key} is {value})")
    logger.warning(f"{fault}: there will be no model_best.pth")


def _fault(cfg: CfgNode, metric: str, name: str) -> str:
    """Describe why the evaluation of a data set does not have the metric; "" if it does."""
    metadata = MetadataCatalog.get(name)
    is_volume = metadata.get("evaluator_type") == "lesion_volume"
    known = volume_metrics_of(
        cfg.TEST.VOLUME_CRITERIA, cfg.TEST.VOLUME_FROC_RATES, metadata.get("thing_classes", ())
    )
    found = metric.removeprefix(f"{name}/")
    if (found in known) if is_volume else not found.startswith(("volume/", "volume_")):
        return ""
    expected = known[0] if is_volume else "one of an evaluation of slices"
    return f"TEST.BEST_METRIC: found {metric!r}, expected {expected} for {name}"
