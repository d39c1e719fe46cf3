"""The results of a cross-validation: of each fold, and of all test sets together."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lesion_d2.evaluation import CombinedEvaluation, VolumeDetections, plot_froc
from lesion_d2.evaluation.operating_points import KEY, describe_operating_points
from lesion_d2.utils.files import atomic_write, without_nan, write_json

import numpy as np
from tabulate import tabulate

#: Files in the folder of a cross-validation.
JSON_FILE, TABLE_FILE, FIGURE_FILE = "cross_validation.json", "cross_validation.md", "froc.png"
_TASK = "volume"


def make_table(folds: Sequence[VolumeDetections], combined: CombinedEvaluation) -> str:
    """Metrics in percent as a Markdown table: by fold, their mean and deviation, and of all.

    "all" is the evaluation of all test sets together, with its 95 % interval over patients; the
    deviation is the sample standard deviation.
    """
    numbers = combined.results[_TASK]
    metrics = [name for name in numbers if not name.endswith(("_low", "_high"))]
    rows = []
    for name in metrics:
        values = [fold.results[_TASK].get(name, math.nan) for fold in folds]
        mean, deviation = _mean(values)
        limits = [numbers.get(f"{name}_{end}", math.nan) for end in ("low", "high")]
        interval = "" if any(map(math.isnan, limits)) else "{:.2f} to {:.2f}".format(*limits)
        cells = [*values, mean, deviation, numbers[name]]
        rows.append([name, *(None if math.isnan(value) else value for value in cells), interval])
    labels = [f"fold {k}" for k in range(len(folds))]
    headers = ["in 3-D, %", *labels, "mean", "std", "all", "95 % of all"]
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f", missingval="")


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of the defined values."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan, math.nan
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else math.nan


def write_report(
    output: Path,
    folds: Sequence[VolumeDetections],
    combined: CombinedEvaluation,
    options: Mapping[str, object],
) -> None:
    """Write ``cross_validation.json``, ``cross_validation.md`` and ``froc.png``.

    Args:
        output: the folder of the cross-validation.
        folds: evaluations of the folds' test sets, in order.
        combined: of all of them.
        options: of the cross-validation, for the JSON file.
    """
    known = {task: dict(row) for task, row in combined.results.items()}
    summary = {
        name: _mean([fold.results[_TASK].get(name, math.nan) for fold in folds])
        for name in folds[0].results[_TASK]
    }
    dataset = str(options["dataset"])
    content = {
        "options": dict(options),
        "settings": dict(folds[0].settings),
        "lesions": combined.num_lesions,
        "volumes": combined.num_volumes,
        "patients": combined.num_patients,
        "results": known.pop(_TASK),
        "other_results": known,
        KEY: describe_operating_points(combined.curve, combined.rates, dataset, "volume"),
        "folds": [
            {"dataset": fold.dataset, **{task: dict(row) for task, row in fold.results.items()}}
            for fold in folds
        ],
        "over_folds": {name: {"mean": m, "std": s} for name, (m, s) in summary.items()},
    }
    write_json(output / JSON_FILE, without_nan(content), indent=1)
    with atomic_write(output / TABLE_FILE) as partial:
        partial.write_text(make_table(folds, combined) + "\n")
    label = f"{len(folds)} folds"
    bands = {label: combined.band} if combined.band is not None else None
    options = {"bands": bands, "unit": "volume", "title": dataset}
    plot_froc({label: combined.curve}, output / FIGURE_FILE, **options)
