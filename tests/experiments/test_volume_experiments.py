import csv
import json
from pathlib import Path

from lesion_d2.data.toys.volumes import write_toy_volumes
from lesion_d2.data.volume_set.catalog import register_volume_set
from lesion_d2.experiments.volume_experiments.__main__ import main
from lesion_d2.experiments.volume_experiments.report import (
    CLAIMS,
    PAPER,
    claim_tables,
    collect_scores,
)

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

CONFIGS = Path(__file__).parents[2] / "configs" / "retina_unet" / "small"

# Takes train_net.py's place: keeps its arguments, and finds 50 percent and a point for each seed,
# 10 more in 3-D. The environment names folders where it fails.
PROGRAM = """
import json, os, sys
from pathlib import Path
args = sys.argv[1:]
opts = dict(zip(args[3::2], args[4::2]))
folder = Path(opts["OUTPUT_DIR"])
with open(folder / "calls.txt", "a") as file:
    print(json.dumps(args), file=file)
if os.environ.get("FAIL", "nowhere") in str(folder):
    sys.exit("train_net.py: error: the model is broken")
[name] = eval(opts["DATASETS.TEST"])
ap = 50.0 + int(opts["SEED"]) + 10 * ("/3d/" in str(folder))
results = {"AP10": ap, "patient_AP": None if "/2d/" in str(folder) else 80.0, "sens@2": 60.0}
(folder / "inference" / name).mkdir(parents=True)
(folder / "inference" / name / "volumes.json").write_text(json.dumps({"results": results}))
(folder / "metrics.json").write_text(json.dumps({"total_loss": 1.0, "iteration": 39}) + "\\n")
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A tiny data set of volumes, for its names."""
    folder = tmp_path_factory.mktemp("data")
    root = write_toy_volumes(folder, num_train=2, num_val=1, num_test=1)[0]
    names = register_volume_set(root, "tiny_volumes")
    yield "tiny_volumes"
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def call(dataset, tmp_path):
    """Calls the tool on a grid below ``tmp_path / "grid"``."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def call(*args):
        options = ["--program", tmp_path / "program.py", "--output", tmp_path / "grid"]
        options += ["--dataset", dataset, "--models", "retinanet", "retina_unet", *args]
        return main(list(map(str, options)))

    return call


def calls(folder):
    file = folder / "calls.txt"
    return list(map(json.loads, file.read_text().splitlines())) if file.is_file() else []


def read_rows(folder):
    """The cells of the first table, a list a row."""
    lines = (folder / "table1.md").read_text().split("\n\n")[1].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_command_of_a_run(call, tmp_path):
    assert call("--dimensions", "2dc", "--jobs", "2", "SOLVER.MAX_ITER", "40") == 0
    folder = tmp_path / "grid" / "2dc" / "retina_unet" / "seed_1"
    [arguments] = calls(folder)
    assert arguments == [
        *("--config-file", str(CONFIGS / "2dc" / "retina_unet.yaml"), "--resume"),
        *("SOLVER.MAX_ITER", "40"),
        *("OUTPUT_DIR", str(folder)),
        *("DATASETS.TRAIN", "('tiny_volumes_volumes_train',)"),
        *("DATASETS.TEST", "('tiny_volumes_volumes_test',)"),
        *("SEED", "1"),
    ]


def test_table_has_the_layout_of_the_papers(call, tmp_path, capsys):
    assert call("--jobs", "2") == 0
    assert call("--seeds", "1", "2", "--dimensions", "3d") == 0
    assert "8 runs of 40 iterations" in capsys.readouterr().out

    grid = tmp_path / "grid"
    assert all(len(calls(file.parent)) == 1 for file in grid.rglob("result.json"))
    both, one = ["80.0 ± 0.0", "-", "60.0 ± 0.0", "-", "2"], ["-", "60.0", "-", "1"]
    assert read_rows(grid) == [
        ["3D", "Retina U-Net", "61.5 ± 0.7", *both, "49.8", "70.4"],
        ["3D", "RetinaNet", "61.5 ± 0.7", *both, "45.9", "68.8"],
        ["2Dc", "Retina U-Net", "51.0", "80.0", *one, "50.2", "73.9"],
        ["2Dc", "RetinaNet", "51.0", "80.0", *one, "48.2", "71.5"],
        ["2D", "Retina U-Net", "51.0", "-", *one, "40.8", "68.0"],
        ["2D", "RetinaNet", "51.0", "-", *one, "39.5", "67.7"],
    ]

    text = (grid / "table1.md").read_text()
    line = next(line for line in text.splitlines() if "Retina U-Net 3D - Retina U-Net 2Dc" in line)
    # Paired by seed: the second seed of 3D has no partner.
    assert [cell.strip() for cell in line.strip("|").split("|")][1:] == ["+10.0", "1", "-0.4"]

    with open(grid / "table1.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and rows[0]["AP10"] == "61.0" and rows[-1]["patient_AP"] == ""


def test_claims_compare_rows_of_the_paper():
    everything = {place: {1: number, 2: number + 1} for place, (number, _) in PAPER.items()}
    tables = list(claim_tables(everything))
    assert len(tables) == len(CLAIMS)
    assert sum(len(table.splitlines()) - 2 for _, table in tables) == sum(
        len(pairs) for _, pairs in CLAIMS
    )
    for _, table in tables:  # where the results are the paper's, so are the differences
        for line in table.splitlines()[2:]:
            here, seeds, paper = [cell.strip() for cell in line.strip("|").split("|")][1:]
            assert here == f"{paper} ± 0.0" and seeds == "2"
    assert not list(claim_tables(collect_scores({})))


def test_failures_are_told_and_run_again(call, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FAIL", "/2d/retinanet/")
    assert call("--dimensions", "2d") == 1
    error = capsys.readouterr().err
    assert "failed: 2d/retinanet/seed_1: exit code 1: train_net.py: error: the model" in error
    monkeypatch.delenv("FAIL")
    assert call("--dimensions", "2d") == 0
    grid = tmp_path / "grid" / "2d"
    assert [len(calls(grid / m / "seed_1")) for m in ("retina_unet", "retinanet")] == [1, 2]


def test_where_all_runs_fail_each_is_told(call, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FAIL", "/2d/")
    assert call("--dimensions", "2d") == 1
    error = capsys.readouterr().err
    for model in ("retinanet", "retina_unet"):
        assert f"failed: 2d/{model}/seed_1: exit code 1: train_net.py: error: the model" in error
    assert f"error: {tmp_path / 'grid'}: found no result of this tool" in error


def test_what_is_not_this_grid_is_refused(call, tmp_path, capsys):
    assert call("--table-only") == 1
    assert f"error: {tmp_path / 'grid'}: found no result of this tool" in capsys.readouterr().err
    assert call("--dimensions", "2d") == 0
    for changed in (["--split", "val"], ["--jobs", "1", "SOLVER.MAX_ITER", "9"]):
        capsys.readouterr()
        assert call("--table-only", *changed) == 1
        assert "found a run with other options (" in capsys.readouterr().err
    assert call("--dimensions", "3d", "--jobs", "1", "SEED", "2") == 1
    assert "found the option SEED, which the grid sets itself" in capsys.readouterr().err
    assert call("--dimensions", "3d", "--dataset", "nothing_like_it") == 1
    assert "nothing_like_it_volumes_train" in capsys.readouterr().err
    assert call("--configs", tmp_path) == 1
    assert "found no config, expected files such as 3d/retina_unet.yaml" in capsys.readouterr().err
