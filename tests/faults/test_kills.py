"""The campaign of kills finds what it looks for, with jobs of milliseconds."""

import io
import os
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from lesion_d2.utils.files import atomic_write, locked

import numpy as np
import pytest
from tqdm import tqdm

from .case import Found
from .kills.campaign import _kill, as_table, plan, run_trials
from .kills.jobs import JOBS, Job
from .kills.processes import Child, Program
from .kills.trials import Bench

_SIZE = 5000


def _end(folder: Path) -> dict:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.txt"))}


def _work() -> None:
    """Some milliseconds of the processor, in which a job can be interrupted."""
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass


def _good(root: Path, folder: Path) -> int:
    """Whole files, one at a time, at one place; one line where that cannot be."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder.mkdir(exist_ok=True)
    try:
        with locked(folder / "lock"):
            for name in ("a.txt", "b.txt"):
                _work()
                with atomic_write(folder / name) as partial:
                    partial.write_bytes(b"x" * _SIZE)
    except OSError as error:
        print(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    return 0


def _grows(root: Path, folder: Path) -> int:
    """Each run, also one after a kill, adds to the existing output."""
    folder.mkdir(exist_ok=True)
    with open(folder / "a.txt", "a") as file:
        file.write("begun\n")
    _work()
    return 0


def _is_long_at_work(root: Path, folder: Path) -> int:
    """The first one: it is there until a second one has been."""
    is_first = not folder.exists()
    _grows(root, folder)
    if not is_first:
        (root / "second").touch()
    while not (root / "second").exists():
        time.sleep(0.001)
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
    return Bench(tmp_path)


def test_a_job_that_keeps_its_promise(bench):
    job = Job("good", _good, _end, 1)
    rng = np.random.default_rng(0)
    found = list(bench.kill(job, 4, rng))
    found += [bench.interrupt(job, number, rng) for number in (signal.SIGINT, signal.SIGTERM)]
    found += [bench.fill(job, 100), bench.fill(job, 2 * _SIZE), bench.double(job, 0.6)]
    assert [x.verdict for x in found] == ["equal"] * 9, found
    assert [one.case.partition(":")[0] for one in found[:6]] == ["SIGKILL"] * 4 + [
        "SIGINT",
        "SIGTERM",
    ]
    assert bench.whole(job).end == {"a.txt": b"x" * _SIZE, "b.txt": b"x" * _SIZE}


def test_jobs_that_do_not(bench):
    # What they do wrong is done by then; in a random moment it may not be.
    rng = SimpleNamespace(uniform=lambda low, high: 0.6, random=lambda: 0.9)
    grows = Job("grows", _grows, _end, 1)
    assert [one.verdict for one in bench.kill(grows, 2, rng)] == ["differs"] * 2
    in_place = Job("in place", _writes_in_place, _end, 1)
    found = bench.fill(in_place, 100)
    assert (found.verdict, found.text) == ("half file", "['a.txt']")
    leaves = Job("leaves", _leaves_a_process, _end, 1)
    assert bench.interrupt(leaves, signal.SIGTERM, rng).verdict == "orphans"
    fails = Job("fails", _good, _end, 1, again=lambda root, folder: 3)
    assert [one.verdict for one in bench.kill(fails, 1, rng)] == ["fails"]
    shares = Job("shares", _is_long_at_work, _end, 1)
    (bench.root / "second").touch()
    bench.whole(shares)
    (bench.root / "second").unlink()
    assert bench.double(shares, 0.6).verdict == "accepted"


def test_what_an_interrupted_process_prints_is_read():
    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("begun", flush=True)
        time.sleep(600)

    child = Child(work)
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


def test_a_program_in_a_process_that_is_forked(tmp_path):
    text = "import os, sys\nprint(sys.argv[1:], os.environ['A'])\nsys.exit(3)"
    (tmp_path / "a.py").write_text(text)
    with open(tmp_path / "out", "wb") as out:
        program = Program(["python", str(tmp_path / "a.py"), "b"], stdout=out, env={"A": "c"})
        assert program.wait() == 3 == program.poll()
    assert (tmp_path / "out").read_text() == "['b'] c\n"


def test_what_is_planned_of_500_kills():
    kills = [trial.keywords for trial in plan(500, seed=0) if trial.func.__name__ == "_kill"]
    count = Counter()
    for one in kills:
        count[one["job"].name] += one["number"]
    assert count == {job.name: job.share for job in JOBS} and count.total() == 500
    assert {one["number"] for one in kills} == {1, 2, 3, 4, 5, 6, 7, 8}
    assert len({one["rng"].random() for one in kills}) == len(kills)
    others = [trial.func.__name__ for trial in plan(0, seed=0, names=["training"])]
    assert Counter(others) == {"_interrupt": 8, "_fill": 3, "_double": 2}


def test_trials_in_processes_and_their_table(bench):
    job = Job("good", _good, _end, 1)
    rngs = np.random.default_rng(0).spawn(2)
    trials = [partial(_kill, job=job, number=2, rng=rng) for rng in rngs]
    trials.append(lambda bench: [bench.fill(job, 100)])
    found = [one for some in run_trials(bench, trials, processes=2) for one in some]
    found.append(Found("other", "SIGINT: at 5%", "traceback"))
    rows = [row.split(" | ") for row in as_table(found).splitlines()]
    assert rows[0][:6] == ["| job", "SIGKILL", "SIGINT", "SIGTERM", "full disk", "second run"]
    assert rows[2][:6] == ["| good", "4 of 4", "0 of 0", "0 of 0", "1 of 1", "0 of 0"]
    assert rows[3][:3] == ["| other", "0 of 0", "0 of 1"]
    assert rows[4][6:10] == ["5", "0", "0", "1"]  # equal, differs, fails, traceback
