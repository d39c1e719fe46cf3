"""Cross-validation with a program in place of train_net.py, which has its tests made already."""

import fcntl
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

from lesion_d2.data.volume_set.catalog import register_volume_set
from lesion_d2.data.volume_set.form import read_volume_set, write_volume_set
from lesion_d2.data.volume_set.splits import make_folds, write_splits
from lesion_d2.evaluation import VolumeEvaluator
from lesion_d2.importers.running import run_import
from lesion_d2.inference import Linker
from lesion_d2.tools.cross_validate.__main__ import main

import made_up_format
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from tiny_run import CONFIG
from warm_processes import run_script

NAME = "folds_of_test_cross_validate"
# Notes its arguments; a training writes its folder of best checkpoints, and a test what $MADE has.
PROGRAM = """
import json, os, shutil, signal, sys
arguments = sys.argv[1:]
output, test = (arguments[arguments.index(key) + 1] for key in ("OUTPUT_DIR", "DATASETS.TEST"))
name = test.strip("(',)")
os.makedirs(output, exist_ok=True)
with open(os.path.join(output, "calls.jsonl"), "a") as file:
    file.write(json.dumps(arguments) + "\\n")
if "--resume" in arguments:
    os.makedirs(os.path.join(output, "best"), exist_ok=True)
    if os.environ.get("FAIL") in (name, "kill " + name):
        if os.environ["FAIL"].startswith("kill"):
            os.kill(os.getppid(), signal.SIGKILL)
        sys.exit("no GPU today")
else:
    folder = os.path.join(output, "inference", name)
    os.makedirs(folder, exist_ok=True)
    shutil.copy(os.path.join(os.environ["MADE"], name, "volumes.json"), folder)
"""


def _detect(record: dict) -> Instances:
    """Shifted lesions, some missed, and some false positives; the same for every call."""
    rng = np.random.default_rng([ord(c) for c in record["volume"]])
    boxes, scores, classes = [[2.0, 2, 9, 9]], [float(rng.random())], [0]
    for annotation in record["annotations"]:
        shift, score = rng.uniform(-4, 4), float(rng.random())
        boxes.append([value + shift for value in annotation["bbox"]])
        scores.append(score)
        classes.append(annotation["category_id"])
    instances = Instances((record["height"], record["width"]))
    instances.pred_boxes = Boxes(torch.tensor(boxes))
    instances.scores, instances.pred_classes = torch.tensor(scores), torch.tensor(classes)
    return instances


def _evaluate(name: str, folder: Path | None) -> dict:
    link = Linker("merge", {"iou_threshold": 0.1})
    evaluator = VolumeEvaluator(name, folder, link=link)
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [{"instances": _detect(record)}])
    return evaluator.evaluate()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 9 patients without folds, and evaluations of the three that it will have."""
    folder = tmp_path_factory.mktemp("made")
    made_up_format.write_cases(folder / "source", 9, size=40)
    listing = made_up_format.list_npz(folder / "source")
    run_import(listing, folder / NAME, format="npz", workers=1)
    shutil.copytree(folder / NAME, folder / "copy" / NAME)
    write_splits(folder / NAME, 3)
    names = register_volume_set(folder / NAME)
    for k in range(3):
        test = f"{NAME}_fold{k}_volumes_test"
        _evaluate(test, folder / test)
    whole = _evaluate(f"{NAME}_volumes", None)
    (folder / "whole.json").write_text(json.dumps(whole))
    _forget(names)
    return folder


def _forget(names: list[str]) -> None:
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def call(made, tmp_path, monkeypatch):
    """Arguments of the tool for a fresh copy of the data set."""
    shutil.copytree(made / "copy" / NAME, tmp_path / NAME)
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("MADE", str(made))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    def arguments(output: str, *others: str) -> list[str]:
        own = ["--config-file", str(CONFIG), "--dataset", NAME, "--folds", "3"]
        output = ["--output", str(tmp_path / output), "--program", str(tmp_path / "program.py")]
        return [*own, *output, *others]

    before = set(DatasetCatalog.list())
    yield arguments
    _forget(sorted(set(DatasetCatalog.list()) - before))


def _calls(folder: Path) -> list[list[str]]:
    file = folder / "calls.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_all_folds_are_trained_and_tested_and_are_the_whole_together(call, made, tmp_path, capsys):
    assert main(call("out", "SOLVER.MAX_ITER", "9", "TEST.NUM_BOOTSTRAP", "20")) == 0
    found = read_volume_set(tmp_path / NAME)
    assert found.folds == make_folds(found, 3)

    content = json.loads((tmp_path / "out" / "cross_validation.json").read_text())
    whole = json.loads((made / "whole.json").read_text())["volume"]
    results = content["results"]
    assert {name: results[name] for name in whole} == whole
    assert 0 < whole["AP10"] < 100 and 0 < whole["patient_AP"] < 100
    assert results["sens@1_low"] <= results["sens@1"] <= results["sens@1_high"]

    folds = [fold["volume"]["AP10"] for fold in content["folds"]]
    assert content["over_folds"]["AP10"]["mean"] == pytest.approx(np.mean(folds))
    assert content["over_folds"]["AP10"]["std"] == pytest.approx(np.std(folds, ddof=1))
    assert (content["patients"], content["volumes"]) == (9, 9)
    assert (tmp_path / "out" / "froc.png").stat().st_size > 10_000

    table = (tmp_path / "out" / "cross_validation.md").read_text()
    assert table in capsys.readouterr().out
    (row,) = [line for line in table.splitlines() if line.startswith("| AP10 ")]
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert cells[:3] == [f"{value:.2f}" for value in folds] and cells[5] == f"{whole['AP10']:.2f}"


def test_commands_of_a_fold(call, tmp_path):
    options = ["--fold", "1", "--num-gpus", "2", "--train-on-volumes"]
    assert main(call("out", *options, "MODEL.DEVICE", "cpu", "TEST.KEEP_BEST", "3")) == 0
    out = tmp_path / "out"
    assert not (out / "fold0").exists() and not (out / "cross_validation.json").exists()

    (train,), (test,) = _calls(out / "fold1"), _calls(out / "fold1" / "test")
    shared = ["--num-gpus", "2", "TEST.NUM_BEST_CHECKPOINTS", "3", "MODEL.DEVICE", "cpu"]
    shared += ["TEST.NUM_BEST_CHECKPOINTS", "3"]

    assert train == [
        *("--config-file", str(CONFIG), "--resume"),
        *shared,
        *("OUTPUT_DIR", str(out / "fold1")),
        *("DATASETS.TRAIN", f"('{NAME}_fold1_volumes_train',)"),
        *("DATASETS.TEST", f"('{NAME}_fold1_val',)"),
    ]
    assert test == [
        *("--config-file", str(CONFIG), "--eval-only"),
        *shared,
        *("OUTPUT_DIR", str(out / "fold1" / "test")),
        *("DATASETS.TRAIN", f"('{NAME}_fold1_volumes_train',)"),
        *("DATASETS.TEST", f"('{NAME}_fold1_volumes_test',)"),
        *("TEST.ENSEMBLE.ENABLED", "True"),
        *("TEST.ENSEMBLE.CHECKPOINTS", f"('{out / 'fold1' / 'best'}',)"),
    ]


def test_a_model_of_volumes_sees_volumes_alone(call, tmp_path):
    """Runs of slices with a lesion are none of the volumes that it is meant for."""
    options = ["--fold", "1", "MODEL.DEVICE", "cpu", "INPUT.VOLUME.PATCH_SIZE", "(8, 16, 16)"]
    assert main(call("out", *options)) == 0
    out = tmp_path / "out"
    (train,), (test,) = _calls(out / "fold1"), _calls(out / "fold1" / "test")
    names = [train[train.index(key) + 1] for key in ("DATASETS.TRAIN", "DATASETS.TEST")]
    names.append(test[test.index("DATASETS.TEST") + 1])
    assert names == [f"('{NAME}_fold1_volumes_{split}',)" for split in ("train", "val", "test")]


CALLER = """
import sys
from lesion_d2.tools.cross_validate.__main__ import main

sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_cross_validation_goes_on_and_gives_the_same_files(call, tmp_path, monkeypatch):
    (tmp_path / "caller.py").write_text(CALLER)
    monkeypatch.setenv("FAIL", f"kill {NAME}_fold1_val")
    killed = run_script(tmp_path / "caller.py", *call("out"), cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    monkeypatch.delenv("FAIL")
    out = tmp_path / "out"
    with open(out / "fold1" / "console.txt") as left:
        fcntl.flock(left, fcntl.LOCK_EX)  # until the training that was left has ended
    assert main(call("out")) == 0
    assert [len(_calls(out / f"fold{k}")) for k in range(3)] == [1, 2, 1]
    assert main(call("whole", "--jobs", "3")) == 0
    for name in ("cross_validation.json", "cross_validation.md", "froc.png"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_one_fold_a_call_and_the_last_one_reports(call, tmp_path, capsys):
    assert main(call("out", "--fold", "2", "--fold", "0")) == 0
    assert "2 of 3 folds are done, left: fold1" in capsys.readouterr().out
    assert main(call("out", "--fold", "1")) == 0
    assert "| AP10 " in capsys.readouterr().out
    assert all(len(_calls(tmp_path / "out" / f"fold{k}")) == 1 for k in range(3))


def test_a_fold_that_fails_does_not_stop_the_others(call, capsys, monkeypatch):
    monkeypatch.setenv("FAIL", f"{NAME}_fold0_val")
    assert main(call("out")) == 1
    said = capsys.readouterr()
    assert "failed: fold0: exit code 1: no GPU today (see " in said.err
    assert "2 of 3 folds are done, left: fold0" in said.out


def test_folds_in_use_or_of_other_options_are_refused(call, tmp_path, capsys):
    folder = tmp_path / "out" / "fold0"
    folder.mkdir(parents=True)
    with open(folder / "console.txt", "w") as console:
        fcntl.flock(console, fcntl.LOCK_EX)
        assert main(call("out", "--fold", "0")) == 1

    assert "in use by another process" in capsys.readouterr().err
    assert main(call("out", "--fold", "0")) == 0
    for others, message in (
        (["SOLVER.MAX_ITER", "7"], "opts [] instead of ['SOLVER.MAX_ITER', '7']"),
        (["--train-on-volumes"], "on_volumes False instead of True"),
    ):
        capsys.readouterr()
        assert main(call("out", "--fold", "1", *others)) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "fold1").exists()
    assert main(call("out", "--fold", "0", "MODEL.DEVICE", "cpu")) == 0
    assert main(call("out", "--fold", "1", "TEST.NUM_BEST_CHECKPOINTS", "5")) == 1

    for file in (folder / "fold.json", folder / "done.json"):  # as with the key's old name
        text = file.read_text()
        file.write_text(text.replace('"opts": []', '"opts": ["TEST.KEEP_BEST", "5"]'))
    assert main(call("out", "--fold", "0", "TEST.NUM_BEST_CHECKPOINTS", "5")) == 0

    os.remove(folder / "fold.json")
    (folder / "last_checkpoint").touch()
    assert main(call("out", "--fold", "0")) == 1
    assert "found a training that this tool did not start" in capsys.readouterr().err


def test_a_fold_of_other_data_is_refused(call, tmp_path, capsys):
    assert main(call("out", "--fold", "0")) == 0
    found = read_volume_set(tmp_path / NAME)
    image = tmp_path / NAME / found.volumes[0].image
    content = image.read_bytes()
    image.write_bytes(content + b" ")  # as another window or source would change it
    capsys.readouterr()
    assert main(call("out", "--fold", "1")) == 1
    assert "found a fold with other options (data " in capsys.readouterr().err
    image.write_bytes(content)
    write_volume_set(tmp_path / NAME, replace(found, splits={}))
    assert main(call("out", "--fold", "1")) == 0
    write_splits(tmp_path / NAME, 3, seed=1, overwrite=True)
    assert main(call("out", "--fold", "2")) == 1
    assert "found a fold with other options (data " in capsys.readouterr().err


def test_folds_that_test_a_patient_twice_are_refused_before_any_training(call, tmp_path, capsys):
    """As those of nnU-Net with a test split of the source, which is the same for all."""
    found = read_volume_set(tmp_path / NAME)
    first, *_ = make_folds(found, 3)
    test, other = first["test"], {**first, "train": first["val"], "val": first["train"]}
    write_volume_set(tmp_path / NAME, replace(found, folds=(first, other, first)))
    assert main(call("out")) == 1
    assert f"found patient {test[0]} in the test splits of 3 folds" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_arguments_that_cannot_be(call, tmp_path, capsys):
    for others, message in (
        (["--fold", "3"], "--fold: found 3, expected 0 to 2"),
        (["OUTPUT_DIR", "x"], "OUTPUT_DIR, which a cross-validation sets itself, by --output"),
        (["SOLVER.MAX_ITER"], "expected pairs of KEY VALUE"),
        (["--folds", "4"], "found 3 folds, expected 4: pass --folds 3"),
        (["--dataset", "theirs"], "theirs/volume_set.json: no such file"),
        (["--dataset", f"{tmp_path}/elsewhere/{NAME}"], "expected a folder in $DETECTRON2_DATA"),
        (["NO.KEY", "3"], "NO.KEY"),
    ):
        assert main(call("out", *others)) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert not (tmp_path / "out").exists()
    assert main(call("out", "--fold", "0")) == 0
    write_splits(tmp_path / NAME, 3, shares=(1, 0, 1), overwrite=True)
    assert main(call("out")) == 1
    assert "found no patient in val of fold 0" in capsys.readouterr().err


def test_a_fold_that_validates_on_no_lesion_stops_before_all_trainings(call, tmp_path, capsys):
    root = tmp_path / NAME
    found = write_splits(root, 3)
    bare = set(found.folds[1]["val"])
    volumes = [replace(v, lesions=()) if v.patient in bare else v for v in found.volumes]
    write_volume_set(root, replace(found, volumes=tuple(volumes)))
    assert main(call("out")) == 1
    assert "found no lesion in val of fold 1, expected at least one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
