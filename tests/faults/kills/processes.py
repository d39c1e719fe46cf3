"""Processes that are forked from this one, which has the project imported, and watched."""

import contextlib
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

_POLL_SECONDS = 0.002
_TICKS = os.sysconf("SC_CLK_TCK")


class Child:
    """A function in a session of its own; what it prints is read here.

    Args:
        function: of no argument; its value is the exit status, as that of a tool's ``main``.
        longest_file: bytes that a file may have, but for its output; None for any number.
    """

    def __init__(self, function: Callable[[], object], longest_file: int | None = None):
        sys.stdout.flush()
        sys.stderr.flush()
        self._pipe, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            _call(function, write, longest_file)
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
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def wait(self, seconds: float) -> int | None:
        """The exit status; None where it has not ended by then."""
        deadline = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return self.poll()

    def wait_for(self, cpu_seconds: float, longest: float) -> None:
        """Return when it has used so much of the processor, has ended, or after ``longest``."""
        deadline = time.monotonic() + longest
        while self.poll() is None and time.monotonic() < deadline:
            if self.cpu_seconds() >= cpu_seconds:
                return
            time.sleep(_POLL_SECONDS)

    def cpu_seconds(self) -> float:
        """What it has used of the processor, with its children that have ended."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            main = int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9
        except (OSError, ValueError, IndexError):
            return 0.0
        return main + (int(fields[13]) + int(fields[14])) / _TICKS

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


def _sessions():
    """Process and session of all processes that are no zombies."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            if fields[0] not in "ZX":
                yield int(name), int(fields[3])


def _call(function: Callable[[], object], pipe: int, longest_file: int | None) -> None:
    """What the child does; it never returns. It ends as the interpreter would."""
    status = 1
    try:
        os.setsid()
        os.dup2(pipe, 1)
        os.dup2(pipe, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        # That of progress bars is a semaphore of all forked processes, which one that is killed or
        # stopped would hold for ever.
        tqdm.set_lock(threading.RLock())
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if longest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (longest_file, resource.RLIM_INFINITY))
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
