"""FROC curves as pictures.

Matplotlib is imported when one is drawn: it takes as long as a tenth of the start of a program.
"""

import os
from collections.abc import Mapping

import numpy as np

from ..files import written_whole
from .froc import FrocCurve

#: False positives per image that the axis spans, and its ticks.
PLOT_TICKS = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16)
#: Rates at which a band is best computed for :func:`plot_froc`.
PLOT_RATES = np.geomspace(PLOT_TICKS[0], PLOT_TICKS[-1], 64)


def plot_froc(
    curves: Mapping[str, FrocCurve],
    file: str | os.PathLike,
    *,
    bands: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None,
    unit: str = "image",
) -> None:
    """Draw FROC curves over 0.125 to 16 false positives per image, on a logarithmic axis.

    Args:
        curves: name in the legend -> curve.
        file: PNG to write; complete or not at all.
        bands: name -> (rates, low, high), three arrays as long as each other: false positives per
            image and the limits of the 95 % interval of the sensitivity there, in 0..1.
        unit: what false positives are counted per.

    Raises:
        ValueError: a band whose name is not among the curves.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bands = bands or {}
    for name in bands.keys() - curves.keys():
        raise ValueError(f"band {name!r} has no curve, expected one of {', '.join(curves)}")
    figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    rates = np.geomspace(PLOT_TICKS[0], PLOT_TICKS[-1], 512)
    for i, (name, curve) in enumerate(curves.items()):
        axes.plot(rates, 100 * curve.at(rates), label=name, color=f"C{i % 10}")
        if name in bands:
            x, low, high = (np.asarray(values) for values in bands[name])
            style = {"color": f"C{i % 10}", "alpha": 0.2, "lw": 0}
            axes.fill_between(x, 100 * low, 100 * high, label=f"{name}, 95 % interval", **style)
    _style_axes(axes, unit)
    with written_whole(file) as partial:
        FigureCanvasAgg(figure).print_png(partial)


def _style_axes(axes, unit: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(PLOT_TICKS[0], PLOT_TICKS[-1])
    axes.set_xticks(PLOT_TICKS, labels=[f"{tick:g}" for tick in PLOT_TICKS])
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 10))
    axes.set_xlabel(f"False positives per {unit}")
    axes.set_ylabel("Sensitivity (%)")
    axes.grid(True, alpha=0.4)
    axes.legend(loc="lower right")
