import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures.process import BrokenProcessPool

from lesion_d2.data.formats.problems import ProblemsError
from lesion_d2.utils.errors import InputError, interruptible, run_program, told

import pytest
from torch._utils import ExceptionWrapper
from warm_processes import run_script


def test_a_second_signal_does_not_interrupt_the_ending(escaped):
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            assert not interrupts(number)


class _Swallows:
    """Where it is deleted a signal comes, whose KeyboardInterrupt nothing can catch."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


def test_an_interruption_that_python_cannot_raise_is_not_lost(capsys, escaped):
    def work():
        _Swallows(signal.SIGTERM)
        time.sleep(20)

    assert run_program(work) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "interrupted\n"


def test_an_interruption_in_a_fork_is_not_lost_and_is_the_parents_alone(capsys, escaped):
    def interrupt():
        if forks:
            signal.raise_signal(forks.pop())

    def work():
        forks.append(signal.SIGINT)
        if os.fork() == 0:
            os._exit(0)
        os.wait()
        time.sleep(20)

    forks = []
    os.register_at_fork(after_in_parent=interrupt)
    assert run_program(work) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "interrupted\n"


def test_what_an_interruption_leaves_half_made_is_deleted_in_silence(escaped, monkeypatch):
    def work():
        half_made = _Swallows("no number")  # its deletion fails
        signal.raise_signal(signal.SIGTERM)
        return half_made

    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    assert run_program(work) == 128 + signal.SIGTERM
    assert not seen


def test_other_errors_that_python_cannot_raise_are_printed(escaped, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    with interruptible():
        _Swallows("no number")
    assert [one.exc_type for one in seen] == [TypeError] and sys.unraisablehook == seen.append


def test_ignored_signals_stay_ignored(escaped):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with interruptible():
        assert not interrupts(signal.SIGHUP)
        assert interrupts(signal.SIGTERM)


def interrupts(number):
    """Whether a signal raises KeyboardInterrupt."""
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        return True
    return False


def fail(error):
    raise error


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("a.png: found 1, expected 2"), "a.png: found 1, expected 2"),
        (FileNotFoundError(2, "No such file", "a.png"), "[Errno 2] No such file: 'a.png'"),
        (ValueError("\x1b[2J\u202e.png: found 1\n  2"), "?[2J?.png: found 1\n  2"),
        (ProblemsError("a.csv", [], "2 problems\n  b\n  c"), "a.csv: 2 problems\n  b\n  c"),
        (FloatingPointError("Loss became infinite"), "Loss became infinite"),
        (MemoryError(), "MemoryError"),
        (BrokenProcessPool(), "a process was killed, possibly because memory ran out; try fewer"),
    ],
)
def test_what_is_wrong_with_inputs_is_told_without_a_traceback(capsys, error, line):
    assert run_program(lambda: fail(error), "a program", status=2) == 2
    assert capsys.readouterr().err.startswith(f"a program: error: {line}")


@pytest.mark.parametrize("error", [KeyError("a"), RuntimeError("a"), AssertionError("a")])
def test_faults_of_the_program_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run_program(lambda: fail(error))


def test_the_exit_status_is_the_works():
    assert (run_program(lambda: None), run_program(lambda: 3)) == (0, 3)


def test_within_itself_it_changes_nothing(capsys, escaped):
    def work():
        with interruptible():
            signal.raise_signal(signal.SIGTERM)

    assert run_program(work) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_with_a_line_and_its_status(capsys, escaped, number):
    work = lambda: signal.raise_signal(number)  # noqa: E731
    assert run_program(work, interrupted=lambda: "it goes on") == 128 + number
    assert capsys.readouterr().err == "it goes on\n"


def test_an_interruption_that_became_another_error_is_one(capsys, escaped):
    """As where compiled code was called back, and reports what its caller raised."""

    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    assert run_program(work) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "error, text",
    [
        (InputError("image a: found 1\n  expected 2"), "image a: found 1\n  expected 2"),
        (FileNotFoundError(2, "No such file", "a"), "[Errno 2] No such file: 'a'"),
        (RuntimeError("a fault"), None),
    ],
)
def test_what_a_worker_of_a_loader_raises_is_told_as_it_was(error, text):
    try:
        raise error
    except type(error):
        sent = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(type(error)) as raised:
        sent.reraise()
    assert "Traceback" in str(raised.value) and told(raised.value) == text


def test_a_killed_worker_of_a_loader_is_told():
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert "fewer DATALOADER.NUM_WORKERS" in told(error)


_PROGRAM = """
import multiprocessing, signal, sys, time
from lesion_d2.utils.errors import run_program

def child():
    time.sleep(60)

def work():
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=child) for _ in range(2)]
    for process in children:
        process.start()
    print(*(process.pid for process in children), flush=True)
    signal.raise_signal(signal.SIGTERM)

sys.exit(run_program(work))
"""


class _BeingForked:
    """A process that forgets the first signal."""

    def __init__(self):
        self.signals = 0

    def terminate(self):
        self.signals += 1

    def is_alive(self):
        return self.signals < 2

    def join(self, timeout):
        assert timeout < 1

    def kill(self):
        raise AssertionError("it was waited for until the end")


def test_children_that_forget_a_signal_get_another_one(escaped, monkeypatch):
    children = [_BeingForked(), _BeingForked()]
    monkeypatch.setattr(multiprocessing, "active_children", lambda: children)
    assert run_program(lambda: signal.raise_signal(signal.SIGTERM)) == 128 + signal.SIGTERM
    assert [child.signals for child in children] == [2, 2]


def test_a_signal_leaves_no_children(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(_PROGRAM)
    ended = run_script(script, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (143, "interrupted\n")
    for number in map(int, ended.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)
