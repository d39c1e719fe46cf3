"""Trainings as processes of train_net.py, several at a time."""

import datetime
import fcntl
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lesion_d2

from tqdm import tqdm

from .grid import Result, Run

#: What train_net.py prints; its log.txt lies beside.
CONSOLE = "console.txt"
METRIC = "bbox/AP10"
_POLL_SECONDS = 0.05
_KILL_SECONDS = 20.0  # between asking a process to end and ending it


class FailedRun(Exception):
    """A run that did not end with a result; the message is one line."""


def find_program() -> tuple[Path, Path]:
    """Where ``train_net.py`` and ``configs/toys`` are: in the project's root.

    Raises:
        FileNotFoundError: not beside the package, which is then no checkout of the project.
    """
    root = Path(lesion_d2.__file__).parents[1]
    program, configs = root / "train_net.py", root / "configs" / "toys"
    for path in (program, configs):
        if not path.exists():
            raise FileNotFoundError(f"{path}: not found, expected it in a checkout of the project")
    return program, configs


def run_all(
    runs: Sequence[Run], program: Path, configs: Path, *, jobs: int = 1, done: int = 0
) -> list[str]:
    """Run trainings, ``jobs`` at a time, each in its folder; one that fails does not stop others.

    Where this is interrupted, no process is left.

    Args:
        runs: without those that are done; an interrupted one goes on where it was.
        program: ``train_net.py``.
        configs: the folder of the runs' configs.
        jobs: processes at a time, which share the cores.
        done: runs of the grid that were done before, for the bar.

    Returns:
        A line for each run that failed.
    """
    waiting, active, failures = list(runs)[::-1], [], []
    with tqdm(total=done + len(runs), initial=done, desc="Toy runs", unit="run") as bar:
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    run = waiting.pop()
                    with _collected(run, failures, bar):
                        active.append(_Training(run, program, configs, jobs))
                time.sleep(_POLL_SECONDS)
                for training in [t for t in active if t.process.poll() is not None]:
                    active.remove(training)
                    with _collected(training.run, failures):
                        training.finish()
                    bar.update()
        finally:
            for training in active:
                training.stop()
    return failures


@contextmanager
def _collected(run: Run, failures: list[str], bar: tqdm | None = None) -> Iterator[None]:
    """Add a failure in the block to the list, and move the bar where one is given."""
    try:
        yield
    except (FailedRun, OSError) as error:
        failures.append(f"failed: {run.name}: {error}")
        if bar is not None:
            bar.update()


class _Training:
    """The process of one run.

    Raises:
        FailedRun: another process, maybe left by an earlier call, is at this run.
    """

    def __init__(self, run: Run, program: Path, configs: Path, jobs: int):
        self.run = run
        run.begin()
        self.resumed = (run.folder / "last_checkpoint").is_file()
        self.start = time.monotonic()
        cores = os.cpu_count() or 1
        env = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), "PYTORCH_JIT": "0"}
        command = [sys.executable, str(program), *run.arguments(configs)]
        with open(run.folder / CONSOLE, "ab") as console:
            try:
                # The process inherits the lock, and holds it even where this one is killed.
                fcntl.flock(console, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FailedRun(f"{run.folder} is in use by another process") from None
            console.truncate(0)
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
            )

    def finish(self) -> None:
        """Write the result of the process, which has ended.

        Raises:
            FailedRun: it failed, or left no result.
        """
        if self.process.returncode != 0:
            console = self.run.folder / CONSOLE
            raise FailedRun(
                f"exit code {self.process.returncode}: {_last_line(console)} (see {console})"
            )
        metrics = self.run.folder / "metrics.json"
        ap10, _ = read_metric(metrics, METRIC)
        # Not the evaluation's iteration: one after a resumption at the end counts one too many.
        _, iteration = read_metric(metrics, "total_loss")
        seconds = round(time.monotonic() - self.start, 1)
        date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self.run.end(Result(ap10, iteration + 1, seconds, self.resumed, date))

    def stop(self) -> None:
        """End the process; its checkpoints stay, and a later call resumes from them."""
        self.process.terminate()
        try:
            self.process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def read_metric(file: Path, metric: str) -> tuple[float, int]:
    """The last value of a metric in a run's ``metrics.json``, and the iteration that it is of.

    Raises:
        FailedRun: there is no number.
    """
    try:
        records = [json.loads(line) for line in file.read_text().splitlines() if metric in line]
        value, iteration = float(records[-1][metric]), int(records[-1]["iteration"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FailedRun(f"{file}: found no {metric} ({error!r})") from None
    if not math.isfinite(value):
        raise FailedRun(f"{file}: found {metric} {value}, expected a number")
    return value, iteration


def _last_line(file: Path) -> str:
    lines = file.read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
