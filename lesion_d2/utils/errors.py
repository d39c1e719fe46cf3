"""Exit messages and statuses for bad inputs and interruptions."""

import builtins
import multiprocessing
import os
import re
import reprlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import numpy as np
from torch.multiprocessing import ProcessExitedException

from .files import one_line, printable_lines

_MAX_LENGTH = 60
_MAX_BITS = 256
# Errors of inputs, files and machines: users see their message. All others are bugs and get a
# traceback.
_EXPECTED = (FloatingPointError, ImportError, MemoryError, OSError, ValueError)
_FEWER = "possibly because memory ran out; try fewer {}"
_GRACE_SECONDS = 20.0
_AGAIN_SECONDS = 0.05  # before a signal without effect is sent again


class InputError(ValueError):
    """An input that cannot be used; the message is one line for the user."""


class Interruption:
    """The signal that asked a process to end; its number is 0 until then."""

    def __init__(self):
        self.number, self.process = 0, os.getpid()


def run_program(
    work: Callable[[], int | None],
    program: str = "",
    *,
    status: int = 1,
    interrupted: str | Callable[[], str] = "interrupted",
) -> int:
    """Run a program; on an expected error print one line to stderr instead of a traceback.

    Args:
        work: returns the exit status, or None for 0.
        program: prefix of the line, or an empty string.
        status: exit status after an expected error (see :func:`told`).
        interrupted: message after SIGINT, SIGTERM or SIGHUP, printed once child processes have
            ended.

    Returns:
        The exit status; after a signal, 128 + its number.
    """
    prefix = f"{program}: " if program else ""
    with interruptible() as interruption:
        try:
            return work() or 0
        except (KeyboardInterrupt, Exception) as error:
            # Compiled code may replace the KeyboardInterrupt with its own error.
            if isinstance(error, KeyboardInterrupt) or interruption.number:
                text = interrupted if isinstance(interrupted, str) else interrupted()
                print(text, file=sys.stderr)
                _end_children()
                return 128 + (interruption.number or signal.SIGINT)
            text = told(error)
            if text is None:
                raise
            print(f"{prefix}error: {text}", file=sys.stderr)
            return status


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does, so that children are ended.

    It is raised once: a second signal does not interrupt the shutdown. Signals that are already
    ignored, such as SIGHUP under nohup, stay ignored. Nested calls, and calls outside of the main
    thread, change nothing.
    """
    current = getattr(signal.getsignal(signal.SIGTERM), "interruption", None)
    if current is not None and current.process == os.getpid():
        yield current
        return
    interruption = Interruption()

    def interrupt(number: int, _: object) -> None:
        """Handle a signal; a forked process, which inherits this handler, exits silently."""
        if os.getpid() != interruption.process:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif not interruption.number:
            interruption.number = number
            raise KeyboardInterrupt

    interrupt.interruption = interruption
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, interrupt)
        with _raised_again(interruption):
            yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _raised_again(interruption: Interruption) -> Iterator[None]:
    """Raise KeyboardInterrupt again if Python could only print it and continue.

    This happens if the signal arrives in a ``__del__`` or in a callback at a fork, for instance
    while a loader starts its workers. Later unraisable errors are not printed: objects that were
    only partly initialized often fail in ``__del__``.
    """
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        number = interruption.number
        if not number or interruption.process != os.getpid():
            before(unraisable)
            return
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            return
        interruption.number = 0
        thread = threading.main_thread().ident
        timer = threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, [thread, number])
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _end_children() -> None:
    """End the ``multiprocessing`` processes that the exit would wait for.

    A process loses a signal that arrives while it is being forked, so the signal is sent again.
    """
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    deadline, pause = time.monotonic() + _GRACE_SECONDS, _AGAIN_SECONDS
    while (alive := [child for child in children if child.is_alive()]) and (
        left := deadline - time.monotonic()
    ) > 0:
        alive[0].join(min(pause, left))
        pause *= 2
        for child in alive:
            child.terminate()
    for child in children:
        if child.is_alive():
            child.kill()


def told(error: BaseException) -> str | None:
    """The message that replaces an error's traceback.

    For an error from another process, such as a loader's worker, it is the original message.
    Characters that cannot be printed, such as terminal escapes, become ``?``.

    Returns:
        None if the error is a bug of the program.
    """
    text = str(error)
    if isinstance(error, BrokenProcessPool | ProcessExitedException):
        return f"a process was killed, {_FEWER.format('--workers')}"
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        return f"{one_line(text)}: {_FEWER.format('DATALOADER.NUM_WORKERS')}"
    if "Traceback (most recent call last):\n" in text:
        kind, _, text = _last_error(text).partition(": ")
        is_expected = kind.startswith("lesion_d2.") and kind.endswith("Error")
        known = getattr(builtins, kind, None)
        is_expected |= isinstance(known, type) and issubclass(known, _EXPECTED)
        return printable_lines(text.strip()) or kind if is_expected else None
    if not isinstance(error, _EXPECTED):
        return None
    if not isinstance(error, ValueError):  # a data set's ValueError has one line per problem
        text = one_line(text)
    return printable_lines(text.strip()) or type(error).__name__


def _last_error(text: str) -> str:
    """Class and message of the error at the end of a traceback's text."""
    lines = text.splitlines()
    frames = [n for n, line in enumerate(lines) if re.match(r' +File "', line)]
    after = lines[frames[-1] + 1 :] if frames else lines[-1:]
    while after and after[0].startswith("    "):  # the line of code, and its markers
        del after[0]
    return "\n".join(after)


def short_repr(value: object) -> str:
    """``repr`` on one line of at most 60 characters.

    A value from a file may be nested infinitely, or small with a huge ``repr`` (such as nested
    lists that contain one list many times), so only the outermost parts are formatted.
    """
    text = one_line(_SHORT.repr(value))
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 3]}..."


class _Short(reprlib.Repr):
    """Truncates before formatting, including containers from pickles."""

    def __init__(self):
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxset = self.maxfrozenset = 6
        self.maxstring = self.maxother = _MAX_LENGTH + 2
        self.repr_OrderedDict = self.repr_defaultdict = self.repr_dict

    def repr_int(self, value: int, level: int) -> str:
        """Describe long integers, which Python refuses to format."""
        bits = value.bit_length()
        return repr(value) if bits <= _MAX_BITS else f"<integer of {bits} bits>"

    def repr_instance(self, value: object, level: int) -> str:
        """Describe object arrays, whose elements NumPy would format in full."""
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.hasobject:
            return f"<{type(value).__name__} of objects, shape {value.shape}>"
        return super().repr_instance(value, level)


_SHORT = _Short()
