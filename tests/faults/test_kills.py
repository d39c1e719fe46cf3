"""The campaign of kills finds what it looks for, with jobs of milliseconds."""

import io
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

from lesion_d2.files import locked, written_whole

import pytest
from tqdm import tqdm

from .kills.jobs import Job
from .kills.processes import Child
from .kills.trials import Bench

_SIZE = 5000


def _end(folder: Path) -> dict:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.txt"))}


def _work() -> None:
    """Some milliseconds of the processor, in which a job can be interrupted."""
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass


def _good(root: Path, folder: Path) -> int:
    """Whole files, one at a time, at one place; one line where that cannot be."""
    folder.mkdir(exist_ok=True)
    try:
        with locked(folder / "lock"):
            for name in ("a.txt", "b.txt"):
                _work()
                with written_whole(folder / name) as partial:
                    partial.write_bytes(b"x" * _SIZE)
    except OSError as error:
        print(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    return 0


def _grows(root: Path, folder: Path) -> int:
    """Each run, also one after a kill, adds to what stands there."""
    folder.mkdir(exist_ok=True)
    with open(folder / "a.txt", "a") as file:
        file.write("begun\n")
    _work()
    return 0


def _writes_in_place(root: Path, folder: Path) -> int:
    folder.mkdir(exist_ok=True)
    try:
        with open(folder / "a.txt", "wb") as file:
            file.write(b"x" * _SIZE)
    except OSError:
        return 1
    return 0


def _leaves_a_process(root: Path, folder: Path) -> int:
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    _work()
    return _good(root, folder)


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    monkeypatch.setattr("faults.kills.trials._TO_END", 0.2)
    return Bench(tmp_path, seed=0)


def test_a_job_that_keeps_its_promise(bench):
    job = Job("good", _good, _end, 1)
    found = [bench.kill(job) for _ in range(4)]
    found += [bench.interrupt(job, number) for number in (signal.SIGINT, signal.SIGTERM)]
    found += [bench.fill(job, 100), bench.fill(job, 2 * _SIZE), bench.double(job)]
    assert [x.verdict for x in found] == ["equal"] * 9, found
    assert bench.whole(job).end == {"a.txt": b"x" * _SIZE, "b.txt": b"x" * _SIZE}


def test_jobs_that_do_not(bench):
    # What they do wrong is done by then; in a random moment it may not be.
    bench.rng = SimpleNamespace(uniform=lambda low, high: 0.6, random=lambda: 0.9)
    grows = Job("grows", _grows, _end, 1)
    assert bench.kill(grows).verdict == "differs"
    in_place = Job("in place", _writes_in_place, _end, 1)
    found = bench.fill(in_place, 100)
    assert (found.verdict, found.text) == ("half file", "['a.txt']")
    leaves = Job("leaves", _leaves_a_process, _end, 1)
    assert bench.interrupt(leaves, signal.SIGTERM).verdict == "orphans"
    fails = Job("fails", _good, _end, 1, again=lambda root, folder: 3)
    assert bench.kill(fails).verdict == "fails"


def test_what_an_interrupted_process_prints_is_read():
    child = Child(lambda: print("begun", flush=True) or time.sleep(600))
    while "begun" not in child.output():
        time.sleep(0.001)
    child.send(signal.SIGINT)
    assert child.wait(60) == 1 and not child.session()
    assert child.output().startswith("begun\nTraceback") and "KeyboardInterrupt" in child.output()


def test_a_killed_process_holds_no_lock_of_the_next_ones_progress_bar():
    def hold_for_ever():
        tqdm.get_lock().acquire()
        print("held", flush=True)
        time.sleep(600)

    tqdm(range(1), disable=False, file=io.StringIO())  # its lock is made before the fork
    first = Child(hold_for_ever)
    while "held" not in first.output():
        time.sleep(0.001)
    second = Child(lambda: sum(tqdm(range(9))))
    status = second.wait(20)
    first.kill_all()
    second.kill_all()
    assert status == 36 and "9/9" in second.output()
