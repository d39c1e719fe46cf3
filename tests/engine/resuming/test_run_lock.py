"""Two runs do not write to one folder."""

import os
import signal
from contextlib import contextmanager

from lesion_d2.engine import InputError, prepare_launch
from lesion_d2.engine.resuming import check_free, hold_output, release_output

import pytest
from tiny_run import tiny_args

import train_net

_REFUSED = r"^OUTPUT_DIR: found another run in [^\n]*, expected a folder that no run writes"


@pytest.fixture(autouse=True)
def _none_held():
    release_output()
    yield
    release_output()


@contextmanager
def another_run(folder):
    """Another process that holds the folder; it ends by SIGKILL, if not before."""
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            hold_output(str(folder))
            os.write(begun, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.read(ready, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_second_run_is_refused_until_the_first_is_dead(tiny_phantom, tmp_path):
    folder = tmp_path / "output"
    args = tiny_args(folder)
    with another_run(folder):
        for refused in (lambda: hold_output(str(folder)), lambda: train_net.setup(args)):
            with pytest.raises(InputError, match=_REFUSED):
                refused()
        args.num_gpus = 2  # before the processes are started
        with pytest.raises(InputError, match=_REFUSED):
            prepare_launch(args)
        assert os.listdir(folder) == [".lock"]
    hold_output(str(folder))
    hold_output(os.path.join(folder, "..", "output"))  # it is the same run's


def test_a_training_and_an_evaluation_of_its_checkpoints_do_not_wait_for_each_other(
    tiny_phantom, tmp_path, monkeypatch
):
    monkeypatch.setattr("lesion_d2.engine.defaults.check_inputs", lambda cfg, args: 5)
    trains, evaluates = tiny_args(tmp_path), tiny_args(tmp_path, "--eval-only")
    for own, other, others in (
        (trains, evaluates, tmp_path / "inference"),
        (evaluates, trains, tmp_path),
    ):
        with another_run(others):
            train_net.setup(own)
            release_output()
            with pytest.raises(InputError, match=_REFUSED):
                train_net.setup(other)


def test_a_process_holds_one_folder_and_checks_hold_none(tmp_path):
    hold_output(str(tmp_path / "first"))
    check_free(str(tmp_path / "first"))  # its own
    check_free(str(tmp_path / "none"))
    hold_output(str(tmp_path / "second"))
    assert not (tmp_path / "none").exists()
    with another_run(tmp_path / "first"), pytest.raises(InputError, match=_REFUSED):
        check_free(str(tmp_path / "first"))
    check_free(str(tmp_path / "first"))
    with another_run(tmp_path / "first"):
        pass


def test_a_folder_without_locks_is_told_of(tmp_path, monkeypatch, caplog):
    def no_locks(file):
        raise OSError("no locks available")

    monkeypatch.setattr("lesion_d2.engine.resuming.run_lock.take_lock", no_locks)
    hold_output(str(tmp_path))
    assert "cannot be locked (no locks available): do not start another run in it" in caplog.text
