"""FROC figures for publication."""

import os
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..utils.figures import SERIES, figure_written
from .froc import FrocCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Marked rates, in false positives per image; the first and last are the axis limits.
PLOT_TICKS = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16)
#: Rates to compute a band at, for :func:`plot_froc`.
PLOT_RATES = np.geomspace(PLOT_TICKS[0], PLOT_TICKS[-1], 64)
_TICK_LABELS = ("1/8", "1/4", "1/2", "1", "2", "4", "8", "16")
# Inches.
_WIDTH, _PLOT_HEIGHT, _ROW_HEIGHT = 5.6, 3.5, 0.17
_NAME_LETTERS, _TITLE_LETTERS = 20, 72  # per line
_LABEL_SIZE = 8  # points


def plot_froc(
    curves: Mapping[str, FrocCurve],
    file: str | os.PathLike,
    *,
    bands: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None,
    band_label: str = "95 % interval",
    unit: str = "image",
    title: str = "",
) -> None:
    """Draw FROC curves over 1/8 to 16 false positives per image, on a logarithmic axis.

    A table below the plot has each curve's sensitivity at the marked rates (:meth:`FrocCurve.at`).
    If a curve's detections end before the last rate, a bar marks the end; beyond it the last
    sensitivity is drawn as a dotted line, and is in brackets in the table.

    Args:
        curves: name in the legend -> curve.
        file: PNG to write, with a PDF beside it, see
            :func:`lesion_d2.utils.figures.figure_written`.
        bands: name -> (rates, low, high), three arrays of the same length: false positives per
            image and the limits of the sensitivity, in 0..1.
        band_label: name of the band in the legend.
        unit: "image" or "volume", for false positives per unit.
        title: such as the data set's name. If all curves have the same numbers of images and
            lesions, these are appended.

    Raises:
        ValueError: no curve, or a band without a curve of the same name.
    """
    bands = bands or {}
    if not curves:
        raise ValueError("found no curve, expected at least one")
    for name in bands.keys() - curves.keys():
        raise ValueError(
            f"band {name!r}: found no curve of that name, expected one of {', '.join(curves)}"
        )
    names = [textwrap.fill(name, _NAME_LETTERS) for name in curves]
    table_height = _ROW_HEIGHT * sum(1 + name.count("\n") for name in names)
    with figure_written(file, (_WIDTH, _PLOT_HEIGHT + table_height + 0.35)) as figure:
        axes, table = figure.subplots(2, 1, height_ratios=[_PLOT_HEIGHT, table_height])
        for i, (name, curve) in enumerate(curves.items()):
            _draw_curve(axes, name, curve, *SERIES[i % len(SERIES)])
        for i, name in enumerate(curves):
            if name in bands:
                _draw_band(axes, bands[name], SERIES[i % len(SERIES)][0])
        _style_axes(axes, unit, textwrap.fill(_title(title, curves, unit), _TITLE_LETTERS))
        _draw_legend(axes, curves, band_label if bands else "")
        _draw_table(table, names, list(curves.values()))


def _title(title: str, curves: Mapping[str, FrocCurve], unit: str) -> str:
    counts = {(curve.num_lesions, curve.num_images) for curve in curves.values()}
    if len(counts) > 1:
        return title
    [(lesions, images)] = counts
    text = f"{lesions} lesion{'s' * (lesions != 1)} in {images} {unit}{'s' * (images != 1)}"
    return f"{title}: {text}" if title else text


def _end(curve: FrocCurve) -> float:
    """False positives per image of all detections."""
    return float(curve.fps_per_image[-1]) if len(curve.fps_per_image) else 0.0


def _draw_curve(axes: "Axes", name: str, curve: FrocCurve, color, style, marker: str) -> None:
    first, last = PLOT_TICKS[0], PLOT_TICKS[-1]
    end = min(max(_end(curve), first), last)
    rates = np.union1d(np.geomspace(first, last, 512), [*PLOT_TICKS, end])
    sensitivity = 100 * curve.at(rates)
    line, held = rates <= end, rates >= end
    marks = np.flatnonzero(np.isin(rates[line], PLOT_TICKS)).tolist()
    looks = {"color": color, "linestyle": style, "marker": marker, "markevery": marks}
    axes.plot(rates[line], sensitivity[line], label=name, clip_on=False, zorder=3, **looks)
    if _end(curve) < last:
        axes.plot(rates[held], sensitivity[held], color=color, linestyle=":", linewidth=0.9)
        bar = {"marker": "|", "markersize": 11, "markeredgewidth": 1.8, "color": color}
        axes.plot([end], sensitivity[rates == end], linestyle="", clip_on=False, zorder=4, **bar)


def _draw_band(axes: "Axes", band: tuple[np.ndarray, np.ndarray, np.ndarray], color) -> None:
    rates, low, high = (np.asarray(values) for values in band)
    axes.fill_between(rates, 100 * low, 100 * high, color=color, alpha=0.16, linewidth=0)
    for limit in (low, high):  # bands of several curves overlap
        axes.plot(rates, 100 * limit, color=color, linewidth=0.5, alpha=0.7)


def _draw_legend(axes: "Axes", curves: Mapping[str, FrocCurve], band_label: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles, labels = axes.get_legend_handles_labels()
    if band_label:
        handles.append(Patch(facecolor="0.8", edgecolor="0.5", linewidth=0.5))
        labels.append(band_label)
    if any(_end(curve) < PLOT_TICKS[-1] for curve in curves.values()):
        bar = {"marker": "|", "markersize": 11, "markeredgewidth": 1.8}
        handles.append(Line2D([], [], color="0.4", linestyle=":", linewidth=0.9, **bar))
        labels.append("detections end")
    axes.legend(handles, labels, loc="best", handlelength=3.2, framealpha=0.9, edgecolor="0.8")


def _draw_table(table: "Axes", names: list[str], curves: list[FrocCurve]) -> None:
    """Write the sensitivities at the marked rates below the ticks, one row per curve."""
    heights = [1 + name.count("\n") for name in names]
    middles = np.cumsum(heights) - np.array(heights) / 2
    table.set_xscale("log", base=2)
    table.set_xlim(PLOT_TICKS[0], PLOT_TICKS[-1])
    table.set_xticks([])
    table.minorticks_off()
    table.set_ylim(sum(heights), 0)
    table.grid(False)
    table.set_frame_on(False)
    table.tick_params(length=0, pad=18)
    table.set_yticks(middles, labels=names, size=_LABEL_SIZE, va="center_baseline")
    has_ended = False
    for i, curve in enumerate(curves):
        color = SERIES[i % len(SERIES)][0]
        table.get_yticklabels()[i].set_color(color)
        for rate, value in zip(PLOT_TICKS, 100 * curve.at(PLOT_TICKS), strict=True):
            is_beyond = rate > _end(curve)
            has_ended |= is_beyond and not np.isnan(value)
            text = "–" if np.isnan(value) else f"({value:.1f})" if is_beyond else f"{value:.1f}"
            style = {"size": _LABEL_SIZE, "ha": "center", "va": "center_baseline"}
            table.text(rate, middles[i], text, **style)
    words = "Sensitivity (%) at the marked rates"
    words += "; in brackets: beyond the last detection" * has_ended
    table.set_title(words, loc="left", size=_LABEL_SIZE, color="0.3", pad=3)


def _style_axes(axes: "Axes", unit: str, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(PLOT_TICKS[0], PLOT_TICKS[-1])
    axes.set_xticks(PLOT_TICKS, labels=_TICK_LABELS)
    axes.minorticks_off()
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 10))
    axes.set_xlabel(f"False positives per {unit}")
    axes.set_ylabel("Sensitivity (%)")
    axes.set_title(title, loc="left")
