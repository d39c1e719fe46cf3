"""The figure: mAP over the number of training images, one panel per task."""

import os
import textwrap
from collections.abc import Sequence

from lesion_d2.utils.figures import OKABE_ITO, figure_written

import numpy as np
from matplotlib.axes import Axes

from .grid import MODELS
from .report import LABELS, TASK_LABELS, Scores

#: Color, line and marker: one-stage models are blue and green, two-stage ones red, orange and
#: purple; lines of models without the full segmentation are dashed.
STYLES = {
    "retina_unet": (OKABE_ITO["blue"], "-", "o"),
    "retinanet": (OKABE_ITO["green"], "--", "s"),
    "u_faster_rcnn_plus": (OKABE_ITO["vermilion"], "-", "D"),
    "mask_rcnn": (OKABE_ITO["orange"], "--", "^"),
    "faster_rcnn_plus": (OKABE_ITO["purple"], "--", "v"),
    "det_unet": ("0.5", "-", "x"),
}
# Error bars of models are side by side, separated by this factor of n.
_APART = 1.025
_TITLE_LETTERS = 45  # of the title that a panel is wide


def plot_figure(
    scores: Scores,
    tasks: Sequence[str],
    models: Sequence[str],
    sizes: Sequence[int],
    file: str | os.PathLike,
    *,
    title: str = "",
) -> None:
    """Draw means over seeds, with the sample standard deviations as error bars.

    Args:
        scores: task, model, n -> seed -> percent.
        tasks: one per panel.
        models: one per line; models without a result in a task have no line there.
        sizes: n, the training images.
        file: PNG to write, and a PDF beside it: see :func:`lesion_d2.utils.figures.figure_written`.
        title: above the panels, wrapped to their width.
    """
    with figure_written(file, (4.0 * len(tasks) + 0.4, 4.5)) as figure:
        panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
        for axes, task in zip(panels, tasks, strict=True):
            for model in models:
                _plot_model(axes, scores, task, model, sizes)
            _style_axes(axes, sizes)
            axes.set_title(TASK_LABELS[task])
        panels[0].set_ylabel("mAP at an IoU of 0.1 (%)")
        found = {label: line for axes in panels for line, label in zip(*_legend(axes), strict=True)}
        names = [LABELS[model] for model in models if LABELS[model] in found]
        figure.legend(
            [found[name] for name in names],
            names,
            loc="outside lower center",
            ncols=6 if len(tasks) == 3 else 3,
            frameon=False,
        )
        figure.suptitle(textwrap.fill(title, _TITLE_LETTERS * len(tasks)))


def _plot_model(axes: Axes, scores: Scores, task: str, model: str, sizes: Sequence[int]) -> None:
    known = [n for n in sorted(sizes) if scores.get((task, model, n))]
    if not known:
        return
    values = [np.array([*scores[task, model, n].values()]) for n in known]
    color, line, marker = STYLES[model]
    shift = _APART ** (MODELS.index(model) - (len(MODELS) - 1) / 2)
    axes.errorbar(
        np.array(known) * shift,
        [v.mean() for v in values],
        [v.std(ddof=1) if len(v) > 1 else 0.0 for v in values],
        label=LABELS[model],
        color=color,
        linestyle=line,
        marker=marker,
        markersize=5,
        linewidth=1.5,
        elinewidth=1,
        capsize=2,
    )


def _legend(axes: Axes) -> tuple[list, list[str]]:
    return axes.get_legend_handles_labels()


def _style_axes(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(sorted(sizes), labels=[str(n) for n in sorted(sizes)])
    axes.minorticks_off()
    axes.set_xlim(min(sizes) / 1.2, max(sizes) * 1.2)
    axes.set_ylim(0, 104)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("n (training images)")
