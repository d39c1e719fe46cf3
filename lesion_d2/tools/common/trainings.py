"""Run trainings as processes of train_net.py, several at a time."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from lesion_d2.config import LesionConfig
from lesion_d2.config.old_keys import with_old_keys
from lesion_d2.utils.errors import interruptible, told
from lesion_d2.utils.files import json_digest
from lesion_d2.utils.parallel import count_cores

from tqdm import tqdm

#: Output of train_net.py, beside its log.txt.
CONSOLE = "console.txt"
_POLL_SECONDS = 0.05
#: Seconds between SIGTERM and SIGKILL.
KILL_SECONDS = 20.0


class FailedRun(Exception):
    """A run ended without a result; the message is one line."""


class TrainingRun(Protocol):
    """A run of train_net.py, in a separate folder.

    Attributes:
        name: for messages.
        folder: its OUTPUT_DIR.
    """

    name: str
    folder: Path

    def result(self) -> object | None:
        """The result of the run; None if it has not finished.

        Raises:
            ValueError: the folder has a run with other options.
        """

    def begin(self) -> None:
        """Write its options to its folder, so that a resumed run can check them."""

    def commands(self) -> list[list[str]]:
        """Arguments of train_net.py, for processes that run one after the other."""

    def end(self, seconds: float, resumed: bool) -> None:
        """Write the result of the run.

        Args:
            seconds: duration of the processes.
            resumed: whether an earlier call had started the run.

        Raises:
            FailedRun, OSError, ValueError: there is no result.
        """


@contextmanager
def collected(failures: list[str]) -> Iterator[None]:
    """Context manager that reports errors of a tool in lines instead of tracebacks.

    See also :func:`interruptible`.

    Args:
        failures: a line is appended if files or values are wrong, or after an interruption.
    """
    try:
        with interruptible():
            yield
    except (ValueError, OSError) as error:
        failures.append(f"error: {told(error)}")
    except KeyboardInterrupt:
        failures.append("interrupted: run the same command again to continue")


def run_all(
    runs: Sequence[TrainingRun],
    program: Path,
    *,
    jobs: int = 1,
    done: int = 0,
    description: str = "runs",
    grace: float = KILL_SECONDS,
) -> list[str]:
    """Run trainings, ``jobs`` at a time, each in its folder; a failed one does not stop the others.

    After an interruption, no process is left; see :func:`interruptible`.

    Args:
        runs: interrupted ones are resumed; finished ones, also by another call in the meantime,
            are skipped.
        program: ``train_net.py``.
        jobs: processes at a time, which share the cores.
        done: number of runs finished before, for the progress bar.
        description: text of the progress bar.
        grace: seconds between SIGTERM and SIGKILL after an interruption.

    Returns:
        A line for each run that failed.
    """
    waiting, active, failures = list(runs)[::-1], [], []
    with tqdm(total=done + len(runs), initial=done, desc=description, unit="run") as bar:
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    training = Training(waiting.pop())
                    with _collected(training.run, failures):
                        if training.start(program, jobs):
                            active.append(training)
                    if training not in active:
                        bar.update()
                time.sleep(_POLL_SECONDS)
                for training in [t for t in active if t.process.poll() is not None]:
                    goes_on = False
                    with _collected(training.run, failures):
                        goes_on = training.go_on()
                    if not goes_on:
                        active.remove(training)
                        bar.update()
        finally:
            _stop(active, grace)
    return failures


@contextmanager
def _collected(run: TrainingRun, failures: list[str]) -> Iterator[None]:
    """Append a failure in the block to the list."""
    try:
        yield
    except (FailedRun, OSError, ValueError) as error:
        failures.append(f"failed: {run.name}: {error}")


def _stop(trainings: Sequence["Training"], grace: float) -> None:
    """End the processes; a later call resumes from their checkpoints."""
    for training in trainings:
        training.process.terminate()
    deadline = time.monotonic() + grace
    for training in trainings:
        try:
            training.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            training.process.kill()
            training.process.wait()
        training.console.close()


class Training:
    """A run in progress, from the lock on its folder to its result."""

    def __init__(self, run: TrainingRun):
        self.run = run

    def start(self, program: Path, jobs: int) -> bool:
        """Start the run's process; returns False if the run is finished.

        Raises:
            FailedRun: another process, maybe left by an earlier call, is working on this run.
            ValueError: its folder has a run with other options.
        """
        folder = self.run.folder
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self.console = stack.enter_context(open(folder / CONSOLE, "ab"))
            try:
                # The process inherits the lock, and holds it even if this one is killed.
                fcntl.flock(self.console, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FailedRun(f"{folder} is in use by another process") from None
            # Read after locking, because then no other process changes the folder.
            if self.run.result() is not None:
                return False
            self.run.begin()
            self.resumed = (folder / "last_checkpoint").is_file()
            self.began = time.monotonic()
            self.console.truncate(0)
            self.commands = [
                [sys.executable, str(program), *arguments] for arguments in self.run.commands()
            ]
            self.environment = _environment(jobs)
            self._begin()
            stack.pop_all()  # the console stays open: the lock is held until the result is there
        return True

    def _begin(self) -> None:
        self.process = subprocess.Popen(
            self.commands.pop(0),
            stdin=subprocess.DEVNULL,
            stdout=self.console,
            stderr=subprocess.STDOUT,
            env=self.environment,
        )

    def go_on(self) -> bool:
        """After a process has ended, start the next one or write the result.

        Returns:
            Whether a process was started.

        Raises:
            FailedRun: it failed, or left no result.
        """
        with ExitStack() as stack:
            stack.enter_context(self.console)
            if self.process.returncode != 0:
                console = self.run.folder / CONSOLE
                raise FailedRun(
                    f"exit code {self.process.returncode}: {_last_line(console)} (see {console})"
                )
            if self.commands:
                self._begin()
                stack.pop_all()
                return True
            self.run.end(round(time.monotonic() - self.began, 1), self.resumed)
            return False


def hash_settings(config: Path) -> str:
    """SHA-256 of the keys and values of a config file and its base files.

    Defaults are left out, so new keys in a later version of the project do not change it. New names
    of keys do not either, nor one value of MODEL.PIXEL_MEAN for all slices.

    Raises:
        FileNotFoundError: a file is missing.
    """
    content = with_old_keys(LesionConfig.load_yaml_with_base(str(config)))
    _repeat_pixel_values(content)
    return json_digest(content)


def _repeat_pixel_values(content: dict[str, Any]) -> None:
    """As configs had them before one value was enough; 3 is the default of INPUT.CT.NUM_SLICES."""
    model, inputs = content.get("MODEL", {}), content.get("INPUT", {})
    if "VOLUME" in inputs:
        return
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(values := model.get(key, ())) == 1:
            model[key] = inputs.get("CT", {}).get("NUM_SLICES", 3) * values


def _environment(jobs: int) -> dict[str, str]:
    """The environment of a training; existing variables take precedence over the defaults here."""
    cores = count_cores()
    # Without TorchScript, which compiles Detectron2's focal loss for ten seconds per process.
    defaults = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), "PYTORCH_JIT": "0"}
    return {**defaults, **os.environ}


def _last_line(file: Path) -> str:
    lines = file.read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
