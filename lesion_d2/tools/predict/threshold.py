"""The score threshold of findings, from an evaluation or from the user."""

import argparse
from pathlib import Path

from lesion_d2.config.volumetric import is_volumetric
from lesion_d2.engine import InputError, weight_files
from lesion_d2.engine.checkpoint_files.best_checkpoints import FOLDER as BEST_FOLDER
from lesion_d2.evaluation import OperatingPoints, read_operating_points
from lesion_d2.findings import OperatingPoint

from detectron2.config import CfgNode

#: The default rate: the lowest in the papers' tables.
DEFAULT_RATE = 0.5
_FILES = {"image": "froc.json", "volume": "volumes.json"}


def choose_threshold(args: argparse.Namespace, cfg: CfgNode) -> tuple[OperatingPoint, str]:
    """The operating point of a command line.

    Args:
        args: with ``score_threshold``, ``fps_per_image``, ``fps_per_volume``, of which at most one
            is not None, and ``operating_points``, a file or None.
        cfg: of the model; an evaluation's file is searched beside its weights.

    Returns:
        The point, and a line that describes its source.

    Raises:
        InputError: there is no such file, or more than one, or it does not have this rate.
    """
    if args.score_threshold is not None:
        if args.operating_points is not None:
            raise InputError("found --score-threshold and --operating-points, expected one of them")
        return OperatingPoint(args.score_threshold), f"score threshold {args.score_threshold:g}"
    unit, rate = _wanted(args)
    default = "volume" if is_volumetric(cfg) else "image"
    try:
        file = args.operating_points or _find(cfg, unit or default)
        points = read_operating_points(file)
        if unit not in (None, points.unit):
            raise ValueError(
                f"found false positives per {points.unit}, expected false positives per {unit} "
                f"({_FILES[unit]})"
            )
        threshold = points.threshold_of(rate)
    except (OSError, ValueError) as error:
        text = str(error)
        prefix = "" if text.startswith((str(args.operating_points), "MODEL.")) else f"{file}: "
        raise InputError(f"{prefix}{text}") from None
    return OperatingPoint(threshold, rate, points.unit, points.dataset), _describe(
        file, points, rate, threshold
    )


def _wanted(args: argparse.Namespace) -> tuple[str | None, float]:
    for unit in _FILES:
        rate = getattr(args, f"fps_per_{unit}")
        if rate is not None:
            return unit, rate
    return None, DEFAULT_RATE


def _describe(file: str | Path, points: OperatingPoints, rate: float, threshold: float) -> str:
    return (
        f"score threshold {threshold:.4g}: {rate:g} false positives per {points.unit} on the data "
        f"set {points.dataset} ({file}); on other scans it may be more or fewer"
    )


def _find(cfg: CfgNode, unit: str) -> Path:
    """The evaluation's file beside the weights; if there are several, that of DATASETS.TEST."""
    name = _FILES[unit]
    folders = []
    for weights in weight_files(cfg):
        folder = Path(weights).parent
        folders += [folder.parent] if folder.name == BEST_FOLDER else [folder]
    found = {f for folder in folders for f in folder.glob(f"inference/*/{name}")}
    chosen = [f for f in found if f.parent.name in cfg.DATASETS.TEST] if len(found) > 1 else found
    if len(chosen) == 1:
        return next(iter(chosen))
    where = ", ".join(sorted({str(folder / "inference") for folder in folders})) or "no folder"
    if found:
        listed = ", ".join(sorted(map(str, found)))
        raise ValueError(
            f"MODEL.WEIGHTS: found {listed}; expected one of them (--operating-points)"
        )
    raise ValueError(
        f"MODEL.WEIGHTS: found no {name} of an evaluation in {where}, expected --score-threshold, "
        f"or --operating-points with a {name}"
    )
