"""One function over many items, on all cores."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

import cv2

Item = TypeVar("Item")
Result = TypeVar("Result")
# Of libraries that read them when they are imported: with a thread a core in each of as many
# processes, OpenBLAS waits by spinning for more than half of the time.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def count_cores() -> int:
    """The cores that this process may use; a container or a batch system may give it few."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_unordered(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None
) -> Iterator[Result]:
    """Results as they get ready, in any order; with one worker in this process and in order.

    Close the iterator (:func:`contextlib.closing`) where it may not be exhausted.

    Args:
        function: of one argument; it, the items and the results can be pickled.
        items: its arguments.
        workers: processes; None for all cores that this one may use. There are never more than
            items.

    Raises:
        BrokenProcessPool: a process was killed.
    """
    workers = min(workers or count_cores(), len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    # A forked process would hang in OpenCV, where this one has used its threads before.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        with _environment(dict.fromkeys(_ONE_THREAD, "1")):  # of the processes that this starts
            futures = [pool.submit(function, item) for item in items]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables, and put them back."""
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
    """One thread a process; Ctrl-C is the parent's affair; a killed parent leaves no workers."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow_parent() -> None:
        """End this process with its parent, also one that is gone already."""
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
