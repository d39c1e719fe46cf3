"""Parallel map of a function over items, on all cores."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from typing import TypeVar

import cv2
from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")
# Libraries read these at import. With one thread per core in one process per core, OpenBLAS spends
# more than half of the time in spin waits.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def count_cores() -> int:
    """The number of cores that this process may use, as limited by a container or batch system."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_unordered(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None
) -> Iterator[Result]:
    """Yield results as they are ready, in any order; one worker runs in this process, in order.

    Close the iterator (:func:`contextlib.closing`) if it may not be exhausted.

    Args:
        function: takes one argument; it, the items and the results must be picklable.
        items: its arguments.
        workers: number of processes, at most one per item; None for one per core of
            :func:`count_cores`.

    Raises:
        BrokenProcessPool: a process was killed.
    """
    workers = min(workers or count_cores(), len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    # A forked process would hang in OpenCV if this one has used OpenCV's threads before.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        with _environment(dict.fromkeys(_ONE_THREAD, "1")):  # inherited by the workers
            futures = [pool.submit(function, item) for item in items]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def map_with_progress(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None = None,
    *,
    size: Callable[[Result], int] | None = None,
    **bar,
) -> Iterator[Iterator[Result]]:
    """:func:`map_unordered` with a progress bar; leaving the block stops remaining work.

    Args:
        function, items, workers: see :func:`map_unordered`.
        size: how much a result advances the bar; None for 1.
        bar: arguments of :class:`tqdm.tqdm`; ``total`` defaults to the number of items.

    Raises:
        BrokenProcessPool: a process was killed.

    Example:
        >>> with map_with_progress(abs, [-1, 2], workers=1, unit="number") as results:
        ...     list(results)
        [1, 2]
    """
    with (
        tqdm(**{"total": len(items), **bar}) as progress,
        closing(map_unordered(function, items, workers)) as results,
    ):
        yield _moving(results, progress, size)


def _moving(
    results: Iterator[Result], progress: tqdm, size: Callable[[Result], int] | None
) -> Iterator[Result]:
    for result in results:
        yield result
        progress.update(1 if size is None else size(result))


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables, and restore them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start_worker() -> None:
    """Use one thread, leave Ctrl-C to the parent, and end with the parent."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow_parent() -> None:
        """End this process when its parent ends, or now if it already has."""
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
