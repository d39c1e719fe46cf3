"""Training curves: losses, average precision and sensitivity over iterations."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..utils.figures import SERIES, figure_written
from ..utils.files import parse_json
from ..utils.values import is_number, is_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Name of a metric -> iterations (ascending) and values.
Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]

_LOSS = re.compile(r"loss_\w+|\w+_loss")
_FIRST_LOSSES = ("total_loss", "validation_loss")
# With several data sets, metrics are prefixed by the data set's name.
_PRECISION = re.compile(r"(?:(.+)/)?(?:bbox|segm|volume)/(?:AP|AP10|AP50)")
_SENSITIVITY = re.compile(r"(?:(.+)/)?(?:froc|volume)/(?:sens@[\d.]+|mean_sens)")
_MAIN = re.compile(r".*(?:bbox/AP|volume/AP|volume/AP10|/mean_sens)")
_WIDTH, _PANEL_HEIGHT = 5.6, 2.0  # inches
_MAX_LINES = len(SERIES)
_MAX_MARKERS = 30
_MIN_LOSSES = 2


def read_metrics(file: str | os.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read the curves from a ``metrics.json`` of Detectron2's JSONWriter.

    If several lines have the same iteration, the last value of a metric is used. If iterations
    restart, as for a second training in the folder, later lines replace the earlier ones from there
    on. An incomplete last line is ignored.

    Args:
        file: one JSON object with ``iteration`` per line.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line other than the last is not a JSON object with an iteration.
    """
    lines = Path(file).read_bytes().splitlines(keepends=True)
    values: dict[str, dict[int, float]] = {}
    last = -1  # last iteration with a loss
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith(b"\n"):
            break  # the run was killed
        entry = parse_json(line, f"{file}: line {number}", allow_nan=True)
        if not (isinstance(entry, dict) and is_whole(entry.get("iteration"))):
            raise ValueError(f"{file}: line {number}: found no iteration, expected metrics of one")
        iteration = entry.pop("iteration")
        if "total_loss" in entry:
            if iteration <= last:  # training restarted, or resumed from an earlier iteration
                values = _before(iteration, values)
            last = iteration
        for name, value in entry.items():
            if isinstance(value, float) or is_number(value):  # NaN and infinities are gaps
                values.setdefault(name, {})[iteration] = float(value)
    curves = {}
    for name, by_iteration in values.items():
        iterations = sorted(by_iteration)
        curves[name] = np.array(iterations), np.array([by_iteration[i] for i in iterations])
    return curves


def _before(iteration: int, values: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    """The metrics before an iteration."""
    kept = {name: {i: v for i, v in by.items() if i < iteration} for name, by in values.items()}
    return {name: by for name, by in kept.items() if by}


def has_curves(curves: Curves) -> bool:
    """Whether there are losses of at least two iterations, which a figure needs."""
    return any(len(curves[name][0]) >= _MIN_LOSSES for name in curves if _LOSS.fullmatch(name))


def plot_training(curves: Curves, file: str | os.PathLike, *, title: str = "") -> None:
    """Plot losses, average precision and sensitivity of a training run, in one panel each.

    Panels without values are omitted. With several data sets, only AP and mean sensitivity of each
    are drawn; if there are more than seven losses, only the largest ones.

    Args:
        curves: see :func:`read_metrics`.
        file: PNG file to write, together with a PDF: see
            :func:`lesion_d2.utils.figures.figure_written`.
        title: title of the figure.

    Raises:
        ValueError: see :func:`has_curves`.
    """
    if not has_curves(curves):
        raise ValueError("losses: found fewer than two iterations, expected at least two")
    panels = {
        "Loss": _losses(curves),
        "Average precision (%)": _of_data_sets(curves, _PRECISION),
        "Sensitivity (%)": _of_data_sets(curves, _SENSITIVITY),
    }
    panels = {label: found for label, found in panels.items() if found}
    with figure_written(file, (_WIDTH, _PANEL_HEIGHT * len(panels) + 0.4)) as figure:
        all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (label, names) in zip(all_axes, panels.items(), strict=True):
            for i, name in enumerate(names):
                _draw_line(axes, name, *curves[name], *SERIES[i])
            axes.set_ylabel(label)
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handlelength=3.2)
            if label == "Loss":
                _scale_losses(axes, [curves[name][1] for name in names])
            else:
                axes.set_ylim(0, 100)
        all_axes[0].set_title(title, loc="left")
        all_axes[-1].set_xlabel("Iteration")
        all_axes[-1].set_xlim(left=0)


def _losses(curves: Curves) -> list[str]:
    """Names of the losses, the total first; the smallest are omitted if there are too many."""
    names = [name for name in curves if _LOSS.fullmatch(name)]
    largest = {name: np.nanmax([0.0, *_finite(curves[name][1])]) for name in names}
    order = sorted(names, key=lambda name: (_rank(name), -largest[name], name))
    return order[:_MAX_LINES]


def _rank(name: str) -> int:
    return _FIRST_LOSSES.index(name) if name in _FIRST_LOSSES else len(_FIRST_LOSSES)


def _of_data_sets(curves: Curves, pattern: re.Pattern) -> list[str]:
    """Names of metrics: all for a single data set, otherwise the main one of each."""
    found = {name: match[1] for name in curves if (match := pattern.fullmatch(name))}
    if len(set(found.values())) > 1:
        found = {name: one for name, one in found.items() if _MAIN.fullmatch(name)}
    return sorted(found, key=_natural)[:_MAX_LINES]


def _natural(name: str) -> list:
    """Key for natural sorting: sens@2 before sens@16."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def _draw_line(axes: "Axes", name: str, x: np.ndarray, y: np.ndarray, color, style, marker) -> None:
    marks = marker if len(x) <= _MAX_MARKERS else ""
    y = np.where(np.isfinite(y), y, np.nan)
    axes.plot(x, y, label=name, color=color, linestyle=style, marker=marks, linewidth=1.2)


def _scale_losses(axes: "Axes", losses: list[np.ndarray]) -> None:
    """Use a logarithmic axis if losses differ by more than a factor of 20."""
    values = np.concatenate([_finite(loss) for loss in losses])
    positive = values[values > 0]
    if len(positive) and len(positive) == len(values) and positive.max() > 20 * positive.min():
        axes.set_yscale("log")
    elif len(values) and not math.isclose(values.max(), 0) and values.min() >= 0:
        axes.set_ylim(bottom=0)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]
