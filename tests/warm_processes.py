"""Processes that begin with the project imported: in milliseconds instead of seconds.

They are forked from a server, a process of its own that imported the project and ran nothing: so
they inherit no thread of OpenCV's or torch's, and no context of a GPU.
"""

import faulthandler
import logging
import multiprocessing
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest
import torch
import torch.multiprocessing as mp
from detectron2.engine import launch
from speed_up import read_configs_quickly, write_quickly
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

_START_PROCESSES = mp.start_processes  # launch_two puts another one in its place
METHOD = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
_MODULES = ["lesion_d2.engine", "lesion_d2.data.toys.images", "matplotlib.backends.backend_agg"]
if METHOD == "forkserver":
    multiprocessing.set_forkserver_preload(_MODULES)


def start_server() -> None:
    """Fork the server from this process before a test runs, where it imported the project already.

    Else the server imports it anew, for seconds, when it is needed. So it does where there is a
    GPU: whoever was forked from a process that asked for one cannot use it.
    """
    if METHOD == "forkserver" and sys.modules.keys() >= set(_MODULES):
        if torch.cuda.is_available():
            return
        resource_tracker.ensure_running()
        with mock.patch.object(util, "spawnv_passfds", _fork):
            forkserver.ensure_running()


def _fork(path: bytes, command: Sequence[str | bytes], descriptors: Sequence[int]) -> int:
    """Run a Python command in a fork in place of a new interpreter, without what is pytest's."""
    process = os.fork()
    if process:
        return process
    try:
        faulthandler.disable()
        forkserver._forkserver.__init__()  # its lock is held
        _leave_pytest()
        kept = sorted({0, 1, 2, *descriptors})
        for low, high in pairwise([*kept, os.sysconf("SC_OPEN_MAX")]):
            os.closerange(low + 1, high)
        exec(command[-1], {})
    finally:
        os._exit(0)


def _leave_pytest() -> None:
    """What is printed and logged goes where it would without pytest."""
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in list(getattr(logger, "handlers", ())):
            if type(handler).__module__.startswith("_pytest."):
                logger.removeHandler(handler)


def start_processes(function: Callable, args: tuple = (), nprocs: int = 1, **_: object) -> None:
    """Run ``function(i, *args)`` in processes, as :func:`torch.multiprocessing.spawn` does."""
    args = (dict(os.environ), list(sys.path), function, *args)
    _START_PROCESSES(_call, args, nprocs=nprocs, start_method=METHOD)


def _call(rank: int, environ: dict, path: list[str], function: Callable, *args: object) -> None:
    _take_over(environ, path)
    function(rank, *args)


def _take_over(environ: dict[str, str], path: list[str]) -> None:
    """Make this process, which inherited the server's state, like the one that asked for it."""
    os.environ.clear()
    os.environ.update(environ)
    sys.path[:] = path
    torch.set_num_threads(1)
    read_configs_quickly(pytest.MonkeyPatch())
    write_quickly(pytest.MonkeyPatch())


def launch_two(function: Callable, *args: object) -> None:
    """Run a function in two processes that know each other, by Detectron2's ``launch``."""
    with mock.patch.object(mp, "start_processes", start_processes):
        launch(function, 2, dist_url="auto", args=args)


def torchrun_two(function: Callable, *args: object) -> None:
    """Run a function in two processes that torchrun's agent starts, with its variables."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method=METHOD,
        max_restarts=0,
        monitor_interval=0.1,
    )
    elastic_launch(config, _call_of_agent)(dict(os.environ), list(sys.path), function, *args)


def _call_of_agent(environ: dict, path: list[str], function: Callable, *args: object) -> None:
    names = ("RANK", "WORLD_SIZE", "MASTER", "TORCHELASTIC", "LOCAL_", "GROUP_", "ROLE_")
    own = {name: value for name, value in os.environ.items() if name.startswith(names)}
    _take_over({**environ, **own}, path)
    function(*args)


def run_script(script: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run a Python script without its warnings, as :func:`subprocess.run` does; output as text."""
    command = [str(script), *arguments]
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        process = multiprocessing.get_context(METHOD).Process(
            target=_run_script, args=(dict(os.environ), list(sys.path), cwd, command, files)
        )
        process.start()
        process.join()
        return subprocess.CompletedProcess(
            command, process.exitcode, *(file.read_text() for file in files)
        )


def _run_script(
    environ: dict, path: list[str], cwd: Path, command: list[str], files: list[Path]
) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    _take_over(environ, [os.path.dirname(command[0]), *path])
    os.chdir(cwd)
    sys.argv = command
    warnings.simplefilter("ignore")
    runpy.run_path(command[0], run_name="__main__")
