"""Runs cases in a process of its own, with limits, and says what happened.

The process is forked from this one, which has the project imported, and takes one case after the
other. After one that did not end well a new process goes on.
"""

import contextlib
import faulthandler
import gc
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lesion_d2.utils.errors import told

from .case import ANY, GOOD, REFUSED, Case, Found, same

#: Of one case: processor time and waiting, in seconds; memory beyond what the process had before.
CPU_SECONDS, WALL_SECONDS = 10, 120
ADDRESS_SPACE, RESIDENT = 2**30, 2**29
#: The file that whatever is run from a malformed file makes, in the case's folder.
CANARY = "canary"
#: A folder beside the case's data, in its folder, that nothing has to open.
OUTSIDE = "outside"

_LONGEST_FILE = 2**28
_MAX_LINES, _MAX_LENGTH = 24, 6000  # of several problems that are told at once
_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")


def run_cases(kind: str, cases: Sequence[Case]) -> Iterator[Found]:
    """Write each case's files, try them, and judge, in order."""
    with TemporaryDirectory(prefix="faults_") as folder:
        done = 0
        while done < len(cases):
            for found in _run_in_child(Path(folder), kind, cases, done):
                done += 1
                yield found
            for begun in Path(folder).glob("[0-9]*"):  # by that process
                shutil.rmtree(begun, ignore_errors=True)


def run_case(kind: str, case: Case) -> Found:
    """:func:`run_cases` of one, in a process of its own."""
    return next(run_cases(kind, [case]))


def _run_in_child(root: Path, kind: str, cases: Sequence[Case], first: int) -> Iterator[Found]:
    """What one process finds out: of one case at least, and to the first that does not end well."""
    end, begin = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(end)
        _work(root, cases, first, begin)
    os.close(begin)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpgid(child, child)  # as the child does: whoever comes first
    lines = _Lines(end)
    try:
        for number in range(first, len(cases)):
            start = time.perf_counter()
            line, in_time = lines.next(WALL_SECONDS)
            seconds = time.perf_counter() - start
            report, status = (json.loads(line) if line else {}), 0
            if not line:
                if not in_time:
                    os.killpg(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                child = 0
            verdict, text = _judge(root / str(number), report, status if in_time else None)
            shutil.rmtree(root / str(number), ignore_errors=True)
            name = cases[number].name
            yield Found(kind, name, verdict, text, seconds, report.get("megabytes", 0.0))
            if verdict not in GOOD:
                return
    finally:
        os.close(end)
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # with what it left behind
            os.waitpid(child, 0)


def _judge(root: Path, report: dict, status: int | None) -> tuple[str, str]:
    if (root / CANARY).exists():  # maybe of a process that runs on, or has died
        return "run", report.get("text") or "the canary is there"
    if status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return "hang", f"more than {CPU_SECONDS} s of the processor or {WALL_SECONDS} s"
    if os.WIFSIGNALED(status):
        return "crash", f"signal {os.WTERMSIG(status)}"
    if not report:
        return "crash", f"exit status {os.WEXITSTATUS(status)} without an answer"
    return report["verdict"], report["text"]


class _Lines:
    """The lines that a process writes to a pipe."""

    def __init__(self, pipe: int):
        self._pipe, self._data = pipe, b""

    def next(self, seconds: float) -> tuple[bytes, bool]:
        """The next line, or nothing at the end; and whether it came in so many seconds."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._data:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._pipe], [], [], left)[0]:
                return b"", False
            part = os.read(self._pipe, 2**16)
            if not part:
                return b"", True
            self._data += part
        line, _, self._data = self._data.partition(b"\n")
        return line, True


def _work(root: Path, cases: Sequence[Case], first: int, pipe: int) -> None:
    """What the child does; it never returns."""
    try:
        os.setpgid(0, 0)
        faulthandler.disable()
        gc.freeze()  # a collection would copy the pages of the parent
        _redirect_output(root)
        watch = _Watch()
        environ = dict(os.environ)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_LONGEST_FILE, _LONGEST_FILE))
        space = 1024 * _memory("VmSize") + ADDRESS_SPACE
        for number in range(first, len(cases)):
            folder = root / str(number)
            folder.mkdir()
            cases[number].write(folder)
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_AS, (space, resource.RLIM_INFINITY))
            answer = _answer(folder, cases[number], watch)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            os.chdir(root)
            os.environ.clear()
            os.environ.update(environ)
            os.write(pipe, json.dumps(answer).encode() + b"\n")
            if answer["verdict"] not in GOOD:
                break
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(0)


def _answer(folder: Path, case: Case, watch: "_Watch") -> dict:
    """Try one case, within its time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the most memory counts from here
    before = _memory("VmRSS")
    watch.begin(folder)
    verdict, text = _attempt(folder, case)
    seen = watch.end()
    megabytes = max(0, _memory("VmHWM") - before) / 1024
    if verdict not in ("traceback", "memory") and megabytes > RESIDENT / 2**20:
        verdict, text = "memory", f"{megabytes:.0f} MB; {text}"
    if seen or (folder / CANARY).exists():
        verdict, text = "run", seen or "the canary is there"
    return {"verdict": verdict, "text": text[:_MAX_LENGTH], "megabytes": megabytes}


def _redirect_output(root: Path) -> None:
    log = os.open(root / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(log, number)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


class _Watch:
    """Notes processes and connections that are started, and files opened beside the data."""

    def __init__(self):
        self._seen: list[str] = []
        self._outside = ""
        sys.addaudithook(self._look)

    def begin(self, folder: Path) -> None:
        self._seen.clear()
        self._outside = os.path.join(os.path.realpath(folder), OUTSIDE, "")

    def end(self) -> str:
        """What was noted first, or nothing."""
        self._outside = ""
        return self._seen[0] if self._seen else ""

    def _look(self, event: str, args: tuple) -> None:
        if not self._outside:
            return
        if event.startswith(_FORBIDDEN):
            self._seen.append(f"{event} {str(args)[:200]}")
        elif event == "open" and self._is_outside(args[0]):
            self._seen.append(f"opened {os.fsdecode(args[0])!r}")

    def _is_outside(self, file: object) -> bool:
        is_path = isinstance(file, (str, bytes, os.PathLike))
        return is_path and os.path.realpath(os.fsdecode(file)).startswith(self._outside)


def _memory(key: str) -> int:
    """One of the sizes of this process, in KiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{key}:"))


def _attempt(root: Path, case: Case) -> tuple[str, str]:
    """Verdict and text of what ``read`` does."""
    try:
        value = case.read(root)
    except MemoryError:
        return "memory", _last_lines()
    except (OSError, ValueError) as error:
        return _judge_message(root, case, told(error) or str(error), error)
    except BaseException as error:
        text = _last_lines()
        out_of_memory = "allocate" in str(error) or "Insufficient memory" in str(error)
        return ("memory" if out_of_memory else "traceback"), text
    if case.expected is REFUSED:
        return "silent", f"accepted, as {_shown(value)}"
    if case.expected is ANY or same(value, case.expected):
        return "right", ""
    return "silent", f"found {_shown(value)}, expected {_shown(case.expected)}"


def _shown(value: object) -> str:
    return " ".join(str(value).split())[:200]


def _judge_message(root: Path, case: Case, message: str, error: Exception) -> tuple[str, str]:
    names = [name.rsplit("/", 1)[-1] for name in case.files]
    is_named = os.fspath(root) in message or any(name in message for name in names)
    is_named |= bool(case.place) and case.place in message
    is_named |= any(place in message for place in case.places)
    lines = message.splitlines()
    is_list = len(lines) > 1 and all(line.startswith("  ") for line in lines[1:])
    is_short = (len(lines) == 1 or is_list) and len(lines) <= _MAX_LINES
    is_shown = all(letter.isprintable() or letter == "\n" for letter in message)
    if not (is_named and is_short and is_shown and case.place in message):
        wanted = "" if is_named and is_short and is_shown else f"; {_last_lines()}"
        return "unnamed", f"{type(error).__name__}: {message[:400]}{wanted}"
    if case.expected is not REFUSED and not case.may_refuse and case.expected is not ANY:
        return "refused", message
    return "one-line", message


def _last_lines() -> str:
    """The error at hand: its own line, and where it was raised."""
    kind, error, trace = sys.exc_info()
    frames = traceback.extract_tb(trace)
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in frames[-4:]]
    return f"{kind.__name__}: {str(error)[:300]} ({' > '.join(places)})"
