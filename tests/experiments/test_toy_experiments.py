import csv
import fcntl
import json
import os
import shutil
import signal
from pathlib import Path

import lesion_d2
from lesion_d2.data.toys.images import write_toys
from lesion_d2.experiments.toy_experiments import running
from lesion_d2.experiments.toy_experiments.__main__ import main
from lesion_d2.experiments.toy_experiments.figure import plot_figure
from lesion_d2.experiments.toy_experiments.grid import (
    Run,
    make_grid,
    read_settings,
)
from lesion_d2.tools.common import trainings
from lesion_d2.utils.errors import interruptible
from lesion_d2.utils.parallel import count_cores

import pytest

FIGURE = "lesion_d2.experiments.toy_experiments.__main__.plot_figure"
# Takes train_net.py's place. It counts its calls in calls.txt, keeps its arguments, and takes 40
# "iterations" with a checkpoint after every second. The environment names folders where it fails,
# or where it stops at iteration 10, maybe sends the tool a signal, and waits for the gate's lock.
PROGRAM = """
import fcntl, json, os, sys
from pathlib import Path
args = sys.argv[1:]
opts = dict(zip(args[3::2], args[4::2]))
folder = Path(opts["OUTPUT_DIR"])
folder.mkdir(exist_ok=True)
calls = "test_calls.txt" if "--eval-only" in args else "calls.txt"
with open(folder / calls, "a") as file:
    print(json.dumps({"args": args, "threads": os.environ["OMP_NUM_THREADS"],
                      "jit": os.environ["PYTORCH_JIT"]}), file=file)
print("begins")
if os.environ.get("FAIL", "nowhere") in str(folder):
    sys.exit("train_net.py: error: the model is broken")
if os.environ.get("MUTE", "nowhere") in str(folder):
    sys.exit(0)
if "--eval-only" in args:
    [name] = eval(opts["DATASETS.TEST"])
    results = folder / "inference" / name / "results.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    ap = 50 + int(opts["SEED"]) + len(folder.parts[-4])
    results.write_text(json.dumps({"bbox": {"AP10": ap}}))
    sys.exit()
tag = folder / "last_checkpoint"
start = int(tag.read_text()) if tag.is_file() and "--resume" in args else 0
for i in range(start + 1, 41):
    if i % 2 == 0:
        tag.write_text(str(i))
    if i == 10 and os.environ.get("STOP", "nowhere") in str(folder):
        if "SIGNAL" in os.environ:
            os.kill(os.getppid(), int(os.environ["SIGNAL"]))
        with open(os.environ["GATE"]) as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
with open(folder / "metrics.json", "a") as file:
    print(json.dumps({"bbox/AP10": 1.0, "iteration": 20}), file=file)
    print(json.dumps({"total_loss": 1.0, "iteration": 39}), file=file)
    ap = 50 + int(opts["SEED"]) + len(folder.parts[-3])
    print(json.dumps({"bbox/AP10": ap, "started_at": start, "iteration": 41}), file=file)
"""

# Two runs that begin together: the first does not end at SIGTERM, or not before the second has; the
# second then interrupts the tool.
PAIR = """
import fcntl, os, signal, sys
from pathlib import Path
folder = Path(dict(zip(sys.argv[4::2], sys.argv[5::2]))["OUTPUT_DIR"])
gate = Path(os.environ["GATE"])
lock = open(gate.with_name("second.lock"), "a")
if folder.name == "seed_1":
    def end(*_):
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "after_the_second").touch()
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "DEAF" in os.environ else end)
    open(gate.with_name("ready"), "w").close()
else:
    fcntl.flock(lock, fcntl.LOCK_EX)
    open(gate.with_name("ready")).close()
    os.kill(os.getppid(), signal.SIGTERM)
with open(gate) as file:
    fcntl.flock(file, fcntl.LOCK_EX)
"""


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_toys(folder / "toys", num_train=100, num_val=1, num_test=50, workers=1)
    return folder


@pytest.fixture
def grid(datasets, tmp_path, monkeypatch):
    """Runs the tool on a tiny grid below ``tmp_path / "grid"``; its figure is an empty file."""
    monkeypatch.setattr(FIGURE, lambda *args, **options: args[4].touch())
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    monkeypatch.setenv("GATE", str(tmp_path / "gate"))
    (tmp_path / "program.py").write_text(PROGRAM)

    def call(*args, sizes=("50",)):
        options = ["--program", tmp_path / "program.py", "--output", tmp_path / "grid"]
        where = ["--tasks", "donuts_shape", "--models", "retina_unet", "retinanet"]
        where += ["--sizes", *sizes, "--seeds", "1", "2", "--test-images", "50"]
        return list(map(str, [*options, *where, *args]))

    with open(tmp_path / "gate", "w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        yield call  # whatever waits for the gate goes on at the end of the test


def tiny_runs(tmp_path, **axes):
    """The runs of the tiny grid."""
    axes = {"models": ["retina_unet", "retinanet"], "seeds": [1, 2], **axes}
    _, configs = running.find_program()
    settings = read_settings(configs, False)
    axes |= {"tasks": ["donuts_shape"], "sizes": [50], "num_test": 50}
    return make_grid(tmp_path / "grid", settings, **axes)


def folder_of(tmp_path, model="retina_unet", seed=1, size=50):
    return tmp_path / "grid" / "donuts_shape" / model / str(size) / f"seed_{seed}"


def calls(folder, name="calls.txt"):
    file = folder / name
    return list(map(json.loads, file.read_text().splitlines())) if file.is_file() else []


@pytest.mark.parametrize("given", [False, True])
def test_environment_of_a_run(given, grid, tmp_path, monkeypatch):
    for name, value in (("OMP_NUM_THREADS", "77"), ("PYTORCH_JIT", "1")):
        monkeypatch.setenv(name, value)
        if not given:
            monkeypatch.delenv(name)
    assert main(grid("--jobs", "2", "--seeds", "1")) == 0
    [call] = calls(folder_of(tmp_path))
    expected = ("77", "1") if given else (str(max(1, count_cores() // 2)), "0")
    assert (call["threads"], call["jit"]) == expected


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


def test_the_best_checkpoints_of_a_run_are_tested_as_an_ensemble(grid, tmp_path):
    """They are the best on the validation set; nothing is chosen on the test set."""
    assert main(grid("--jobs", "2")) == 0
    configs = Path(__file__).parents[2] / "configs" / "toys"
    for seed in (1, 2):
        folder = folder_of(tmp_path, seed=seed)
        [training], [test] = calls(folder), calls(folder / "test", "test_calls.txt")
        assert training["args"][3:] == [
            *("OUTPUT_DIR", str(folder)),
            *("DATASETS.TRAIN", "('toy_donuts_shape_train_50',)"),
            *("DATASETS.TEST", "('toy_donuts_shape_val',)"),
            *("SEED", str(seed)),
        ]
        assert test["args"] == [
            *("--config-file", str(configs / "retina_unet.yaml"), "--eval-only"),
            *("OUTPUT_DIR", str(folder / "test")),
            *("DATASETS.TRAIN", "('toy_donuts_shape_train_50',)"),
            *("DATASETS.TEST", "('toy_donuts_shape_test_50',)"),
            *("SEED", str(seed)),
            *("TEST.ENSEMBLE.ENABLED", "True"),
            *("TEST.ENSEMBLE.CHECKPOINTS", str((str(folder / "best"),))),
        ]
        result = json.loads((folder / "result.json").read_text())["result"]
        assert result["ap10"] == 50 + seed + len("retina_unet") and result["iterations"] == 40


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


def test_figure_and_tables_are_of_all_results(grid, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(FIGURE, plot_figure)
    assert main(grid(sizes=["100"])) == 0
    (tmp_path / "grid" / "figure5.png").unlink()
    capsys.readouterr()
    assert main(grid("--seeds", "1", "--models", "retinanet")) == 0

    out = capsys.readouterr().out
    assert "5 of 8 runs have a result." in out and "Retina U-Net - RetinaNet" in out
    rows = (tmp_path / "grid" / "figure5.csv").read_text()
    assert [
        (r["model"], r["n"], r["seed"], float(r["ap10"])) for r in csv.DictReader(rows.splitlines())
    ] == [
        ("retina_unet", "100", "1", 62.0),
        ("retinanet", "100", "1", 60.0),
        ("retinanet", "50", "1", 60.0),
        ("retina_unet", "100", "2", 63.0),
        ("retinanet", "100", "2", 61.0),
    ]

    image = (tmp_path / "grid" / "figure5.png").read_bytes()
    (tmp_path / "grid" / "figure5.csv").unlink()
    options = ["--output", str(tmp_path / "grid"), "--test-images", "50", "--plot-only"]
    assert main(options) == 0
    assert capsys.readouterr().out == out
    assert (tmp_path / "grid" / "figure5.csv").read_text() == rows
    assert (tmp_path / "grid" / "figure5.png").read_bytes() == image


def is_free(folder):
    """Whether no process holds the lock of a run."""
    with open(folder / "console.txt") as console:
        try:
            fcntl.flock(console, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_resumes_after_an_interruption(number, grid, tmp_path, capfd, monkeypatch, escaped):
    monkeypatch.setenv("STOP", "/retina_unet/")
    monkeypatch.setenv("SIGNAL", str(int(number)))
    assert main(grid("--seeds", "2")) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last == "interrupted: run the same command again to continue"
    assert signal.getsignal(number) is escaped
    folder = folder_of(tmp_path, seed=2)
    assert is_free(folder) and not (folder / "result.json").exists()
    assert not folder_of(tmp_path, "retinanet", seed=2).exists()
    assert main(grid("--seeds", "2")) == 0
    assert len(calls(folder)) == 2
    last = json.loads((folder / "metrics.json").read_text().splitlines()[-1])
    assert last["started_at"] == 10
    assert json.loads((folder / "result.json").read_text())["result"]["resumed"]


@pytest.mark.parametrize("deaf", [False, True])
def test_all_processes_are_ended_together(deaf, grid, tmp_path, monkeypatch, escaped):
    (tmp_path / "program.py").write_text(PAIR)
    os.mkfifo(tmp_path / "ready")
    if deaf:
        monkeypatch.setenv("DEAF", "1")
    _, configs = running.find_program()
    runs = tiny_runs(tmp_path, models=["retina_unet"])
    with pytest.raises(KeyboardInterrupt), interruptible():
        program = tmp_path / "program.py"
        running.run_all(runs, program, configs, jobs=2, grace=0 if deaf else 60)
    assert [is_free(run.folder) for run in runs] == [True, True]
    # Had the second been asked only after the first had ended, the first had waited in vain.
    assert (runs[0].folder / "after_the_second").exists() != deaf


def test_a_run_of_a_process_that_is_left_is_not_started_again(grid, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("STOP", "/retina_unet/")
    _, configs = running.find_program()
    [run, *_] = tiny_runs(tmp_path, seeds=[2])
    left = trainings.Training(running.ToyRun(run, configs))
    assert left.start(tmp_path / "program.py", 1)
    monkeypatch.delenv("STOP")
    left.console.close()  # as at the tool's death: the process alone has the lock
    try:
        assert main(grid("--seeds", "2")) == 1
        assert "retina_unet/50/seed_2 is in use by another process" in capfd.readouterr().err
        assert calls(folder_of(tmp_path, "retinanet", seed=2))  # the others went on
    finally:
        left.process.kill()
        left.process.wait()
    assert len(calls(run.folder)) <= 1


def test_nothing_is_written_without_the_lock(grid, tmp_path, capfd):
    folder = folder_of(tmp_path)
    folder.mkdir(parents=True)
    with open(folder / "console.txt", "w") as console:
        console.write("of the other")
        console.flush()
        fcntl.flock(console, fcntl.LOCK_EX)
        assert main(grid("--seeds", "1", "--models", "retina_unet")) == 1
    assert "in use by another process" in capfd.readouterr().err
    assert [p.name for p in folder.iterdir()] == ["console.txt"]
    assert (folder / "console.txt").read_text() == "of the other"


def test_the_lock_is_held_until_the_result_is_there(grid, tmp_path, monkeypatch):
    held, end = [], Run.end

    def check(run, result):
        held.append(not is_free(run.folder))
        end(run, result)

    monkeypatch.setattr(Run, "end", check)
    assert main(grid("--seeds", "1")) == 0
    assert held == [True, True]
    assert is_free(folder_of(tmp_path)) and is_free(folder_of(tmp_path, "retinanet"))


def test_what_another_call_has_done_meanwhile_is_skipped(grid, tmp_path):
    assert main(grid("--models", "retina_unet")) == 0
    file = folder_of(tmp_path) / "result.json"
    before = file.read_bytes()
    file_of_others = folder_of(tmp_path, seed=2) / "result.json"
    file_of_others.write_text("{}")
    program, (_, configs) = tmp_path / "program.py", running.find_program()
    [failure] = running.run_all(tiny_runs(tmp_path), program, configs)
    assert failure.startswith(f"failed: donuts_shape/retina_unet/50/seed_2: {file_of_others}: ")
    assert file.read_bytes() == before
    assert len(calls(file.parent)) == len(calls(file_of_others.parent)) == 1
    assert folder_of(tmp_path, "retinanet", seed=2).joinpath("result.json").exists()


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
    assert "results.json: found no bbox/AP10" in failed[1] and len(failed) == 2
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
    assert err.count("failed: ") == 2 and "found no result of this tool" in err


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
    # Whatever part of the grid is asked for: results of two kinds cannot be in one figure.
    for args in ([], ["--plot-only"], ["--seeds", "2", "--jobs", "1"]) if done else ([],):
        assert main(grid(*args, *changed)) == 1
        err = capfd.readouterr().err.strip()
        assert err.startswith(f"error: {folder_of(tmp_path)}: found a run with other options (")
        assert message in err and "\n" not in err and "settings" not in err
    assert len(calls(folder_of(tmp_path))) == 1
    assert len(list(tmp_path.rglob("calls.txt"))) == 1


def test_changed_configs_are_refused(grid, tmp_path, capfd, monkeypatch):
    shutil.copytree(running.find_program()[1].parent, tmp_path / "configs")
    (tmp_path / "train_net.py").touch()
    monkeypatch.setattr(lesion_d2, "__file__", str(tmp_path / "lesion_d2" / "__init__.py"))
    assert main(grid("--seeds", "1")) == 0
    part = tmp_path / "configs" / "toys" / "parts" / "toys.yaml"
    before = part.read_text()
    part.write_text(before.replace("MAX_ITER: 20000", "MAX_ITER: 20001"))
    assert part.read_text() != before
    capfd.readouterr()
    for args in ([], ["--plot-only"]):
        assert main(grid(*args)) == 1
        assert capfd.readouterr().err == (
            f"error: {folder_of(tmp_path)}: found a run with other options (configs/toys/"
            "retina_unet.yaml has changed since): remove the folder, or choose another --output\n"
        )
    part.write_text(f"# as before\n{before}")
    assert main(grid("--plot-only")) == 0


@pytest.mark.parametrize("name", ["run.json", "result.json"])
@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["options"].pop("settings"),
        lambda content: content["options"].update(more=1),
        lambda content: content.pop("options"),
        lambda content: content.update(options=[]),
        lambda content: content.get("result", content["options"]).popitem(),
        lambda content: content.get("result", content["options"]).update(more=1),
        lambda content: content.update({"result" if "result" in content else "options": None}),
        lambda content: content.get("result", content["options"]).update(ap10=None),
    ],
)
def test_files_of_other_versions_are_refused(name, change, grid, tmp_path, capfd):
    assert main(grid("--seeds", "1", "--models", "retina_unet")) == 0
    file = folder_of(tmp_path) / name
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    capfd.readouterr()
    assert main(grid("--plot-only")) == 1
    err = capfd.readouterr().err.strip()
    assert err.startswith(f"error: {file}: found a file of another tool or another version (")
    assert "\n" not in err


def test_folders_of_others_are_refused(grid, tmp_path, capfd):
    folder = folder_of(tmp_path)
    folder.mkdir(parents=True)
    (folder / "last_checkpoint").write_text("model_0000009.pth")
    assert main(grid()) == 1
    assert f"{folder}: found a training that this tool did not start" in capfd.readouterr().err
    (folder / "run.json").write_text("[]")
    assert main(grid()) == 1
    assert f"{folder / 'run.json'}: found a file of another tool" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["SOLVER.MAX_ITER"], "expected pairs of KEY VALUE"),
        (["SEED", "3"], "found the option SEED, which the grid sets itself"),
        (["--sizes", "250"], "found 100 images, expected 250 or more"),
        (["--plot-only"], "grid: found no result of this tool"),
    ],
)
def test_invalid_input_is_one_line_and_nothing_is_written(args, message, grid, tmp_path, capfd):
    assert main(grid(*args)) == 1
    err = capfd.readouterr().err.strip()
    assert message in err and "\n" not in err
    assert not (tmp_path / "grid").exists()


def test_missing_toys_and_missing_project(grid, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert main(grid()) == 1
    assert "prepare_toys.py" in capfd.readouterr().err
    monkeypatch.setattr(lesion_d2, "__file__", str(tmp_path / "lib" / "__init__.py"))
    assert main(grid()) == 1
    assert f"{tmp_path / 'train_net.py'}: not found" in capfd.readouterr().err
