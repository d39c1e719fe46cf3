import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lesion_d2.data.toys import write_toys
from lesion_d2.tools.toy_experiments import running
from lesion_d2.tools.toy_experiments.__main__ import main
from lesion_d2.tools.toy_experiments.figure import plot_figure
from lesion_d2.tools.toy_experiments.grid import MODELS, Result, Run, make_grid
from lesion_d2.tools.toy_experiments.report import claim_tables, model_table, paired_gains

import numpy as np
import pytest
from PIL import Image

# Takes train_net.py's place. It counts its calls in calls.txt, keeps its arguments, and takes 40
# "iterations" with a checkpoint after every second; files in the run's folder and the environment
# make it fail or slow.
PROGRAM = """
import json, os, sys, time
from pathlib import Path
args = sys.argv[1:]
opts = dict(zip(args[3::2], args[4::2]))
folder = Path(opts["OUTPUT_DIR"])
with open(folder / "calls.txt", "a") as file:
    print(json.dumps({"args": args, "threads": os.environ["OMP_NUM_THREADS"],
                      "jit": os.environ["PYTORCH_JIT"]}), file=file)
print("begins")
if os.environ.get("FAIL", "nowhere") in str(folder):
    sys.exit("train_net.py: error: the model is broken")
if os.environ.get("MUTE", "nowhere") in str(folder):
    sys.exit(0)
tag = folder / "last_checkpoint"
start = int(tag.read_text()) if tag.is_file() and "--resume" in args else 0
for i in range(start + 1, 41):
    if i % 2 == 0:
        tag.write_text(str(i))
    if i == 10 and os.environ.get("SLOW", "nowhere") in str(folder):
        time.sleep(60)
with open(folder / "metrics.json", "a") as file:
    print(json.dumps({"bbox/AP10": 1.0, "iteration": 20}), file=file)
    print(json.dumps({"total_loss": 1.0, "iteration": 39}), file=file)
    ap = 50 + int(opts["SEED"]) + len(folder.parts[-3])
    print(json.dumps({"bbox/AP10": ap, "started_at": start, "iteration": 41}), file=file)
"""


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_toys(folder / "toys", num_train=100, num_val=1, num_test=50, workers=1)
    return folder


@pytest.fixture
def grid(datasets, tmp_path, monkeypatch):
    """Runs the tool on a tiny grid below ``tmp_path / "grid"``."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    (tmp_path / "program.py").write_text(PROGRAM)

    def call(*args, sizes=("50",)):
        options = ["--program", tmp_path / "program.py", "--output", tmp_path / "grid"]
        where = ["--tasks", "donuts_shape", "--models", "retina_unet", "retinanet"]
        where += ["--sizes", *sizes, "--seeds", "1", "2", "--test-images", "50"]
        return list(map(str, [*options, *where, *args]))

    return call


def folder_of(tmp_path, model="retina_unet", seed=1, size=50):
    return tmp_path / "grid" / "donuts_shape" / model / str(size) / f"seed_{seed}"


def calls(folder):
    file = folder / "calls.txt"
    return list(map(json.loads, file.read_text().splitlines())) if file.is_file() else []


# --- the grid -------------------------------------------------------------------------------------


def test_grid_fills_evenly():
    runs = make_grid(Path("out"))
    assert len(runs) == len(set(runs)) == 6 * 3 * 5 * 3
    assert {run.seed for run in runs[:90]} == {1}
    assert {run.size for run in runs[:18]} == {1000}
    assert {run.model for run in runs[:6]} == set(MODELS)
    assert runs[0].datasets == ("toy_donuts_shape_train", "toy_donuts_shape_test")
    assert make_grid(Path("out"), seeds=(1, 1), sizes=(50, 50)) == runs[72:90]


def test_configs_of_the_grid_are_there():
    _, configs = running.find_program()
    for small in (False, True):
        for run in make_grid(Path("out"), small=small):
            assert (configs / run.config).is_file()


def test_command_of_a_run(grid, tmp_path):
    assert main(grid("--small", "--jobs", "2", "SOLVER.MAX_ITER", "40")) == 0
    [call] = calls(folder_of(tmp_path))
    configs = Path(__file__).parents[2] / "configs" / "toys"
    assert call["args"] == [
        *("--config-file", str(configs / "retina_unet_small.yaml"), "--resume"),
        *("SOLVER.MAX_ITER", "40"),
        *("OUTPUT_DIR", str(folder_of(tmp_path))),
        *("DATASETS.TRAIN", "('toy_donuts_shape_train_50',)"),
        *("DATASETS.TEST", "('toy_donuts_shape_test_50',)"),
        *("SEED", "1"),
    ]
    assert call["threads"] == str(max(1, os.cpu_count() // 2)) and call["jit"] == "0"


def test_only_what_is_missing_runs(grid, tmp_path, capsys):
    assert main(grid("--seeds", "1")) == 0
    first = folder_of(tmp_path)
    assert sorted(p.parent.parent.parent.name for p in tmp_path.rglob("result.json")) == [
        "retina_unet",
        "retinanet",
    ]
    content = json.loads((first / "result.json").read_text())["result"]
    assert content["ap10"] == 50 + 1 + len("retina_unet")  # the last one of metrics.json
    assert content["iterations"] == 40 and not content["resumed"] and content["seconds"] >= 0
    before = (first / "result.json").read_bytes()
    assert main(grid()) == 0
    assert len(calls(first)) == 1 and len(calls(folder_of(tmp_path, seed=2))) == 1
    assert (first / "result.json").read_bytes() == before
    assert "4 of 4 runs have a result." in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "grid" / "figure5.csv").open()))
    assert [(r["model"], r["n"], r["seed"], float(r["ap10"])) for r in rows] == [
        ("retina_unet", "50", "1", 62.0),
        ("retinanet", "50", "1", 60.0),
        ("retina_unet", "50", "2", 63.0),
        ("retinanet", "50", "2", 61.0),
    ]


def test_resumes_after_a_kill(grid, tmp_path):
    command = [sys.executable, "-m", "lesion_d2.tools.toy_experiments", *grid("--seeds", "2")]
    folder = folder_of(tmp_path, seed=2)
    environment = {**os.environ, "SLOW": "/retina_unet/"}
    tool = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    tag = folder / "last_checkpoint"
    deadline = time.monotonic() + 60
    while not (tag.is_file() and tag.read_text() == "10"):
        assert time.monotonic() < deadline and tool.poll() is None
        time.sleep(0.02)
    tool.send_signal(signal.SIGINT)
    last = tool.communicate(timeout=30)[1].strip().splitlines()[-1]
    assert tool.returncode == 1 and last == "interrupted: the same command goes on from here"
    assert not (folder / "result.json").exists()
    assert main(grid("--seeds", "2")) == 0  # its process has ended with it
    assert len(calls(folder)) == 2
    last = json.loads((folder / "metrics.json").read_text().splitlines()[-1])
    assert last["started_at"] == 10
    assert json.loads((folder / "result.json").read_text())["result"]["resumed"]


def test_a_run_of_a_process_that_is_left_is_not_started_again(grid, tmp_path, capfd):
    command = [sys.executable, "-m", "lesion_d2.tools.toy_experiments", *grid("--seeds", "2")]
    folder = folder_of(tmp_path, seed=2)
    environment = {**os.environ, "SLOW": "/retina_unet/"}
    tool = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (folder / "last_checkpoint").is_file():
            assert time.monotonic() < deadline and tool.poll() is None
            time.sleep(0.02)
        tool.kill()
        tool.wait()
        assert main(grid("--seeds", "2")) == 1
        assert "retina_unet/50/seed_2 is in use by another process" in capfd.readouterr().err
        assert len(calls(folder)) == 1
        assert calls(folder_of(tmp_path, "retinanet", seed=2))  # the others went on
    finally:
        os.killpg(tool.pid, signal.SIGKILL)


def test_a_failing_run_is_reported_and_the_others_go_on(grid, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FAIL", "/retina_unet/50/seed_1")
    monkeypatch.setenv("MUTE", "/retinanet/50/seed_2")
    assert main(grid("--jobs", "2")) == 1
    out, err = capfd.readouterr()
    failed = sorted(line for line in err.splitlines() if line.startswith("failed"))
    console = folder_of(tmp_path) / "console.txt"
    assert failed[0] == (
        "failed: donuts_shape/retina_unet/50/seed_1: exit code 1: train_net.py: error: the model "
        f"is broken (see {console})"
    )
    assert failed[1].startswith("failed: donuts_shape/retinanet/50/seed_2: ")
    assert "metrics.json: found no bbox/AP10" in failed[1] and len(failed) == 2
    assert console.read_text().splitlines()[-1] == "train_net.py: error: the model is broken"
    assert "2 of 4 runs have a result." in out
    monkeypatch.delenv("FAIL")
    monkeypatch.delenv("MUTE")
    assert main(grid()) == 0
    assert len(calls(folder_of(tmp_path))) == 2


def test_nothing_but_failures(grid, capfd, monkeypatch):
    monkeypatch.setenv("FAIL", "seed")
    assert main(grid("--seeds", "1")) == 1
    err = capfd.readouterr().err
    assert err.count("failed: ") == 2 and "found no result of these 2 runs" in err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["SOLVER.MAX_ITER", "9"], r"opts [] instead of ['SOLVER.MAX_ITER', '9']"),
        (["--small"], "config retina_unet.yaml instead of retina_unet_small.yaml"),
        (
            ["--test-images", "1000"],
            "test toy_donuts_shape_test_50 instead of toy_donuts_shape_test",
        ),
    ],
)
@pytest.mark.parametrize("done", [True, False])
def test_other_options_are_refused(done, changed, message, grid, tmp_path, capfd):
    assert main(grid("--seeds", "1", "--models", "retina_unet")) == 0
    if not done:
        (folder_of(tmp_path) / "result.json").unlink()
    capfd.readouterr()
    for plot_only in ([], ["--plot-only"]):
        assert main(grid(*plot_only, *changed)) == 1
        err = capfd.readouterr().err.strip()
        assert err.startswith(f"error: {folder_of(tmp_path)}: found a run with other options (")
        assert message in err and "\n" not in err
    assert len(calls(folder_of(tmp_path))) == 1 and not calls(folder_of(tmp_path, "retinanet"))


def test_folders_of_others_are_refused(grid, tmp_path, capfd):
    folder = folder_of(tmp_path)
    folder.mkdir(parents=True)
    (folder / "last_checkpoint").write_text("model_0000009.pth")
    assert main(grid()) == 1
    assert f"{folder}: found a training that this tool did not begin" in capfd.readouterr().err
    (folder / "run.json").write_text("[]")
    assert main(grid()) == 1
    assert f"{folder / 'run.json'}: found no file of this tool" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["SOLVER.MAX_ITER"], "expected pairs of KEY VALUE"),
        (["SEED", "3"], "found the option SEED, which the grid sets itself"),
        (["--sizes", "7"], "'toy_donuts_shape_train_7' is not registered"),
        (["--sizes", "250"], "found 100 images, expected 250 or more"),
        (["--plot-only"], "found no result of these 4 runs"),
    ],
)
def test_bad_input(args, message, grid, tmp_path, capfd):
    assert main(grid(*args)) == 1
    err = capfd.readouterr().err.strip()
    assert message in err and "\n" not in err
    assert not (tmp_path / "grid").exists()


def test_missing_toys_and_missing_project(grid, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert main(grid()) == 1
    assert "prepare_toys.py" in capfd.readouterr().err
    monkeypatch.setattr(running.lesion_d2, "__file__", str(tmp_path / "lib" / "__init__.py"))
    assert main(grid()) == 1
    assert f"{tmp_path / 'train_net.py'}: not found" in capfd.readouterr().err


# --- tables and figure ----------------------------------------------------------------------------


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return {
        (task, model, n): {seed: float(rng.uniform(20, 90)) for seed in (1, 2, 3)}
        for task in ("donuts_shape", "circles_scale")
        for model in MODELS
        for n in (100, 50)
    }


def cells(table):
    return [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]


def test_table_of_means_and_spreads(scores):
    del scores["donuts_shape", "retinanet", 50]
    scores["donuts_shape", "mask_rcnn", 50] = {2: 31.25}
    header, _, *lines = cells(model_table(scores, "donuts_shape", MODELS, (100, 50)))
    assert header == ["mAP@0.1 (%)", "n = 100", "n = 50"]
    assert len(lines) == len(MODELS)
    for model, (_, *found) in zip(MODELS, lines, strict=True):
        for n, cell in zip((100, 50), found, strict=True):
            values = list(scores.get(("donuts_shape", model, n), {}).values())
            if len(values) == 3:
                mean, spread = (float(number) for number in cell.split(" ± "))
                assert abs(mean - sum(values) / 3) <= 0.0501
                deviation = sum((v - sum(values) / 3) ** 2 for v in values) / 2
                assert abs(spread - deviation**0.5) <= 0.0501
            else:
                assert cell == {"retinanet": "-", "mask_rcnn": "31.2"}[model]


def test_gains_are_paired_by_seed(scores):
    pair = ("retina_unet", "retinanet")
    first = scores["donuts_shape", "retina_unet", 50] = {1: 80.0, 2: 60.0, 4: 1.0}
    second = scores["donuts_shape", "retinanet", 50] = {2: 50.0, 1: 75.0, 3: 9.0}
    assert paired_gains(scores, "donuts_shape", pair, 50) == [5.0, 10.0]
    tables = dict(claim_tables(scores, ("donuts_shape",), pair, (50,)))
    [(heading, table)] = tables.items()
    assert heading.startswith("Gain from segmentation")
    header, _, line = cells(table)
    assert header == ["task", "percentage points", "n = 50", "mean > spread"]
    assert line == ["(a) shapes", "Retina U-Net - RetinaNet", "+7.5 ± 3.5", "1 of 1"]
    scores["donuts_shape", "retina_unet", 50], scores["donuts_shape", "retinanet", 50] = (
        second,
        first,
    )
    [(_, table)] = claim_tables(scores, ("donuts_shape",), pair, (50,))
    assert cells(table)[2][2:] == ["-7.5 ± 3.5", "0 of 1"]


def test_claims_are_asked_of_the_tasks_and_models_that_are_there(scores):
    tables = dict(claim_tables(scores, ("donuts_shape", "circles_scale"), MODELS, (100, 50)))
    rows = [len(cells(table)) - 2 for table in tables.values()]
    assert rows == [4, 2, 2]  # segmentation in two tasks, stages in one, mask head in two
    assert dict(claim_tables(scores, ("donuts_shape",), ("det_unet",), (50,))) == {}


def test_figure(scores, tmp_path):
    file = tmp_path / "figure5.png"
    plot_figure(scores, ("donuts_shape", "circles_scale"), MODELS, (100, 50), file, title="small")
    image = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert image.shape[1] > image.shape[0] > 500
    for color in ((11, 60, 140), (139, 0, 0), (232, 116, 59)):  # lines of three models
        assert (np.abs(image - color).max(axis=2) < 8).sum() > 100
    empty = tmp_path / "empty.png"
    plot_figure({}, ("donuts_shape",), MODELS, (100, 50), empty)
    assert Image.open(empty).size[0] > 100


def test_results_are_written_whole(tmp_path):
    run = Run(tmp_path, "donuts_shape", "det_unet", 50, 1)
    run.begin()
    assert run.result() is None
    result = Result(12.5, 200, 3.25, True, "2026-01-01T00:00:00+00:00")
    run.end(result)
    assert run.result() == result
    assert sorted(p.name for p in run.folder.iterdir()) == ["result.json", "run.json"]


@pytest.mark.parametrize("line", ["", "not json bbox/AP10", '{"bbox/AP10": NaN, "iteration": 3}'])
def test_a_metric_that_is_no_number(line, tmp_path):
    file = tmp_path / "metrics.json"
    file.write_text(line + "\n")
    with pytest.raises(running.FailedRun, match=r"metrics\.json: found"):
        running.read_metric(file, "bbox/AP10")
