"""Rows of the table, and times of alternating calls."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch


@dataclass
class Row:
    """One line of the table; ``limit`` is the maximum, or the minimum if ``at_least``."""

    name: str
    measured: float
    unit: str = ""
    limit: float | None = None
    note: str = ""
    at_least: bool = False

    @property
    def ok(self) -> bool:
        """Whether the limit is met; true without a limit."""
        limit = self.measured if self.limit is None else self.limit
        return self.measured >= limit if self.at_least else self.measured <= limit

    def cells(self) -> list[str]:
        """Name, measured, limit, ok, note."""
        limit, ok = "", ""
        if self.limit is not None:
            limit = f"{'>=' if self.at_least else '<='} {self.limit:.3g} {self.unit}"
            ok = "yes" if self.ok else "NO"
        return [self.name, f"{self.measured:.3g} {self.unit}", limit, ok, self.note]


@dataclass
class Times:
    """Seconds of the repeats of one call: wall time and CPU time."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def min(self) -> float:
        """The fastest repeat."""
        return min(self.seconds)

    @property
    def milliseconds(self) -> float:
        """The median repeat."""
        return 1e3 * statistics.median(self.seconds)


def time_calls(
    calls: Sequence[Callable], *, repeats: int, warm_up: int = 1, device: str = "cpu"
) -> list[Times]:
    """Time several calls in turn, so that they run under the same conditions.

    Args:
        calls: functions without arguments.
        repeats: timed calls of each.
        warm_up: untimed calls of each before.
        device: with "cuda", the device is synchronized before the clock stops.
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = [Times() for _ in calls]
    for number in range(warm_up + repeats):
        for call, measured in zip(calls, times, strict=True):
            wait()
            start, cpu_start = time.perf_counter(), time.process_time()
            call()
            wait()
            if number >= warm_up:
                measured.seconds.append(time.perf_counter() - start)
                measured.cpu_seconds.append(time.process_time() - cpu_start)
    return times


def paired_ratio(
    name: str,
    ours: Times,
    theirs: Times,
    note: str,
    *,
    limit: float | None = None,
    of_processor: bool = False,
) -> Row:
    """The median ratio of consecutive calls, which a loaded machine slows down equally.

    Args:
        name, note, limit: of the row.
        ours, theirs: of the calls.
        of_processor: whether to compare CPU time, for single-core calls.
    """
    sides = [times.cpu_seconds if of_processor else times.seconds for times in (ours, theirs)]
    ratios = [a / b for a, b in zip(*sides, strict=True)]
    medians = [1e3 * statistics.median(side) for side in sides]
    times = "{:.0f} against {:.0f} ms".format(*medians)
    return Row(name, statistics.median(ratios), "x", limit, f"{times}, {note}")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use a single thread within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
