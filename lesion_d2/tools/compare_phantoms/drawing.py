"""The figure of a comparison of data sets."""

import os
from collections.abc import Mapping

from lesion_d2.utils.figures import SERIES, figure_written

import cv2
import numpy as np

from .measures import HISTOGRAM, PATCH
from .summary import DataSetMeasures

_EXAMPLES = 12  # lesions of each data set
_SIDE = 96  # pixels of each picture
_WINDOW = (-160.0, 240.0)


def draw_comparison(found: Mapping[str, DataSetMeasures], file: str | os.PathLike) -> None:
    """Draw histograms, noise, lesions' contrast over size, and examples of lesions.

    Args:
        found: name of a data set -> its measures.
        file: PNG to write, and a PDF beside it: see :func:`lesion_d2.utils.figures.figure_written`.
    """
    with figure_written(file, (11, 3.6 + 1.0 * len(found))) as figure:
        top, bottom = figure.subfigures(2, 1, height_ratios=[3.6, 1.0 * len(found)])
        axes = top.subplots(1, 3)
        for i, (name, measures) in enumerate(found.items()):
            _draw_curves(axes, name, measures, *SERIES[i % len(SERIES)])
        _label(axes)
        panels = bottom.subplots(len(found), 1, squeeze=False)[:, 0]
        for panel, (name, measures) in zip(panels, found.items(), strict=True):
            panel.imshow(_strip(measures.examples), cmap="gray", vmin=0, vmax=255, aspect="equal")
            panel.set_title(
                f"{name}: lesions, twice their box, {_WINDOW[0]:g} to {_WINDOW[1]:g} HU"
            )
            panel.set_axis_off()


def _draw_curves(axes, name: str, measures: DataSetMeasures, color, style, marker: str) -> None:
    middles, looks = (HISTOGRAM[:-1] + HISTOGRAM[1:]) / 2, {"color": color, "linestyle": style}
    axes[0].plot(middles, 100 * measures.histogram, label=name, **looks)
    if measures.spectrum is not None:
        axes[1].plot(np.arange(PATCH // 2 + 1) / PATCH, measures.spectrum, label=name, **looks)
    sides = [lesion.side for lesion in measures.lesions]
    contrasts = [lesion.contrast for lesion in measures.lesions]
    axes[2].scatter(
        sides, contrasts, s=10, alpha=0.6, color=color, marker=marker, linewidths=0, label=name
    )


def _label(axes) -> None:
    titles = ("HU of the body", "noise in soft tissue", "lesions")
    x_labels = ("HU", "cycles a pixel", "longer side of the box, pixels")
    y_labels = ("% of the body", "share of the power", "HU inside less HU around")
    for ax, title, x_label, y_label in zip(axes, titles, x_labels, y_labels, strict=True):
        ax.set_title(title)
        ax.set_xlabel(x_label)
        ax.set_ylabel(y_label)
        ax.legend()
    axes[0].set_xlim(-200, 300)
    axes[2].set_ylim(-400, 400)


def _strip(examples: list[np.ndarray]) -> np.ndarray:
    """Pictures side by side, filled up with black."""
    low, high = _WINDOW
    strip = np.zeros((_SIDE, _SIDE * _EXAMPLES), np.uint8)
    for number, hu in enumerate(examples[:_EXAMPLES]):
        gray = ((hu - low) / (high - low)).clip(0, 1) * 255
        picture = cv2.resize(np.uint8(gray), (_SIDE - 2, _SIDE - 2), interpolation=cv2.INTER_CUBIC)
        strip[1:-1, number * _SIDE + 1 : (number + 1) * _SIDE - 1] = picture
    return strip
