"""Pages of pictures, with titles, a legend and notes."""

import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke, withStroke

from ..scans.png import write_png

BOX_WIDTH = 1.6  # points, as in the pictures
OUTLINE_WIDTH = 1.6  # points, both sides of a line together
FONT_SIZE = 9  # points
_DPI = 100
# Pixels.
_GAP = 8
_TITLE_HEIGHT = 40
_LEGEND_WIDTH = 190
_LEGEND_ROW = 26
_NOTE_ROW = 18
_LETTER_WIDTH = 7.2  # of notes, the mean


@dataclass(frozen=True)
class PageStyle:
    """The colors of a page around its pictures.

    Attributes:
        background: gray value, 0 to 255.
        text: color of titles, legends and notes.
    """

    background: int
    text: str


#: Black pages, for screens, and white ones, for print; by the names of ``visualize --style``.
PAGE_STYLES = {"screen": PageStyle(0, "white"), "paper": PageStyle(255, "black")}
SCREEN = PAGE_STYLES["screen"]


def outlined(width: float) -> list:
    """Path effects that draw lines or text on a black stroke, so that they are visible on any gray.

    Args:
        width: of the stroke in points.
    """
    return [withStroke(linewidth=width, foreground="black")]


def save_picture(image: np.ndarray, path: str | os.PathLike) -> str:
    """Write an RGB image as PNG, atomically; return its path."""
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
    notes: Sequence[str] = (),
    style: PageStyle = SCREEN,
) -> np.ndarray:
    """Arrange pictures in rows, each below its title, with one legend and notes below all.

    Args:
        tiles: H x W x 3 uint8 pictures; smaller ones are centered in the space of the largest.
        titles: one per picture, of up to two lines.
        legend: (text, color, line style or "fill") entries; may be empty.
        columns: pictures per row; by default about the number of rows.
        notes: paragraphs below the legend.
        style: colors of the page.

    Returns:
        RGB uint8 picture.

    Raises:
        ValueError: there is no picture, or not one title per picture.
    """
    if not len(tiles) or len(tiles) != len(titles):
        raise ValueError(
            f"found {len(tiles)} pictures and {len(titles)} titles, expected one title per picture"
        )
    columns = min(columns or math.ceil(math.sqrt(len(tiles))), len(tiles))
    rows = math.ceil(len(tiles) / columns)
    space_h, space_w = max(tile.shape[0] for tile in tiles), max(tile.shape[1] for tile in tiles)
    cell_h, cell_w = space_h + _TITLE_HEIGHT + _GAP, space_w + _GAP
    width = columns * cell_w + _GAP
    legend_columns = max(1, min(len(legend), width // _LEGEND_WIDTH))
    lines = _wrapped(notes, width)
    notes_height = _NOTE_ROW * len(lines) + _GAP * bool(lines)
    legend_height = _LEGEND_ROW * math.ceil(len(legend) / legend_columns)
    height = rows * cell_h + legend_height + notes_height + _GAP
    cells = [divmod(i, columns) for i in range(len(tiles))]
    corners = [(_GAP + column * cell_w, row * cell_h) for row, column in cells]
    fig = new_figure(width, height, style)
    text = {"size": FONT_SIZE, "color": style.text}
    for title, (x, y) in zip(titles, corners, strict=True):
        place = ((x + 2) / width, 1 - (y + _TITLE_HEIGHT / 2) / height)
        fig.text(*place, title, verticalalignment="center", **text)
    if legend:
        _draw_legend(fig, legend, legend_columns, notes_height / height, style)
    for row, line in enumerate(reversed(lines)):
        place = (_GAP + 2) / width, (_GAP + row * _NOTE_ROW) / height
        fig.text(*place, line, verticalalignment="bottom", **text)
    sheet = to_pixels(fig)
    # Tiles are not drawn: Matplotlib would resample them.
    for tile, (x, y) in zip(tiles, corners, strict=True):
        left = x + (space_w - tile.shape[1]) // 2
        top = y + _TITLE_HEIGHT + (space_h - tile.shape[0] + 1) // 2
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def _wrapped(notes: Sequence[str], width: int) -> list[str]:
    letters = max(20, int((width - 2 * _GAP) / _LETTER_WIDTH))
    return [line for note in notes for line in textwrap.wrap(note, letters)]


def _draw_legend(
    fig: Figure, legend: Sequence[tuple], columns: int, bottom: float, style: PageStyle
) -> None:
    fig.legend(
        handles=[_legend_handle(*entry) for entry in legend],
        loc="lower center",
        bbox_to_anchor=(0.5, bottom),
        ncol=columns,
        fontsize=FONT_SIZE,
        labelcolor=style.text,
        frameon=False,
        borderaxespad=0.2,
        handlelength=3.6,
    )


def stack_pictures(pictures: Sequence[np.ndarray], style: PageStyle = SCREEN) -> np.ndarray:
    """Stack RGB pictures vertically, aligned left; the background fills the space at the right."""
    width = max(picture.shape[1] for picture in pictures)
    wide = [
        np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=style.background)
        for p in pictures
    ]
    return np.concatenate(wide)


def new_figure(width: int, height: int, style: PageStyle = SCREEN) -> Figure:
    """Make a figure of a size in pixels, with the background of a style."""
    # The small addition keeps matplotlib from losing a pixel to truncation.
    size = (width + 1e-2) / _DPI, (height + 1e-2) / _DPI
    fig = Figure(size, dpi=_DPI, facecolor=str(style.background / 255))
    FigureCanvasAgg(fig)
    return fig


def to_pixels(fig: Figure) -> np.ndarray:
    """A figure as RGB uint8 picture (height, width, 3)."""
    fig.canvas.draw()
    return np.asarray(fig.canvas.buffer_rgba())[:, :, :3].copy()


def _legend_handle(text: str, color, style) -> mpl.artist.Artist:
    if style == "fill":
        return Rectangle((0, 0), 1, 1, facecolor=color, alpha=0.5, label=text)
    handle = Line2D([], [], color=color, linestyle=style, linewidth=BOX_WIDTH, label=text)
    # Light lines are invisible on white; the outline has no gaps, as in the pictures.
    solid = {"dash_offset": 0, "dash_list": None}
    outline = Stroke(linewidth=BOX_WIDTH + OUTLINE_WIDTH, foreground="black", dashes=solid)
    handle.set_path_effects([outline, Normal()])
    return handle
