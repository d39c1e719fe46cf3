"""Names of checkpoints in files lead to no other folder."""

import json

from lesion_d2.engine import InputError, LesionCheckpointer, load_config
from lesion_d2.engine.checkpoint_files import last_checkpoint
from lesion_d2.engine.checkpoint_files.best_checkpoints import checkpoint_files
from lesion_d2.engine.checks.weights import check_run_weights

import pytest
from tiny_run import tiny_args
from torch import nn

OTHERS = ["/etc/passwd", "../a.pth", "best/a.pth", "..", "", "a.pth\nb", "a\\b.pth", "a" * 300]


@pytest.mark.parametrize("name", OTHERS)
def test_last_checkpoint_is_a_bare_name(tmp_path, name):
    (tmp_path / "last_checkpoint").write_text(name)
    message = (
        "last_checkpoint: found '.*', expected the file name of a checkpoint in the same folder"
    )
    with pytest.raises(ValueError, match=message) as error:
        last_checkpoint(str(tmp_path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    with pytest.raises(ValueError, match=message):
        LesionCheckpointer(nn.Linear(1, 1), str(tmp_path)).resume_or_load("", resume=True)
    args = tiny_args(tmp_path, "--resume")
    with pytest.raises(InputError, match=f"^--resume: .*{message}; .* remove .*last_checkpoint"):
        check_run_weights(load_config(args), args, nn.Identity())


def test_last_checkpoint_is_beside_its_tag(tmp_path):
    assert last_checkpoint(str(tmp_path)) is None
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth\n")
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / "model_0000001.pth")


@pytest.mark.parametrize("name", [*OTHERS, 3, None])
def test_the_best_checkpoints_are_bare_names(tmp_path, name):
    entry = {"file": name, "metric": "m", "value": 1.0, "iteration": 0, "run_id": "r"}
    (tmp_path / "best.json").write_text(json.dumps([entry]))
    message = r"best\.json: .*found .*, expected (the file name of a checkpoint|a name)"
    with pytest.raises(ValueError, match=message) as error:
        checkpoint_files([str(tmp_path)])
    assert "\n" not in str(error.value)
