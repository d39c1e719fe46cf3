"""Figures of curves: FROC curves of several runs, and the curves of a training."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from lesion_d2.engine import TrainingCurvesHook
from lesion_d2.engine.training_curves import has_curves, plot_training, read_metrics
from lesion_d2.evaluation import FrocCurve, plot_froc
from lesion_d2.evaluation.plots import PLOT_RATES, PLOT_TICKS
from lesion_d2.evaluation.result_files import read_froc_file
from lesion_d2.tools.compare_runs import find_tables

import numpy as np

Band = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw_froc(args: argparse.Namespace) -> list[str]:
    """Draw the FROC curves of some experiments in one figure; return the paths of PNG and PDF.

    Raises:
        FileNotFoundError: as :func:`~lesion_d2.tools.compare_runs.find_tables`.
        ValueError: two experiments have the same name, or a file has no curve.
    """
    names = [name for name, _ in args.experiments]
    if len(set(names)) < len(names):
        raise ValueError(f"experiments: found {', '.join(names)}, expected different names")
    curves, bands, kinds = {}, {}, []
    for name, pattern in args.experiments:
        runs = [read_curve(file) for file in find_tables(pattern, args.dataset)]
        curves[name], band, kind = combine([curve for curve, _ in runs], [b for _, b in runs])
        if band is not None:
            bands[name] = band
            kinds.append(kind)
    label = " or ".join(dict.fromkeys(kinds))
    plot_froc(curves, args.output, bands=bands, band_label=label, title=args.dataset)
    return figure_paths(args.output)


def read_curve(file: Path) -> tuple[FrocCurve, Band | None]:
    """Read the FROC curve of all lesions from a ``froc.json``, and its interval, if it has one.

    The file has a part of the curve's points. At the rates of its table the curve has exactly the
    values of the table.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_froc_file`, or there is no curve.
    """
    content = read_froc_file(file)
    if "curve" not in content:
        raise ValueError(f"{file}: found no curve, expected one: evaluate again (--eval-only)")
    row, points = content["rows"][0], content["curve"]
    rates = np.array(points["fps_per_image"], float)
    sensitivity = np.array(points["sensitivity"], float)
    for name, value in row.items():
        rate = float(name.removeprefix("sens@")) if _is_sensitivity(name) else np.inf
        if len(rates) and value is not None and rates[0] <= rate <= rates[-1]:
            place = np.searchsorted(rates, rate, side="right")
            rates = np.insert(rates, place, rate)
            sensitivity = np.insert(sensitivity, place, value / 100)
    counts = {"num_lesions": row["lesions"], "num_images": row.get("images") or 0}
    curve = FrocCurve(np.zeros(len(rates)), sensitivity, rates, **counts)
    band = content.get("band")
    if band is None:
        return curve, None
    return curve, tuple(np.array(band[key], float) for key in ("rates", "low", "high"))


def _is_sensitivity(name: str) -> bool:
    return name.startswith("sens@") and not name.endswith(("_low", "_high"))


def combine(
    curves: Sequence[FrocCurve], bands: Sequence[Band | None]
) -> tuple[FrocCurve, Band | None, str]:
    """The mean curve of several runs of an experiment, and a band around it.

    Args:
        curves: one per run.
        bands: one per run, or None.

    Returns:
        The curve, its band and what the band is: of one run its own band, if there is one; of
        several, the lowest and the highest sensitivity at each rate. The mean curve ends where the
        last of them ends.
    """
    if len(curves) == 1:
        return curves[0], bands[0], "95 % interval"
    end = max((curve.fps_per_image[-1] for curve in curves if len(curve.thresholds)), default=0.0)
    rates = np.union1d(np.geomspace(PLOT_TICKS[0], PLOT_TICKS[-1], 512), [0.0, *PLOT_TICKS, end])
    rates = rates[rates <= end]
    mean = np.mean([curve.at(rates) for curve in curves], axis=0)
    counts = {"num_lesions": curves[0].num_lesions, "num_images": curves[0].num_images}
    values = np.array([curve.at(PLOT_RATES) for curve in curves])
    band = PLOT_RATES, values.min(axis=0), values.max(axis=0)
    return FrocCurve(np.zeros(len(rates)), mean, rates, **counts), band, "lowest to highest run"


def draw_training(args: argparse.Namespace) -> list[str]:
    """Draw the curves of a training from its ``metrics.json``; return the paths of PNG and PDF.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has too few losses, or a line is damaged.
    """
    file = args.output_dir / "metrics.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, expected the metrics of a training")
    output = args.output or args.output_dir / TrainingCurvesHook.FILE
    curves = read_metrics(file)
    if not has_curves(curves):
        raise ValueError(f"{file}: found losses of fewer than 2 iterations, expected at least 2")
    plot_training(curves, output, title=f"Training: {args.output_dir.resolve().name}")
    return figure_paths(output)


def figure_paths(png: str | os.PathLike) -> list[str]:
    """The paths of a figure that is written as PNG and, beside it, as PDF."""
    return [os.fspath(png), os.fspath(Path(png).with_suffix(".pdf"))]
