"""Heat maps over a slice."""

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .sheet import FONT_SIZE, SCREEN, PageStyle, new_figure, to_pixels

_COLOR_MAP = mpl.colormaps["plasma"]
_LAST_COLOR = 0.72  # of the color map; later colors are similar to the yellow of lesions
_LOW_OPACITY, _HIGH_OPACITY = 0.35, 0.75
_BAR_HEIGHT = 24  # pixels
_BAR_LABEL_WIDTH = 48


@dataclass
class HeatMap:
    """Values for the pixels of a slice, and the range that the colors span.

    Attributes:
        title: up to two lines.
        values: (H, W), the size of the slice; NaN where there is nothing to show.
        low, high: values of the first and the last color; values beyond them are clipped.
    """

    title: str
    values: np.ndarray
    low: float = 0.0
    high: float = 1.0


def heat_map_colors(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map values to colors, from a transparent blue to a more opaque coral.

    Args:
        values: any shape.
        low, high: values of the first and the last color; if they are equal, the first is used.

    Returns:
        (*shape, 4) red, green, blue and opacity in 0..1; the opacity of NaN is 0.
    """
    share = (np.asarray(values, dtype=np.float64) - low) / ((high - low) or 1.0)
    share = np.clip(share, 0, 1)
    colors = _COLOR_MAP(_LAST_COLOR * share)
    colors[..., 3] = np.nan_to_num(_LOW_OPACITY + (_HIGH_OPACITY - _LOW_OPACITY) * share)
    return colors


def place(
    values: Tensor,
    stride: int,
    *,
    image_size: tuple[int, int],
    extent: tuple[int, int, int, int],
    slice_size: tuple[int, int],
) -> np.ndarray:
    """Resample a feature map to the pixels of the slice, bilinearly.

    Args:
        values: (h, w), at ``stride``, for the padded image: value (i, j) covers the image's pixels
            [stride * i, stride * (i + 1)) x [stride * j, stride * (j + 1)).
        stride: pixels of the image per value.
        image_size: height and width of the image without padding.
        extent: x0, y0, x1, y1 of what was resized to that image, in whole pixels of the slice.
        slice_size: height and width of the slice.

    Returns:
        (height, width) of ``slice_size``; NaN where the image does not show the slice.
    """
    height, width = image_size
    x0, y0, x1, y1 = extent
    resize = {"mode": "bilinear", "align_corners": False}
    padded = F.interpolate(values[None, None], scale_factor=stride, **resize)
    image = padded[..., :height, :width]
    placed = np.full(slice_size, np.nan, np.float32)
    placed[y0:y1, x0:x1] = F.interpolate(image, (y1 - y0, x1 - x0), antialias=True, **resize)
    return placed


def color_bar(low: float, high: float, width: int, style: PageStyle = SCREEN) -> np.ndarray:
    """Draw the color scale of a heat map, between the values of its first and last color.

    Args:
        low, high: as in :func:`heat_map_colors`.
        width: of the picture, in pixels.
        style: colors of the page.

    Returns:
        RGB uint8 picture, 24 pixels high.
    """
    fig = new_figure(width, _BAR_HEIGHT, style)
    length = max(1, width - 2 * _BAR_LABEL_WIDTH)
    colors = heat_map_colors(np.linspace(0, 1, length), 0, 1)[:, :3]
    fig.figimage(np.tile(colors, (_BAR_HEIGHT // 2, 1, 1)), _BAR_LABEL_WIDTH, _BAR_HEIGHT // 4)
    label = {"size": FONT_SIZE, "color": style.text, "va": "center_baseline"}
    fig.text((_BAR_LABEL_WIDTH - 6) / width, 0.5, _number(low), ha="right", **label)
    fig.text(1 - (_BAR_LABEL_WIDTH - 6) / width, 0.5, _number(high), ha="left", **label)
    return to_pixels(fig)


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.0e}"
