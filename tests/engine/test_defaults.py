import logging
import os

from lesion_d2.data.loader import count_workers
from lesion_d2.engine import InputError, load_config, prepare_launch, prepare_processes

import detectron2
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tiny_run import tiny_args, tiny_config

import train_net


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"SOLVER__MAX_ITERS": 3}, r"Non-existent.* key: SOLVER.MAX_ITERS"),
        ({"SOLVER__MAX_ITER": "many"}, r"Type mismatch.*SOLVER.MAX_ITER"),
    ],
)
def test_a_wrong_key_or_value_is_one_line(changes, message):
    with pytest.raises(InputError, match=message) as error:
        load_config(tiny_args("output", **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("SOLVER: {MAX_ITERS: 3}\nVERSION: 2", "Non-existent config key: SOLVER.MAX_ITERS"),
        ("SOLVER: [", "while parsing"),
        ('_BASE_: "gone.yaml"', "gone.yaml"),
        (None, "does not exist"),
    ],
)
def test_a_bad_config_file_is_one_line_that_names_it(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    args = tiny_args("output")
    args.config_file = str(path)
    with pytest.raises(InputError, match=message) as error:
        load_config(args)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_what_the_checks_say_is_in_the_log_once(tmp_path, tiny_phantom, monkeypatch):
    checks = logging.getLogger("lesion_d2.engine.checks.datasets")

    def check_and_tell(cfg, args):
        checks.info("made of their boxes")
        return 3

    monkeypatch.setattr("lesion_d2.engine.defaults.check_inputs", check_and_tell)
    train_net.setup(tiny_args(tmp_path / "output"))
    assert (tmp_path / "output/log.txt").read_text().count("made of their boxes") == 1
    assert checks.parent.propagate and not checks.parent.handlers


def test_warnings_of_checks_that_fail_are_told(tmp_path, tiny_phantom, monkeypatch, caplog):
    def check_and_fail(cfg, args):
        logging.getLogger("lesion_d2.engine.checks.datasets").warning("odd")
        raise InputError("bad")

    monkeypatch.setattr("lesion_d2.engine.defaults.check_inputs", check_and_fail)
    with pytest.raises(InputError, match="bad"):
        train_net.setup(tiny_args(tmp_path / "output"))
    assert caplog.messages == ["odd"]


def test_warnings_of_a_run_of_several_processes_are_told_once(tmp_path, monkeypatch, caplog):
    def check_and_tell(cfg, args):
        logging.getLogger("lesion_d2.engine.checks.datasets").warning("odd")

    monkeypatch.setattr("lesion_d2.engine.defaults.check_inputs", check_and_tell)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # that of the processes on the CPU
    args = tiny_args(tmp_path / "output", "--num-gpus", "2", TEST__KEEP_BEST=0)
    prepare_launch(args)  # the first of the processes tells of them
    assert not caplog.messages
    load_config(args)
    told = list(caplog.messages)
    assert any(text.startswith("TEST.KEEP_BEST: found the old name of a key") for text in told)
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: 1)
    load_config(args)
    assert caplog.messages == told


def test_setup_completes_the_config(tiny_phantom, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = tiny_args(
        tmp_path,
        MODEL__DEVICE="cuda",
        DATALOADER__NUM_WORKERS=-1,
        SOLVER__MAX_EPOCHS=2.0,
    )
    dicts = DatasetCatalog.get("phantom_train")
    num_images, num_lesions = len(dicts), sum(len(image["annotations"]) for image in dicts)
    cfg = train_net.setup(args)
    assert cfg.MODEL.DEVICE == "cpu"
    assert count_workers(-1) == cfg.DATALOADER.NUM_WORKERS >= 1
    assert -(-2 * num_images // 4) == cfg.SOLVER.MAX_ITER
    assert cfg.is_frozen()

    log = (tmp_path / "log.txt").read_text()
    assert log.count("no GPU was found: using the CPU") == 1
    assert f"Epochs of {num_images} images" in log
    assert log.count(f"split 'train': {num_lesions} lesions on {num_images} key slices") == 1
    assert "Command line arguments" in log and "Rank of current process: 0" in log
    assert (tmp_path / "config.yaml").read_text() == CfgNode(cfg).dump()


@pytest.mark.parametrize(
    "name", ["detectron2.x", f"{detectron2.__name__}.x", "fvcore.x", "lesion_d2.x"]
)
def test_every_logger_prints_and_goes_to_the_log_file_once(tiny_phantom, tmp_path, name, capsys):
    train_net.setup(tiny_args(tmp_path))
    logging.getLogger(name).info("a line of its own")
    assert capsys.readouterr().out.count("a line of its own") == 1
    assert (tmp_path / "log.txt").read_text().count("a line of its own") == 1


def test_processes_on_the_cpu_do_not_see_the_gpus(tiny_phantom, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    prepare_launch(tiny_args(tmp_path))  # one process needs nothing
    assert _visible() == "0,1"
    prepare_launch(tiny_args(tmp_path, "--num-gpus", "2"))
    assert _visible() == ""


def test_more_processes_than_gpus(tiny_phantom, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="found --num-gpus 2, expected at most the 1 GPUs"):
        prepare_launch(tiny_args(tmp_path, "--num-gpus", "2", MODEL__DEVICE="cuda"))


def test_one_gpu_for_several_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = "^MODEL.DEVICE: found 'cuda:0', expected 'cuda': each of several processes uses"
    with pytest.raises(InputError, match=message):
        prepare_processes(tiny_config(MODEL__DEVICE="cuda:0"), 2)
    prepare_processes(tiny_config(MODEL__DEVICE="cuda"), 2)
    prepare_processes(tiny_config(MODEL__DEVICE="cuda:0"), 1)  # of several machines


def _visible() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]
