"""A process for measurements, separate from the one that checks the time."""

import gc
import multiprocessing
import os
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from lesion_d2.utils.files import one_line

import cv2
import torch

from . import measuring
from .configs import SETTINGS, read_config
from .data import phantom, volume
from .jobs import Job

#: Job that prepares the data of the measurements.
PREPARE = Job("data", "")
_GRACE = 5.0  # seconds that a process has to end by itself


@dataclass(frozen=True)
class Options:
    """Options of all jobs.

    Attributes:
        device: "cpu" or "cuda".
        folder: for data and runs.
        tiny: narrow models, small images, few calls.
        seconds: total time of timed calls for each number.
    """

    device: str
    folder: Path
    tiny: bool
    seconds: float


def run_job(job: Job, options: Options) -> measuring.Numbers:
    """Run a job in this process."""
    tiny, folder, seconds = options.tiny, options.folder, options.seconds
    if job == PREPARE:
        phantom(folder, tiny=tiny)
        volume(folder, tiny=tiny)
        return {}
    cfg = read_config(job.config, options.device, tiny=tiny)
    if job.kind == "step":
        return measuring.train_step(cfg, folder, tiny=tiny)
    SETTINGS[job.setting].apply(cfg)
    if job.kind == "model":
        return measuring.measure_model(cfg, seconds=seconds)
    if job.kind == "loader":
        return measuring.measure_loader(cfg, folder, seconds=2 * seconds, tiny=tiny)
    if job.kind == "volume":
        return measuring.measure_volume(cfg, folder, tiny=tiny)
    if job.kind == "optimizer":
        return measuring.measure_optimizer(cfg, seconds=seconds / 2)
    return measuring.measure_teacher(cfg, seconds=seconds / 2)


class Worker:
    """Runs jobs one after the other in a separate process, which can be stopped and restarted.

    A job that takes too long, or crashes the process, does not affect the others.

    Args:
        options: of all jobs.
    """

    def __init__(self, options: Options):
        self._options = options
        self._process: multiprocessing.Process | None = None
        self._connection: Connection | None = None

    def submit(self, job: Job) -> None:
        """Start a job; call :meth:`wait` before the next one."""
        if self._process is None or not self._process.is_alive():
            self.stop()
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            # Not a daemon, because daemons cannot start processes, such as loaders.
            self._process = context.Process(target=_serve, args=(theirs, self._options))
            self._process.start()
            theirs.close()
        self._connection.send(job)

    def wait(self, seconds: float) -> dict:
        """Wait for the result of a job: its ``numbers`` and ``seconds``, or an ``error``.

        Args:
            seconds: time limit, after which its process is ended.
        """
        if not self._connection.poll(max(0.0, seconds)):
            self.stop()
            return {"error": f"stopped after {seconds:.0f} s"}
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            self._process.join(_GRACE)
            status = self._process.exitcode
            self.stop()
            return {"error": f"its process ended with status {status}"}

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.terminate()
            self._process.join(_GRACE)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._connection.close()
            self._process = None


def _serve(connection: Connection, options: Options) -> None:
    """Run jobs until the connection is closed."""
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")  # of libraries, between the rows
    os.environ["PYTHONWARNINGS"] = "ignore"  # of loaders' processes, too
    with suppress(EOFError):
        while True:
            job = connection.recv()
            start = time.perf_counter()
            try:
                found = {"numbers": run_job(job, options)}
            except Exception as error:  # the next job may succeed
                found = {"error": f"{type(error).__name__}: {one_line(error)}"}
            found["seconds"] = time.perf_counter() - start
            usable = _clean_up(options.device)
            connection.send(found)
            if not usable:
                os._exit(1)  # the next job gets a new process


def _clean_up(device: str) -> bool:
    """Free memory; returns whether the device is still usable."""
    gc.collect()
    if "torch._dynamo" in sys.modules:  # what was compiled for the last model
        torch._dynamo.reset()
    if device == "cuda":
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            return False
    return True
