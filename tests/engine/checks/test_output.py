import os
import re

from lesion_d2.engine import InputError, load_config, load_model
from lesion_d2.engine.checks import check_inputs

import pytest
import torch
from tiny_run import tiny_args

import train_net


@pytest.mark.parametrize("name", ["there", "there/deeper", "there/deeper/still"])
def test_a_file_in_the_way_is_told_of_before_data_sets_are_read(tmp_path, name):
    (tmp_path / "there").write_text("a file")
    args = tiny_args(tmp_path / name, DATASETS__TRAIN=("gone",))
    message = f"OUTPUT_DIR: found .*{name}', expected a folder, but .*there is none$"
    with pytest.raises(InputError, match=message):
        check_inputs(load_config(args), args)
    assert (tmp_path / "there").read_text() == "a file"


def test_a_file_in_place_of_the_results_or_a_dead_link_is_told_of(tmp_path):
    (tmp_path / "inference").write_text("a file")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for folder, found in ((tmp_path, "inference"), (tmp_path / "link", "link")):
        args = tiny_args(folder)
        with pytest.raises(InputError, match=f"OUTPUT_DIR: found .*, but .*{found} is none"):
            check_inputs(load_config(args), args)


def test_a_folder_that_cannot_be_written_to_is_told_of(tmp_path, monkeypatch):
    access = os.access  # root may write everywhere but to a file system that is read-only
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    args = tiny_args(tmp_path / "new" / "output", DATASETS__TRAIN=("gone",))
    message = (
        f"OUTPUT_DIR: .*output', expected .*, but {re.escape(str(tmp_path))} cannot be written"
    )
    with pytest.raises(InputError, match=message):
        check_inputs(load_config(args), args)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a?b=c", "a#b", "a b%20c", "ä;d?e"])
def test_runs_go_on_in_folders_of_any_name(tiny_phantom, tmp_path, name):
    folder = tmp_path / name
    train_net.run(tiny_args(folder, TEST__EVAL_PERIOD=0, DATASETS__TEST=(), SOLVER__MAX_ITER=2))
    options = {"SOLVER__MAX_ITER": 3, "SOLVER__STEPS": (), "DATASETS__TEST": ()}
    train_net.run(tiny_args(folder, "--resume", TEST__EVAL_PERIOD=0, **options))
    assert torch.load(folder / "model_final.pth")["iteration"] == 2
    weights = {"MODEL__WEIGHTS": folder / "model_final.pth", "DATASETS__TEST": ("phantom_val",)}
    args = tiny_args(folder, "--eval-only", **weights)
    check_inputs(load_config(args), args)
    model = load_model(load_config(args))
    saved = torch.load(folder / "model_final.pth")["model"]
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
