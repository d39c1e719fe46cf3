"""Resampling of slices to even spacing."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..structures.slice_geometry import EXPECTED_SPACING, interpolate_slices, is_spacing
from .limits import check_size

# Tolerance for rounded positions, as a fraction of the spacing or in mm.
_TOLERANCE = 0.02
_TOLERANCE_MM = 0.01
_MAX_GAP = 2.0  # times the spacing
_SHOWN = 3


class StackPlan(NamedTuple):
    """How the slices of a volume are made.

    Args:
        slices: for each slice of the volume, in order, the two adjacent source slices and the
            weight of the second; the same one twice without interpolation.
        first: position of the first slice in mm.
        spacing: slice spacing of the volume in mm.
        messages: messages for the user, one line each.
    """

    slices: tuple[tuple[int, int, float], ...]
    first: float
    spacing: float
    messages: tuple[str, ...] = ()

    def nearest(self) -> list[int]:
        """The nearest source slice of each slice of the volume."""
        return [upper if fraction > 0.5 else lower for lower, upper, fraction in self.slices]


def plan_slices(
    positions: np.ndarray,
    labels: Sequence[str],
    *,
    source: str,
    spacing: float | None = None,
    allow_gaps: bool = False,
) -> StackPlan:
    """Plan a volume with evenly spaced slices.

    Slices that are evenly spaced within 2 % of the spacing are unchanged. Others are interpolated
    linearly at the median spacing.

    Args:
        positions: (N,) positions along the stack in mm, ascending.
        labels: name of each slice, for messages.
        source: beginning of messages.
        spacing: slice spacing if known; None for the median, which needs two slices.
        allow_gaps: also interpolate across gaps of more than twice the spacing.

    Raises:
        ValueError: there is a larger gap and ``allow_gaps`` is not set, or the spacing is
            implausible.
    """
    positions = np.asarray(positions, float)
    gaps = np.diff(positions)
    known = spacing is not None
    if not known and not len(gaps):
        raise ValueError(f"{source}: found one slice and no thickness, expected mm")
    step = spacing if known else float(np.median(gaps))
    if not is_spacing(step):
        raise ValueError(f"{source}: found slices {step:g} mm apart, expected {EXPECTED_SPACING}")
    tolerance = max(_TOLERANCE * step, _TOLERANCE_MM)
    _check_gaps(source, gaps, step, labels, allow_gaps)
    if not len(gaps):
        return StackPlan(((0, 0, 0.0),), positions[0], step)
    if not known:  # the mean of many pairs is more precise; those around gaps are excluded
        close = gaps[np.abs(gaps - step) <= 2 * tolerance]
        step = float(close.mean()) if len(close) else step
    even = positions[0] + step * np.arange(len(positions))
    if np.abs(positions - even).max() <= tolerance:
        slices = tuple((index, index, 0.0) for index in range(len(positions)))
        return StackPlan(slices, positions[0], step)
    return _resampled(positions, gaps, step, tolerance, labels, source)


def stack_slices(
    slices: Iterable[np.ndarray], plan: StackPlan, size: tuple[int, int]
) -> np.ndarray:
    """Read slices one by one into a volume, with two of them in memory besides it.

    Args:
        slices: all source slices of the plan in order, H x W int16.
        plan: plan of the volume.
        size: H, W.

    Returns:
        (Z, H, W) int16.
    """
    volume = np.empty((len(plan.slices), *size), np.int16)
    numbered = enumerate(slices)
    held = {}
    for out, (lower, upper, fraction) in zip(volume, plan.slices, strict=True):
        while upper not in held:
            index, current = next(numbered)
            held = {number: hu for number, hu in held.items() if number >= index - 1}
            held[index] = current
        interpolate_slices(held[lower], held[upper], fraction, out)
    return volume


def _check_gaps(source, gaps, step, labels, allow_gaps) -> None:
    wide = np.flatnonzero(gaps > _MAX_GAP * step * (1 + _TOLERANCE))
    if not allow_gaps and len(wide):
        first = wide[0]
        more = f" and {len(wide) - 1} more" if len(wide) > 1 else ""
        raise ValueError(
            f"{source}: found a gap of {gaps[first]:g} mm between {labels[first]} and "
            f"{labels[first + 1]}{more}, expected at most twice the {step:g} mm between slices; "
            "slices are missing (allow_gaps interpolates across them)"
        )


def _resampled(positions, gaps, step, tolerance, labels, source) -> StackPlan:
    count = int(np.floor((positions[-1] - positions[0] + tolerance) / step)) + 1
    check_size(source, (count, 1, 1))
    slices = []
    for wanted in positions[0] + step * np.arange(count):
        upper = min(int(np.searchsorted(positions, wanted - tolerance)), len(positions) - 1)
        if abs(positions[upper] - wanted) <= tolerance or upper == 0:
            slices.append((upper, upper, 0.0))
        else:
            lower = upper - 1
            slices.append((lower, upper, float((wanted - positions[lower]) / gaps[lower])))
    lines = [
        f"slices lie {gaps.min():g} to {gaps.max():g} mm apart: {len(positions)} of them were "
        f"interpolated to {count}, {step:g} mm apart"
    ]
    missing = np.flatnonzero(gaps > 1.5 * step)
    if len(missing):
        places = ", ".join(f"{labels[n]} and {labels[n + 1]}" for n in missing[:_SHOWN])
        more = f" and in {len(missing) - _SHOWN} more places" if len(missing) > _SHOWN else ""
        lines.append(f"slices are missing between {places}{more}")
    return StackPlan(tuple(slices), positions[0], step, tuple(lines))
