"""Score thresholds for given rates of false positives, as written by evaluations."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..utils.files import read_json
from ..utils.values import is_number
from .froc import FrocCurve

#: Their key in ``froc.json`` and ``volumes.json``.
KEY = "operating_points"
UNITS = ("image", "volume")


@dataclass(frozen=True)
class OperatingPoints:
    """Score thresholds of an evaluation.

    Attributes:
        dataset: the evaluated data set.
        unit: "image" or "volume", for false positives per unit.
        thresholds: rate -> score threshold; None if the curve does not reach the rate.
        last_rate: the rate of all detections, where the curve ends; None without detections.
    """

    dataset: str
    unit: str
    thresholds: Mapping[float, float | None]
    last_rate: float | None

    def threshold_of(self, rate: float) -> float:
        """The score threshold of a rate.

        Raises:
            ValueError: the rate was not evaluated, or the curve does not reach it.
        """
        known = self.thresholds.get(rate)
        if known is not None:
            return known
        found = f"found {rate:g} false positives per {self.unit}"
        reached = [f"{r:g}" for r, threshold in self.thresholds.items() if threshold is not None]
        wanted = f"one of {', '.join(reached)}" if reached else "a curve that reaches a rate"
        expected = f"expected {wanted}"
        if rate not in self.thresholds:
            raise ValueError(f"{found}, {expected} on {self.dataset}")
        ends = "without a detection" if self.last_rate is None else f"at {self.last_rate:.4g}"
        raise ValueError(
            f"{found}, which the curve on {self.dataset} does not reach (it ends {ends}), "
            f"{expected}"
        )


def describe_operating_points(
    curve: FrocCurve, rates: Sequence[float], dataset: str, unit: str
) -> dict:
    """The operating points of an evaluation, for :data:`KEY` in its file.

    Args:
        curve: FROC of all lesions.
        rates: false positives per image or volume.
        dataset: name of the data set.
        unit: "image" or "volume".

    Returns:
        ``dataset``, ``unit``, ``last_rate`` and ``points``: ``rate``, ``score_threshold`` and the
        ``sensitivity`` there in percent, None if the curve does not reach the rate.
    """
    points = []
    for rate, threshold in zip(rates, curve.thresholds_at(rates), strict=True):
        sensitivity = None
        if threshold is not None and curve.num_lesions:
            sensitivity = 100 * float(curve.sensitivity[curve.thresholds == threshold][0])
        points.append(
            {"rate": float(rate), "score_threshold": threshold, "sensitivity": sensitivity}
        )
    last_rate = float(curve.fps_per_image[-1]) if len(curve.thresholds) else None
    return {"dataset": dataset, "unit": unit, "last_rate": last_rate, "points": points}


def read_operating_points(file: str | os.PathLike) -> OperatingPoints:
    """Read the score thresholds of an evaluation from its ``froc.json`` or ``volumes.json``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or has no operating points (in files of older versions).
    """
    expected = "the froc.json or volumes.json of an evaluation"
    content = read_json(file, expected, allow_nan=True)
    stored = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(stored, dict):
        raise ValueError(
            f"{file}: found no {KEY!r}, expected the froc.json or volumes.json of an evaluation; "
            "if it is from an older version, evaluate again (--eval-only)"
        )
    dataset, unit, last = (stored.get(key) for key in ("dataset", "unit", "last_rate"))
    points = stored.get("points")
    is_good = isinstance(dataset, str) and unit in UNITS and isinstance(points, list)
    if not (is_good and (last is None or is_number(last)) and all(map(_is_point, points))):
        raise ValueError(
            f"{file}: found other content of {KEY!r}, expected dataset, unit, last_rate and points "
            "with rate and score_threshold"
        )
    thresholds = {float(point["rate"]): point["score_threshold"] for point in points}
    return OperatingPoints(dataset, unit, thresholds, last)


def _is_point(point: object) -> bool:
    if not isinstance(point, dict) or not {"rate", "score_threshold"} <= point.keys():
        return False
    rate, threshold = point["rate"], point["score_threshold"]
    return _is_positive(rate) and (threshold is None or _is_positive(threshold))


def _is_positive(value: object) -> bool:
    return is_number(value) and value >= 0
