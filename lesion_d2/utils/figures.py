"""Shared by all figures: a color-blind-safe palette, and PNG and PDF files.

Matplotlib is imported when a figure is drawn: its import is a tenth of a program's start-up time.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colors of Okabe and Ito, "Color Universal Design" (2008).
OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky blue": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
}
#: Color, line style and marker of each curve on white; black-and-white prints keep the last two.
SERIES = (
    (OKABE_ITO["blue"], "-", "o"),
    (OKABE_ITO["vermilion"], "--", "s"),
    (OKABE_ITO["green"], "-.", "^"),
    (OKABE_ITO["purple"], (0, (5, 1, 1, 1, 1, 1)), "D"),
    (OKABE_ITO["orange"], (0, (7, 2)), "v"),
    (OKABE_ITO["sky blue"], (0, (3, 1, 1, 1)), "P"),
    (OKABE_ITO["black"], (0, (2, 1)), "X"),
)
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": "0.88",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,  # keeps text as text, as publishers require
    "figure.dpi": 200,
}


@contextmanager
def figure_written(file: str | os.PathLike, size: tuple[float, float]) -> Iterator["Figure"]:
    """Yield an empty white figure, and write it as PNG and PDF when the block succeeds.

    Args:
        file: PNG to write; the vector PDF goes beside it. Both are written atomically, and the same
            figure gives the same bytes.
        size: width and height in inches.

    Raises:
        OSError: a file cannot be written; the message names it.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        # Not Figure.savefig, which draws twice per call.
        with atomic_write(file) as partial:
            FigureCanvasAgg(figure).print_png(partial)
        figure.set_layout_engine("none")  # the same in both
        with atomic_write(Path(file).with_suffix(".pdf")) as partial:
            FigureCanvasPdf(figure).print_pdf(partial, metadata={"CreationDate": None})
