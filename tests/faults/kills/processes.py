"""Processes that are forked from this one, which has the project imported, and watched."""

import contextlib
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

from tqdm import tqdm

POLL_SECONDS = 0.002
_TICKS = os.sysconf("SC_CLK_TCK")


class Child:
    """A function in a session of its own; what it prints is read here.

    Args:
        function: of no argument; its value is the exit status, as that of a tool's ``main``.
        longest_file: bytes that a file may have, but for its output; None for any number.
    """

    def __init__(self, function: Callable[[], object], longest_file: int | None = None):
        self._pipe, write = os.pipe()

        def begin() -> object:
            os.close(self._pipe)
            os.setsid()
            if longest_file is not None:
                sys.dont_write_bytecode = True  # of half a file
                resource.setrlimit(resource.RLIMIT_FSIZE, (longest_file, resource.RLIM_INFINITY))
            return function()

        self.pid = _fork(begin, write)
        os.close(write)
        os.set_blocking(self._pipe, False)
        self._status: int | None = None
        self._printed = b""

    def __del__(self):
        os.close(self._pipe)

    def poll(self) -> int | None:
        """The exit status, below 0 of a signal; None while it runs."""
        self._drain()
        if self._status is None:
            self._status = _status(self.pid)
        return self._status

    def wait(self, seconds: float) -> int | None:
        """The exit status; None where it has not ended by then."""
        start = time.monotonic()
        while self.poll() is None and (waited := time.monotonic() - start) < seconds:
            time.sleep(max(POLL_SECONDS, min(0.02 * waited, 0.1)))
        return self.poll()

    def wait_for(self, cpu_seconds: float, longest: float) -> None:
        """Return when it has used so much of the processor, has ended, or after ``longest``."""
        deadline = time.monotonic() + longest
        while self.poll() is None and time.monotonic() < deadline:
            left = cpu_seconds - self.cpu_seconds()
            if left <= 0:
                return
            time.sleep(max(POLL_SECONDS, 0.5 * left))  # of one thread, more cannot be used

    def cpu_seconds(self) -> float:
        """What it and all that it began have used of the processor."""
        return _cpu_seconds(self.pid)

    def send(self, number: int) -> None:
        """Send a signal to it alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill_all(self) -> None:
        """Kill it and all processes of its session."""
        for pid in {self.pid, *self.session()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait(60)

    def session(self) -> list[int]:
        """The processes of its session that are alive."""
        return [pid for pid, session in _sessions() if session == self.pid]

    def leaves(self, seconds: float) -> list[int]:
        """Processes of its session that are still there so long after it ended."""
        deadline = time.monotonic() + seconds
        while (left := self.session()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def output(self) -> str:
        """What it printed."""
        self._drain()
        return self._printed.decode(errors="replace")

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._pipe, 2**16):
                self._printed += part


class Program:
    """In place of ``subprocess.Popen`` of a Python program, which finds its packages imported.

    Args:
        command: the interpreter, the program and its arguments.
        stdout: a file for what it prints, errors too.
        env: its environment.
    """

    def __init__(
        self, command: Sequence[str], *, stdout: BinaryIO, env: Mapping[str, str], **_: object
    ):
        def run() -> None:
            os.environ.clear()
            os.environ.update(env)
            sys.argv = list(command[1:])
            runpy.run_path(command[1], run_name="__main__")

        self.pid = _fork(run, stdout.fileno())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, below 0 of a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = _status(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, when it has ended."""
        deadline = time.monotonic() + (timeout or 0.0)
        while self.poll() is None:
            if timeout is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a program", timeout)
            time.sleep(POLL_SECONDS)
        return self.returncode

    def terminate(self) -> None:
        """Ask it to end."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _status(pid: int) -> int | None:
    """How a child has ended, if it has."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _sessions():
    """Process and session of all processes that are no zombies."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            if fields[0] not in "ZX":
                yield int(name), int(fields[3])


def _cpu_seconds(pid: int) -> float:
    """Of a process with its children, also those that have ended; 0 where it has."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        main = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, ValueError, IndexError):
        return 0.0
    ended = (int(fields[13]) + int(fields[14])) / _TICKS
    return main + ended + sum(map(_cpu_seconds, map(int, children)))


def _fork(function: Callable[[], object], output: int) -> int:
    """Call a function in a process of its own, which prints to the open file ``output``."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _call(function, output)
    return pid


def _call(function: Callable[[], object], output: int) -> NoReturn:
    """What the child does. It ends as the interpreter would."""
    status = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        # That of progress bars is a semaphore of all forked processes, which one that is killed or
        # stopped would hold for ever.
        tqdm.set_lock(threading.RLock())
        # As programs of the project have them before they handle them.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        try:
            value = function()
            status = value if isinstance(value, int) else 0
        except SystemExit as error:
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
