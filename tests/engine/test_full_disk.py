"""A training that cannot write ends with one line."""

import errno
import logging
import os

from lesion_d2.engine import one_line_errors
from lesion_d2.engine.input_errors import InputError, in_one_line
from lesion_d2.engine.trainer import StoppableTrainer

import pytest
from detectron2.engine import HookBase


class _Full(HookBase):
    """A full disk, for a checkpoint by its name and then for metrics without one."""

    def after_step(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "output/model_final.pth")

    def after_train(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Run(StoppableTrainer):
    def run_step(self) -> None:
        pass


def test_a_full_disk_is_one_line_with_the_file(caplog, capsys, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", True)
    run = _Run()
    run.register_hooks([_Full()])
    line = "[Errno 28] No space left on device: 'output/model_final.pth'"
    with pytest.raises(SystemExit, match="1"), one_line_errors("train_net.py"):
        run.train(0, 2)
    assert capsys.readouterr().err == f"train_net.py: error: {line}\n"
    assert all(record.exc_info is None for record in caplog.records)
    assert f"The training ends: {line}" in caplog.text


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", True)
    assert in_one_line(InputError("found x")) == "found x"
    for error in (OSError("x"), OSError(errno.ENOENT, "x", "file"), ValueError("x")):
        assert in_one_line(error) is None
        with pytest.raises(type(error)), one_line_errors("train_net.py"):
            raise error
