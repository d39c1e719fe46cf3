"""CT slices as grayscale images in a display window."""

import math
from collections.abc import Sequence

import numpy as np

from ..data.slices.ct import hu_to_pixels, read_slice
from ..utils.display_windows import WINDOWS


def parse_window(words: Sequence[str]) -> tuple[float, float] | None:
    """Read a display window from a command line.

    Args:
        words: a name of :data:`WINDOWS`, or "dicom", or two numbers LOW HIGH in Hounsfield units.

    Returns:
        (low, high), or None for "dicom": the window that the data set has for each image.

    Raises:
        ValueError: the words are neither a known name nor two numbers with LOW < HIGH.

    Example:
        >>> parse_window(["-160", "240"])
        (-160.0, 240.0)
    """
    if len(words) == 1 and words[0] == "dicom":
        return None
    if len(words) == 1 and words[0] in WINDOWS:
        return WINDOWS[words[0]]
    try:
        low, high = (float(word) for word in words)
    except ValueError:
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        names = ", ".join(["dicom", *WINDOWS])
        raise ValueError(
            f"window: found {' '.join(words)!r}, expected one of {names}, or LOW HIGH in HU with "
            "LOW < HIGH"
        )
    return low, high


def window_image(record: dict, window: tuple[float, float] | None = None) -> np.ndarray:
    """Read an image's key slice for display.

    Args:
        record: the image's Detectron2 dict.
        window: (low, high) in HU, shown as black and white; None uses ``record["window"]``.

    Returns:
        H x W x 3 uint8, gray.
    """
    hu = read_slice(record["file_name"], (record["height"], record["width"]))
    pixels = hu_to_pixels(hu, window or record["window"])
    return np.repeat(np.rint(pixels).astype(np.uint8)[:, :, None], 3, axis=2)
