"""How ``train_net.py`` ends where its data are bad, or where it is asked to."""

import multiprocessing
import os
import re
import shutil
import signal

from lesion_d2.engine import Trainer
from lesion_d2.utils.errors import run_program

import pytest
from tiny_run import tiny_args

import train_net


def test_a_damaged_slice_is_one_line_that_names_the_image(
    tiny_phantom, tmp_path, monkeypatch, capsys
):
    shutil.copytree(tiny_phantom / "phantom", tmp_path / "phantom")
    for file in (tmp_path / "phantom").rglob("*.png"):  # their headers, which are checked, are good
        os.truncate(file, file.stat().st_size - 40)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    output = tmp_path / "output"
    args = tiny_args(output, DATALOADER__NUM_WORKERS=1, SOLVER__IMS_PER_BATCH=1)
    assert run_program(lambda: train_net.start(args), "train_net.py") == 1
    said = capsys.readouterr()
    last = said.err.splitlines()[-1]
    assert re.fullmatch(r"train_net.py: error: image \d+_\d\d_\d\d_\d+: .*\.png: .*", last), last
    assert "Traceback" not in said.out + said.err
    assert "Traceback" in (output / "log.txt").read_text()  # for whoever looks for its cause


def test_what_ends_an_evaluation_has_its_traceback_in_the_log_alone(tmp_path, monkeypatch, capsys):
    def damaged(cfg, resume):
        raise ValueError("a.png: found no image")

    monkeypatch.setattr("lesion_d2.engine.defaults.check_inputs", lambda cfg, args: 0)
    monkeypatch.setattr(train_net, "load_model", damaged)
    args = tiny_args(tmp_path, "--eval-only")
    assert run_program(lambda: train_net.start(args), "train_net.py") == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "train_net.py: error: a.png: found no image"
    assert "Traceback" not in said.out + said.err
    assert "in damaged" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_training_and_its_workers(
    tiny_phantom, tmp_path, monkeypatch, capsys, number
):
    monkeypatch.setattr(Trainer, "run_step", lambda self: signal.raise_signal(number))
    args = tiny_args(tmp_path, DATALOADER__NUM_WORKERS=1)
    # SIGINT is ignored where a shell began the tests in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run_program(lambda: train_net.start(args), "train_net.py") == 128 + number
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said.out + said.err
    assert not multiprocessing.active_children()
