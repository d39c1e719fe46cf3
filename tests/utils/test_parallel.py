import fcntl
import multiprocessing
import os
import signal
from concurrent.futures import Future
from contextlib import closing

from lesion_d2.utils import parallel
from lesion_d2.utils.errors import run_program
from lesion_d2.utils.parallel import count_cores, map_unordered, map_with_progress

import pytest
from warm_processes import METHOD, run_script


def _with_process(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def test_one_worker_is_this_process_and_keeps_the_order():
    results = list(map_unordered(_with_process, range(4), workers=1))
    assert results == [(n**2, os.getpid()) for n in range(4)]


@pytest.mark.skipif(METHOD != "forkserver", reason="a spawned worker takes seconds to import torch")
def test_workers_are_other_processes_and_give_every_result_once(warm_spawn):
    results = list(map_unordered(_with_process, range(9), workers=2))
    assert sorted(value for value, _ in results) == [n**2 for n in range(9)]
    processes = {process for _, process in results}
    assert os.getpid() not in processes and len(processes) <= 2


def _blas_threads(_: int) -> str | None:
    return os.environ.get("OPENBLAS_NUM_THREADS")


@pytest.mark.parametrize("before", [None, "7"])
def test_workers_start_with_one_thread_and_leave_the_environment(monkeypatch, before):
    started = []

    class Pool:
        """Notes what processes that it started would inherit."""

        def __init__(self, *args, **kwargs):
            pass

        def submit(self, function, item):
            started.append(function(item))
            return future

        def shutdown(self, **kwargs):
            pass

    future = Future()
    future.set_result(None)
    monkeypatch.setattr(parallel, "ProcessPoolExecutor", Pool)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if before is not None:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", before)
    list(map_unordered(_blas_threads, range(2), workers=2))
    assert started == ["1", "1"] and os.environ.get("OPENBLAS_NUM_THREADS") == before


def test_closing_it_early_leaves_no_worker(warm_spawn):
    with closing(map_unordered(_with_process, range(50), workers=2)) as results:
        next(results)
    assert not multiprocessing.active_children()


def test_a_signal_ends_workers(warm_spawn, capsys):
    def work() -> None:
        for _ in map_unordered(_with_process, range(50), workers=2):
            signal.raise_signal(signal.SIGTERM)

    assert run_program(work) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "interrupted\n"
    assert not multiprocessing.active_children()


# A worker that kills its parent and only then begins; it holds a lock as long as it lives.
LATE_WORKER = """
import fcntl, multiprocessing, os, signal, sys, time
from lesion_d2.utils.parallel import _start_worker

def work():
    lock = open(sys.argv[1], "w", buffering=1)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.kill(os.getppid(), signal.SIGKILL)
    _start_worker()
    time.sleep(60)
    lock.write("outlived its parent by a minute")

multiprocessing.get_context("fork").Process(target=work).start()
"""


def test_a_worker_that_starts_after_its_parent_was_killed_ends(tmp_path):
    script, lock = tmp_path / "late.py", tmp_path / "lock"
    script.write_text(LATE_WORKER)
    run = run_script(script, str(lock), cwd=tmp_path)
    assert run.returncode == -9, run.stderr
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert file.read() == ""


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert count_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS, Windows
    assert count_cores() == 64


def test_a_bar_moves_by_the_size_of_a_result(capsys):
    bar = {"total": 3, "desc": "things", "size": len}
    with map_with_progress(list, [(1, 2), (3,)], workers=1, **bar) as results:
        assert list(results) == [[1, 2], [3]]
    last = capsys.readouterr().err.splitlines()[-1]
    assert "things" in last and "3/3" in last
