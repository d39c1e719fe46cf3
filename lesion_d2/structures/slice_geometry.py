"""Spacing of pixels and slices, and interpolation between slices."""

import cv2
import numpy as np

#: Valid spacings of pixels and slices in mm, far wider than those of CT.
SPACING_RANGE = (0.01, 100.0)
#: Description of a valid spacing, for error messages.
EXPECTED_SPACING = "a number of mm from {:g} to {:g}".format(*SPACING_RANGE)


def is_spacing(values: float | np.ndarray) -> bool | np.ndarray:
    """Whether numbers are valid spacings in mm; NaN is not."""
    low, high = SPACING_RANGE
    return (values >= low) & (values <= high)


def interpolate_slices(
    lower: np.ndarray, upper: np.ndarray, fraction: float, out: np.ndarray
) -> None:
    """Interpolate linearly between two slices, with rounding.

    Args:
        lower, upper: H x W int16, HU.
        fraction: position from 0 (``lower``) to 1 (``upper``).
        out: H x W int16, receives the result.
    """
    if fraction == 0:
        out[:] = lower
    else:
        cv2.addWeighted(lower, 1 - fraction, upper, fraction, 0, dst=out)
