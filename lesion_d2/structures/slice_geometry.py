"""Distances between pixels and slices, and slices between slices."""

import cv2
import numpy as np

#: Of pixels and slices, mm; those of CT lie far inside.
SPACING_RANGE = (0.01, 100.0)
#: How messages tell what a spacing is.
EXPECTED_SPACING = "a number of mm from {:g} to {:g}".format(*SPACING_RANGE)


def is_spacing(values: float | np.ndarray) -> bool | np.ndarray:
    """Whether numbers can be distances of pixels or slices, mm; NaN cannot."""
    low, high = SPACING_RANGE
    return (values >= low) & (values <= high)


def interpolate_slices(
    lower: np.ndarray, upper: np.ndarray, fraction: float, out: np.ndarray
) -> None:
    """Write the slice between two others, linearly interpolated and rounded.

    Args:
        lower, upper: H x W int16, HU.
        fraction: where it lies, from 0 (``lower``) to 1 (``upper``).
        out: H x W int16.
    """
    if fraction == 0:
        out[:] = lower
    else:
        cv2.addWeighted(lower, 1 - fraction, upper, fraction, 0, dst=out)
