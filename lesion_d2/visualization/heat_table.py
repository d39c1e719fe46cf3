"""Tables of values as heat maps."""

import math
from collections.abc import Sequence

import numpy as np

from .heat_map import color_bar, heat_map_colors
from .sheet import FONT_SIZE, SCREEN, PageStyle, new_figure, stack_pictures, to_pixels

# Pixels.
_ROW_HEIGHT = 40
_MAX_COLUMN_WIDTH, _MIN_COLUMN_WIDTH = 48, 4
_LABEL_WIDTH = 56  # left of the rows
_LABEL_HEIGHT = 48  # below the columns
_LABEL_SPACE = 16  # for a column's label, which is vertical
_BAR_WIDTH = 400


def heat_table(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    width: int = 1024,
    style: PageStyle = SCREEN,
) -> np.ndarray:
    """Draw a table of values as colored cells, above their color scale.

    Args:
        values: (R, P), from 0 to 1.
        rows: R labels, from the top.
        columns: P labels, from the left; every n-th one where they are too close to each other.
        width: of the picture in pixels; it is wider if the columns do not fit.
        style: colors of the page.

    Returns:
        RGB uint8 picture.

    Raises:
        ValueError: the number of labels is not that of rows and columns.
    """
    if np.shape(values) != (len(rows), len(columns)):
        raise ValueError(
            f"table: found shape {np.shape(values)}, expected ({len(rows)}, {len(columns)}), the "
            "numbers of labels"
        )
    cell = max(_MIN_COLUMN_WIDTH, min(_MAX_COLUMN_WIDTH, (width - _LABEL_WIDTH) // len(columns)))
    cells = np.kron(heat_map_colors(values, 0, 1)[..., :3], np.ones((_ROW_HEIGHT, cell, 1)))
    cells[_ROW_HEIGHT - 1 :: _ROW_HEIGHT] = style.background / 255
    if cell > 2 * _MIN_COLUMN_WIDTH:
        cells[:, cell - 1 :: cell] = style.background / 255
    width, height = max(width, _LABEL_WIDTH + cells.shape[1]), len(cells) + _LABEL_HEIGHT
    fig = new_figure(width, height, style)
    fig.figimage(cells, _LABEL_WIDTH, _LABEL_HEIGHT, origin="upper")
    text = {"size": FONT_SIZE, "color": style.text}
    for i, label in enumerate(rows):
        y = 1 - (i + 0.5) * _ROW_HEIGHT / height
        fig.text((_LABEL_WIDTH - 6) / width, y, label, ha="right", va="center", **text)
    for i in range(0, len(columns), math.ceil(_LABEL_SPACE / cell)):
        x, y = (_LABEL_WIDTH + (i + 0.5) * cell) / width, (_LABEL_HEIGHT - 6) / height
        fig.text(x, y, columns[i], ha="center", va="top", rotation="vertical", **text)
    bar = color_bar(0, 1, _BAR_WIDTH, style)
    return stack_pictures([to_pixels(fig), bar], style)
