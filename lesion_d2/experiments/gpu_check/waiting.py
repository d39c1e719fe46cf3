"""Measures how long a GPU is idle."""

import time
from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile

Interval = tuple[float, float]


def covered(intervals: Iterable[Interval]) -> float:
    """The length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(intervals):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def waiting_share(step: Callable[[], object], repeats: int) -> float | None:
    """The share of time in which a GPU runs no kernel and no copy, by torch's profiler.

    Args:
        step: function to measure.
        repeats: number of steps.

    Returns:
        From 0 to 1; None if the profiler has no kernel, as on a CPU.
    """
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        start = time.perf_counter()
        for _ in range(repeats):
            step()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    intervals = [
        (event.time_range.start, event.time_range.end)  # microseconds
        for event in profiled.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    if not intervals:
        return None
    return max(0.0, 1 - covered(intervals) / 1e6 / seconds)
