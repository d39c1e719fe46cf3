import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import PROJECT, tiny_args, tiny_command
from warm_processes import run_script

import train_net


def _start_python(script: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", str(script), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "run, arguments, message",
    [
        (_start_python, ["SOLVER.MAX_ITERS", "3"], "Non-existent key: SOLVER.MAX_ITERS"),
        (
            run_script,
            ["--num-gpus", "2", "DATASETS.TRAIN", "('phantom_trian',)"],
            "DATASETS.TRAIN: found 'phantom_trian', expected a name such as phantom_train",
        ),
    ],
)
def test_an_input_error_is_exit_code_1_and_one_line(
    tiny_phantom, tmp_path, run, arguments, message
):
    arguments = [*arguments, "OUTPUT_DIR", str(tmp_path / "output")]
    ended = run(PROJECT / "train_net.py", *arguments, cwd=PROJECT)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith(f"train_net.py: error: {message}")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    # Writes of a run with a checkpoint after each iteration and an evaluation after each second:
    # 0, 1, best (1), 2, 3, best? (3), ...
    "what, number, last",
    [("model", 3, 1), ("model", 4, 1), ("tag", 3, 1)],
)
def test_killed_while_writing_a_run_resumes_from_the_last_whole_checkpoint(
    tiny_phantom, tmp_path, what, number, last
):
    options = {"SOLVER__CHECKPOINT_PERIOD": 1, "SOLVER__MAX_ITER": 5}
    command = tiny_command(tmp_path, **options)
    killed = run_script(
        PROJECT / "tests" / "killed_run.py", what, str(number), *command, cwd=PROJECT
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(tmp_path.glob(".*.part"))) == 1
    assert (tmp_path / "last_checkpoint").read_text() == f"model_{last:07d}.pth"
    whole = torch.load(tmp_path / f"model_{last:07d}.pth", weights_only=True)
    assert whole["iteration"] == last

    train_net.main(tiny_args(tmp_path, "--resume", **options))

    log = (tmp_path / "log.txt").read_text()
    assert log.count("Starting training from iteration 0") == 1
    assert log.count(f"Starting training from iteration {last + 1}") == 1
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["iteration"] == 4
    steps = final["trainer"]["_trainer"]["optimizer"]["state"].values()
    assert {int(state["step"]) for state in steps} == {5}
    assert not list(tmp_path.glob(".*.part"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)["best"]
    evaluated = [line["bbox/AP50"] for line in lines if "bbox/AP50" in line]
    assert best["value"] >= max(evaluated)


def test_eval_only_evaluates_the_weights_and_trains_nothing(tiny_phantom, tmp_path):
    train_net.main(tiny_args(tmp_path / "train"))
    weights = tmp_path / "train" / "model_best.pth"
    results = train_net.main(
        tiny_args(
            tmp_path / "test",
            "--eval-only",
            MODEL__WEIGHTS=weights,
            DATASETS__TEST=("phantom_test",),
            TEST__NUM_BOOTSTRAP=10,
        )
    )
    assert {"bbox", "froc"} <= set(results)
    folder = tmp_path / "test" / "inference" / "phantom_test"
    assert {"coco_instances_results.json", "froc.json", "froc.csv", "froc.png"} <= set(
        os.listdir(folder)
    )


def test_results_that_are_not_as_expected_are_exit_code_1(tiny_phantom, tmp_path):
    expected = [["bbox", "AP50", 200.0, 1.0]]
    with pytest.raises(SystemExit) as error:
        train_net.main(tiny_args(tmp_path, SOLVER__MAX_ITER=1, TEST__EXPECTED_RESULTS=expected))
    assert error.value.code == 1
