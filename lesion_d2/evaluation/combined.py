"""Joint evaluation of parts of a data set, such as the folds of a cross-validation."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..structures.boxes import first_pixel
from ..utils.files import one_line
from .bootstrap import bootstrap_sensitivity, patient_draws, percentile_interval
from .froc import FrocCurve
from .matching import Matches
from .operating_points import KEY
from .plots import PLOT_RATES
from .result_files import check_detections, read_volumes_file
from .volumetric.criteria import parse_criteria, sensitivity_names
from .volumetric.volumes import (
    VolumeBoxes,
    VolumeTruth,
    leave_out_ignored,
    match_volumes,
    patient_metrics,
    volume_metrics,
)

#: Settings that all evaluations must share.
_SHARED = ("criteria", "inclusive", "average_precision")


@dataclass(frozen=True, eq=False)
class VolumeDetections:
    """The detections of an evaluation of volumes, read from its ``volumes.json``.

    Attributes:
        dataset: the evaluated data set.
        settings: criteria, inclusive, average_precision and linking, as in the file.
        rates: false positives per volume.
        results: the evaluation's results by task; NaN if a number is not defined.
        boxes: volume -> detections; volumes without any are missing.
    """

    dataset: str
    settings: Mapping
    rates: tuple[float, ...]
    results: Mapping[str, Mapping[str, float]]
    boxes: Mapping[str, VolumeBoxes]


@dataclass(frozen=True, eq=False)
class CombinedEvaluation:
    """Results of several parts of a data set, as if one evaluation had all their volumes.

    Attributes:
        results: as from :class:`~lesion_d2.evaluation.VolumeEvaluator`; with a bootstrap "volume"
            also has the limits of the sensitivities' 95 % intervals: ``sens@1_low``, ...
        curve: FROC by the first criterion.
        band: (rates, low, high) of the sensitivity's interval, for the figure; None without a
            bootstrap.
        num_lesions, num_volumes, num_patients: totals of all parts.
        rates: false positives per volume.
    """

    results: Mapping[str, Mapping[str, float]]
    curve: FrocCurve
    band: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    num_lesions: int
    num_volumes: int
    num_patients: int
    rates: tuple[float, ...]


def read_volume_detections(file: str | os.PathLike) -> VolumeDetections:
    """Read the ``volumes.json`` of a :class:`~lesion_d2.evaluation.VolumeEvaluator`.

    The data set must be registered, for the coordinates of its files.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, or an older version.
    """
    content = read_volumes_file(file)
    dataset = content.get("dataset")
    if isinstance(dataset, str):
        try:
            DatasetCatalog.get(dataset)  # sets its classes and first pixel
        except KeyError as error:
            raise ValueError(f"{file}: dataset: {one_line(error.args[0])}") from None
    check_detections(file, content)
    offset = first_pixel(dataset)
    settings = {key: content["settings"][key] for key in (*_SHARED, "linking")}
    results = {
        task: {name: math.nan if value is None else float(value) for name, value in row.items()}
        for task, row in {"volume": content["results"], **content["other_results"]}.items()
    }
    rates = tuple(float(point["rate"]) for point in content[KEY]["points"])
    by_volume: dict[str, list[dict]] = {}
    for entry in content["detections"]:
        by_volume.setdefault(entry["volume"], []).append(entry)
    boxes = {name: _boxes_of(found, offset) for name, found in by_volume.items()}
    return VolumeDetections(dataset, settings, rates, results, boxes)


def _boxes_of(entries: Sequence[Mapping], first_pixel: float) -> VolumeBoxes:
    boxes = np.array([entry["box3d"] for entry in entries], float).reshape(-1, 6)
    slices = [
        (i, [*box[:2], int(number), *box[2:], int(number)])
        for i, entry in enumerate(entries)
        for number, box in entry["key_slices"].items()
    ]
    offset = first_pixel * np.array([1, 1, 0, 1, 1, 0])
    return VolumeBoxes(
        boxes=boxes - offset,
        scores=np.array([entry["score"] for entry in entries], float),
        classes=np.array([entry["category_id"] for entry in entries], int),
        slice_boxes=np.array([box for _, box in slices], float).reshape(-1, 6) - offset,
        tracklets=np.array([i for i, _ in slices], int),
    )


def combine_evaluations(
    parts: Sequence[VolumeDetections],
    dataset: str,
    *,
    num_bootstrap: int = 0,
    seed: int = 0,
) -> CombinedEvaluation:
    """Evaluate the detections on several parts of a data set together (Jaeger et al., section 4.3).

    Scores of all parts are compared with each other, as if from one detector, as for the models of
    a cross-validation, each evaluated on its held-out patients.

    Args:
        parts: evaluations with the same settings, without a volume in common.
        dataset: a registered data set with all their volumes, such as ``mine_volumes``; its other
            volumes do not count. Its order breaks ties in score.
        num_bootstrap: resamples over patients for the 95 % intervals of the FROC; 0 for none.
        seed: seed of the resamples.

    Raises:
        ValueError: no part, parts with different settings or a volume in common, or a volume that
            is not in the data set.
    """
    _check_alike(parts)
    truth = _truth_of(parts, dataset)
    found = {name: boxes for part in parts for name, boxes in part.boxes.items()}
    detections = [found.get(name, VolumeBoxes.empty()) for name in truth.names]
    first, settings = parts[0], parts[0].settings
    inclusive = settings["inclusive"]
    criteria = parse_criteria(list(settings["criteria"].values()))
    class_names = MetadataCatalog.get(dataset).thing_classes
    matches = {
        task: match_volumes(truth, detections, criterion, inclusive=inclusive)
        for task, criterion in criteria.items()
    }
    curves = {task: FrocCurve.from_matches(matched) for task, matched in matches.items()}
    results = {
        task: volume_metrics(
            truth,
            detections,
            curves[task],
            class_names,
            criterion,
            first.rates,
            inclusive=inclusive,
            ap_method=settings["average_precision"],
        )
        for task, criterion in criteria.items()
    }
    counted = leave_out_ignored(truth, detections, criteria["volume"], inclusive=inclusive)
    results["volume"] |= patient_metrics(truth, counted, class_names)
    band = None
    if num_bootstrap:
        limits, band = _bootstrap(matches["volume"], truth, first.rates, num_bootstrap, seed)
        results["volume"] |= limits
    counts = truth.num_lesions, len(truth.names), truth.num_patients
    return CombinedEvaluation(results, curves["volume"], band, *counts, first.rates)


def _check_alike(parts: Sequence[VolumeDetections]) -> None:
    if not parts:
        raise ValueError("found no evaluation, expected at least one")
    for key in (*_SHARED, "linking"):
        found = list(dict.fromkeys(str(part.settings[key]) for part in parts))
        if len(found) > 1:
            raise ValueError(
                f"{parts[0].dataset} and others: found evaluations with {key} {' and '.join(found)}"
                ", expected the same in all"
            )


def _truth_of(parts: Sequence[VolumeDetections], dataset: str) -> VolumeTruth:
    """Ground truth of the parts' volumes, in the data set's order."""
    names = [part.dataset for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name}: found {names.count(name)} evaluations, expected one")
    part_of: dict[str, str] = {}
    for part in parts:
        for volume in dict.fromkeys(d["volume"] for d in DatasetCatalog.get(part.dataset)):
            other = part_of.setdefault(volume, part.dataset)
            if other != part.dataset:
                raise ValueError(
                    f"volume {volume}: found in {other} and in {part.dataset}, expected data sets "
                    "without a common volume"
                )
    dicts = [d for d in DatasetCatalog.get(dataset) if d["volume"] in part_of]
    missing = part_of.keys() - {d["volume"] for d in dicts}
    for volume in sorted(missing)[:1]:
        raise ValueError(f"{dataset}: found no volume {volume}, expected all of {part_of[volume]}")
    return VolumeTruth.from_dicts(dicts, dataset)


def _bootstrap(
    matches: Matches, truth: VolumeTruth, rates: Sequence[float], num_resamples: int, seed: int
) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Limits of the sensitivities' intervals, and the curve's band."""
    draws = patient_draws(truth.num_patients, num_resamples, seed)
    all_rates = np.concatenate([rates, PLOT_RATES])
    (samples,) = bootstrap_sensitivity(matches, truth.patients, draws, all_rates)
    band = (PLOT_RATES, *percentile_interval(samples[:, len(rates) :]))
    return _intervals(samples[:, : len(rates)], rates), band


def _intervals(samples: np.ndarray, rates: Sequence[float]) -> dict[str, float]:
    """Intervals of the sensitivities and of their mean in percent, from (B, R) samples in 0..1."""
    samples = np.column_stack([samples, samples.mean(axis=1)])
    low, high = 100 * percentile_interval(samples)
    limits = {}
    for name, *both in zip(sensitivity_names(rates), low.tolist(), high.tolist(), strict=True):
        limits |= dict(zip((f"{name}_low", f"{name}_high"), both, strict=True))
    return limits
