"""Pages of pictures, with titles and a legend."""

import math
import os
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ..scans.png import write_png

BOX_WIDTH = 1.6  # points, as in the pictures
FONT_SIZE = 9  # points
_DPI = 100
# Pixels.
_GAP = 8
_TITLE_HEIGHT = 40
_LEGEND_WIDTH = 190
_LEGEND_ROW = 26


def save_picture(image: np.ndarray, path: str | os.PathLike) -> str:
    """Write an RGB image as PNG, whole or not at all; return its path."""
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    write_png(path, image)
    return path


def contact_sheet(
    tiles: Sequence[np.ndarray],
    titles: Sequence[str],
    legend: Sequence[tuple],
    *,
    columns: int | None = None,
) -> np.ndarray:
    """Lay pictures out in rows, each under its title, with one legend below all.

    Args:
        tiles: H x W x 3 uint8 pictures; smaller ones are centred in the space of the largest.
        titles: one a picture, of up to two lines.
        legend: (text, color, line style or "fill") entries; may be empty.
        columns: pictures in a row; about as many as rows by default.

    Returns:
        RGB uint8 picture.

    Raises:
        ValueError: no picture, or not one title each.
    """
    if not len(tiles) or len(tiles) != len(titles):
        raise ValueError(f"{len(tiles)} pictures and {len(titles)} titles, expected one each")
    columns = min(columns or math.ceil(math.sqrt(len(tiles))), len(tiles))
    rows = math.ceil(len(tiles) / columns)
    space_h, space_w = max(tile.shape[0] for tile in tiles), max(tile.shape[1] for tile in tiles)
    cell_h, cell_w = space_h + _TITLE_HEIGHT + _GAP, space_w + _GAP
    width = columns * cell_w + _GAP
    legend_columns = max(1, min(len(legend), width // _LEGEND_WIDTH))
    height = rows * cell_h + _LEGEND_ROW * math.ceil(len(legend) / legend_columns) + _GAP
    cells = [divmod(i, columns) for i in range(len(tiles))]
    corners = [(_GAP + column * cell_w, row * cell_h) for row, column in cells]
    fig = new_figure(width, height)
    for title, (x, y) in zip(titles, corners, strict=True):
        place = ((x + 2) / width, 1 - (y + _TITLE_HEIGHT / 2) / height)
        fig.text(*place, title, size=FONT_SIZE, color="white", verticalalignment="center")
    if legend:
        _draw_legend(fig, legend, legend_columns)
    sheet = to_pixels(fig)
    # Tiles are not drawn: Matplotlib would resample them.
    for tile, (x, y) in zip(tiles, corners, strict=True):
        left = x + (space_w - tile.shape[1]) // 2
        top = y + _TITLE_HEIGHT + (space_h - tile.shape[0] + 1) // 2
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def _draw_legend(fig: Figure, legend: Sequence[tuple], columns: int) -> None:
    fig.legend(
        handles=[_legend_handle(*entry) for entry in legend],
        loc="lower center",
        ncol=columns,
        fontsize=FONT_SIZE,
        labelcolor="white",
        frameon=False,
        borderaxespad=0.2,
    )


def stack_pictures(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Put RGB pictures below each other, at the left; black fills the space beside smaller ones."""
    width = max(picture.shape[1] for picture in pictures)
    wide = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0))) for p in pictures]
    return np.concatenate(wide)


def new_figure(width: int, height: int) -> Figure:
    """A black figure of so many pixels."""
    # The small addition keeps matplotlib from losing a pixel to truncation.
    fig = Figure(((width + 1e-2) / _DPI, (height + 1e-2) / _DPI), dpi=_DPI, facecolor="black")
    FigureCanvasAgg(fig)
    return fig


def to_pixels(fig: Figure) -> np.ndarray:
    """A figure as RGB uint8 picture (height, width, 3)."""
    fig.canvas.draw()
    return np.asarray(fig.canvas.buffer_rgba())[:, :, :3].copy()


def _legend_handle(text: str, color, style) -> mpl.artist.Artist:
    if style == "fill":
        return Rectangle((0, 0), 1, 1, facecolor=color, alpha=0.5, label=text)
    return Line2D([], [], color=color, linestyle=style, linewidth=BOX_WIDTH, label=text)
