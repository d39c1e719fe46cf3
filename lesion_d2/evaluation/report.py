"""The FROC table, and its files and results."""

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from tabulate import tabulate

from ..config import FROC_RATES
from ..utils.files import atomic_write, without_nan, write_json
from .bootstrap import bootstrap_sensitivity, patient_draws, percentile_interval
from .froc import FrocCurve
from .matching import Matches
from .operating_points import KEY, describe_operating_points
from .plots import PLOT_RATES, plot_froc
from .strata import Stratum, Truth, make_strata

logger = logging.getLogger(__name__)

METRICS = (*(f"sens@{rate:g}" for rate in FROC_RATES), "mean_sens")
_MAX_POINTS = 500


@dataclass(frozen=True, eq=False)
class FrocRow:
    """One row of the FROC table, in percent; NaN if the stratum has no lesion."""

    stratum: Stratum
    num_lesions: int
    num_images: int
    values: np.ndarray  # one for each of METRICS
    interval: np.ndarray | None  # 2 x METRICS, low and high; None without a bootstrap

    def metrics(self, intervals: bool = True) -> dict[str, float]:
        """Metric name -> percent, and its ``_low`` and ``_high`` if there is a bootstrap."""
        result = dict(zip(METRICS, map(float, self.values), strict=True))
        if intervals and self.interval is not None:
            for suffix, limits in zip(("low", "high"), self.interval, strict=True):
                for name, value in zip(METRICS, limits, strict=True):
                    result[f"{name}_{suffix}"] = float(value)
        return result

    def cells(self) -> dict[str, object]:
        """The row in ``froc.csv`` and ``froc.json``."""
        return {
            "group": self.stratum.task,
            "stratum": self.stratum.label,
            "lesions": self.num_lesions,
            "images": self.num_images,
            **self.metrics(),
        }


@dataclass(frozen=True, eq=False)
class FrocReport:
    """FROC of all lesions and of each stratum."""

    rows: list[FrocRow]  # the first is for all lesions
    curve: FrocCurve  # of all lesions
    band: tuple[np.ndarray, np.ndarray, np.ndarray] | None  # rates, low, high (in 0..1)

    def results(self) -> dict[str, dict[str, float]]:
        """Detectron2's results: task -> metric -> percent.

        Strata have metrics such as ``results["froc_size"]["under_10mm/sens@4"]``. Intervals are
        included only for all lesions; those of strata are in the files.
        """
        results: dict[str, dict[str, float]] = {}
        for row in self.rows:
            task = results.setdefault(row.stratum.task, {})
            prefix = f"{row.stratum.key}/" if row.stratum.key else ""
            for name, value in row.metrics(intervals=not prefix).items():
                task[prefix + name] = value
        return results

    def log(self) -> None:
        """Log the table in percent; with coarse types if a lesion has one."""
        lines = []
        typed = any(row.num_lesions for row in self.rows if row.stratum.task == "froc_type")
        for row in self.rows:
            if row.stratum.task == "froc_type" and not typed:
                continue
            # NaN (a stratum without lesions) becomes an empty cell.
            values = [value if np.isfinite(value) else None for value in row.values]
            lines.append([row.stratum.label, row.num_lesions, row.num_images, *values])
            if row.interval is not None and row is self.rows[0] and row.num_lesions:
                lines.append(["  95 % from", None, None, *row.interval[0]])
                lines.append(["  95 % to", None, None, *row.interval[1]])
        headers = ["sensitivity in %", "lesions", "images", *METRICS]
        table = tabulate(lines, headers, tablefmt="pipe", floatfmt=".2f", missingval="")
        logger.info("FROC, sensitivity at false positives per image:\n%s", table)

    def curve_points(self) -> dict[str, list[float]]:
        """Points of the curve with their scores, subsampled evenly in the logarithm of the rate."""
        kept = self.curve.last_of_rates()
        if len(kept) > _MAX_POINTS:
            kept = kept[np.unique(np.geomspace(1, len(kept), _MAX_POINTS).astype(int)) - 1]
        return {
            "thresholds": self.curve.thresholds[kept].tolist(),
            "fps_per_image": self.curve.fps_per_image[kept].tolist(),
            "sensitivity": self.curve.sensitivity[kept].tolist(),
        }

    def write(self, folder: Path, name: str, settings: Mapping[str, object]) -> None:
        """Write ``froc.json``, ``froc.csv``, ``froc.png`` and ``froc.pdf``, each atomically.

        Args:
            folder: an existing folder.
            name: name of the data set.
            settings: settings of the evaluation, for ``froc.json``.
        """
        rows = [row.cells() for row in self.rows]
        content = {
            "dataset": name,
            "settings": dict(settings),
            "rows": rows,
            "curve": self.curve_points(),
            KEY: describe_operating_points(self.curve, FROC_RATES, name, "image"),
        }
        if self.band is not None:
            keys = ("rates", "low", "high")
            content["band"] = {k: v.tolist() for k, v in zip(keys, self.band, strict=True)}
        write_json(folder / "froc.json", without_nan(content), indent=1)
        with atomic_write(folder / "froc.csv") as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        label = self.rows[0].stratum.label
        bands = {label: self.band} if self.band else None
        plot_froc({label: self.curve}, folder / "froc.png", bands=bands, title=name)


def make_report(
    matches: Matches, truth: Truth, *, num_bootstrap: int = 0, seed: int = 0
) -> FrocReport:
    """Compute the FROC table of matched detections.

    Args:
        matches: matches of the detections with ``truth.boxes``.
        truth: lesions of the same images in the same order.
        num_bootstrap: resamples over patients for the 95 % intervals; 0 for none.
        seed: seed of the resamples.
    """
    strata = make_strata(truth)
    samples: list[np.ndarray | None] = [None] * len(strata)
    if num_bootstrap:
        samples = _bootstrap(matches, truth, strata, num_bootstrap, seed)
    rows = [_row(matches, *pair) for pair in zip(strata, samples, strict=True)]
    band = None
    if num_bootstrap:
        band = (PLOT_RATES, *percentile_interval(samples[0][:, len(FROC_RATES) :]))
    return FrocReport(rows, FrocCurve.from_matches(matches), band)


def _row(matches: Matches, stratum: Stratum, samples: np.ndarray | None) -> FrocRow:
    values, interval = np.full(len(METRICS), np.nan), None
    if stratum.images.any():
        curve = FrocCurve.from_matches(matches, stratum.lesions, stratum.images)
        values = _with_mean(curve.at(FROC_RATES))
    if samples is not None:
        interval = 100 * percentile_interval(_with_mean(samples[:, : len(FROC_RATES)]))
    num_lesions, num_images = int(stratum.lesions.sum()), int(stratum.images.sum())
    return FrocRow(stratum, num_lesions, num_images, 100 * values, interval)


def _with_mean(sensitivity: np.ndarray) -> np.ndarray:
    return np.concatenate([sensitivity, sensitivity.mean(axis=-1, keepdims=True)], axis=-1)


def _bootstrap(
    matches: Matches, truth: Truth, strata: Sequence[Stratum], num_resamples: int, seed: int
) -> list[np.ndarray]:
    """(B, R) sensitivities of each stratum, at FROC_RATES followed by PLOT_RATES."""
    draws = patient_draws(truth.num_patients, num_resamples, seed)
    rates = np.concatenate([FROC_RATES, PLOT_RATES])
    samples = []
    # Strata on the same images share their false positives, the expensive part.
    for images, group in groupby(strata, key=lambda stratum: stratum.images.tobytes()):
        lesions = [stratum.lesions for stratum in group]
        mask = np.frombuffer(images, dtype=bool)
        samples.extend(bootstrap_sensitivity(matches, truth.patients, draws, rates, lesions, mask))
    return samples
