"""All trials of all jobs, some at a time, and their table."""

import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial

import numpy as np

from ..case import Found
from .jobs import JOBS, Job
from .trials import VERDICTS, WAYS, Bench

_MOST_IN_SUCCESSION = 8  # kills
_SIGNALS = 4  # trials of a job with one of them
_LONGEST_FILES = (100, 3000, 60_000)
_MOMENTS = (0.4, 0.7)  # at which a second run begins

Trial = Callable[[Bench], list[Found]]
# Of the campaign at work, for the processes that are forked to share it.
_trials: list[Trial] = []
_bench: list[Bench] = []


def plan(number: int, seed: int, names: Sequence[str] = ()) -> list[Trial]:
    """Each other way to interrupt each job; then the kills, so many in all, by the jobs' shares.

    Args:
        number: of kills.
        seed: of their moments, which are the same whatever other jobs there are.
        names: of the jobs; all by default.
    """
    jobs = [job for job in JOBS if not names or job.name in names]
    total = sum(job.share for job in jobs)
    shares = [number * job.share // total for job in jobs]
    for index in range(number - sum(shares)):
        shares[index % len(jobs)] += 1
    kills = [k for job, share in zip(jobs, shares, strict=True) for k in _kills(job, share, seed)]
    return [*(trial for job in jobs for trial in _others(job, seed)), *kills]


def _kills(job: Job, left: int, seed: int) -> Iterator[Trial]:
    rng = np.random.default_rng([seed, *job.name.encode()])
    while left > 0:
        number = min(left, int(rng.integers(1, _MOST_IN_SUCCESSION + 1)))
        yield partial(_kill, job=job, number=number, rng=rng.spawn(1)[0])
        left -= number


def _kill(bench: Bench, *, job: Job, number: int, rng: np.random.Generator) -> list[Found]:
    return list(bench.kill(job, number, rng))


def _others(job: Job, seed: int) -> Iterator[Trial]:
    for number in (signal.SIGINT, signal.SIGTERM):
        rng = np.random.default_rng([seed, number, *job.name.encode()])
        for own in rng.spawn(_SIGNALS):
            yield partial(_interrupt, job=job, number=number, rng=own)
    for longest_file in _LONGEST_FILES:
        yield partial(_fill, job=job, longest_file=longest_file)
    for moment in _MOMENTS:
        yield partial(_double, job=job, moment=moment)


def _interrupt(bench: Bench, *, job: Job, number: int, rng: np.random.Generator) -> list[Found]:
    return [bench.interrupt(job, number, rng)]


def _fill(bench: Bench, *, job: Job, longest_file: int) -> list[Found]:
    return [bench.fill(job, longest_file)]


def _double(bench: Bench, *, job: Job, moment: float) -> list[Found]:
    return [bench.double(job, moment)]


def run_trials(bench: Bench, trials: Sequence[Trial], processes: int = 1) -> Iterator[list[Found]]:
    """What each trial found, as they get ready.

    Args:
        bench: where they are tried; prepared, and with the whole runs of their jobs.
        trials: of :func:`plan`.
        processes: trials at a time.
    """
    _trials[:], _bench[:] = trials, [bench]
    # Forked, they have the project imported, and one thread.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for future in as_completed([pool.submit(_run, index) for index in range(len(trials))]):
            yield future.result()


def _run(index: int) -> list[Found]:
    return _trials[index](_bench[0])


def run_kills(
    bench: Bench, number: int, seed: int, names: Sequence[str] = (), processes: int = 1
) -> Iterator[list[Found]]:
    """Prepare all that is needed, and do what is planned, see :func:`plan`."""
    bench.prepare()
    for job in JOBS:
        if not names or job.name in names:
            bench.whole(job)
    yield from run_trials(bench, plan(number, seed, names), processes)


def as_table(found: Sequence[Found]) -> str:
    """Jobs, how many trials of each way ended right, of all of that way, and the verdicts."""
    lines = [f"| job | {' | '.join((*WAYS, *VERDICTS))} |"]
    lines.append("|---" * (1 + len(WAYS) + len(VERDICTS)) + "|")
    names = dict.fromkeys(one.kind for one in sorted(found, key=_place))
    for name in (*names, "all"):
        own = [one for one in found if name in (one.kind, "all")]
        cells = [_right(own, way) for way in WAYS]
        verdicts = Counter(one.verdict for one in own)
        cells += [str(verdicts[verdict]) for verdict in VERDICTS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _place(found: Found) -> int:
    """Where a job stands in the table."""
    names = [job.name for job in JOBS]
    return names.index(found.kind) if found.kind in names else len(names)


def _right(found: Sequence[Found], way: str) -> str:
    own = [one for one in found if one.case.startswith(way)]
    return f"{sum(one.verdict == VERDICTS[0] for one in own)} of {len(own)}"
