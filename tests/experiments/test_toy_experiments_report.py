import argparse
import hashlib
from pathlib import Path

from lesion_d2.engine import load_config
from lesion_d2.experiments.toy_experiments import running
from lesion_d2.experiments.toy_experiments.figure import plot_figure
from lesion_d2.experiments.toy_experiments.grid import (
    MODELS,
    Result,
    Run,
    find_axes,
    hash_settings,
    make_grid,
    read_settings,
)
from lesion_d2.experiments.toy_experiments.report import (
    claim_tables,
    figure_title,
    model_table,
    paired_gains,
)

import numpy as np
import pytest
from PIL import Image

# --- the grid -------------------------------------------------------------------------------------


def test_grid_fills_evenly():
    settings = dict.fromkeys(MODELS, "")
    runs = make_grid(Path("out"), settings)
    assert len(runs) == len(set(runs)) == 6 * 3 * 5 * 3
    assert {run.seed for run in runs[:90]} == {1}
    assert {run.size for run in runs[:18]} == {1000}
    assert {run.model for run in runs[:6]} == set(MODELS)
    assert runs[0].datasets == ("toy_donuts_shape_train", "toy_donuts_shape_test")
    assert make_grid(Path("out"), settings, seeds=(1, 1), sizes=(50, 50)) == runs[72:90]


def test_configs_of_the_grid_are_there():
    _, configs = running.find_program()
    for small in (False, True):
        settings = read_settings(configs, small)
        assert settings.keys() == set(MODELS) and len(set(settings.values())) == len(MODELS)
        for run in make_grid(Path("out"), settings, small=small):
            assert (configs / run.config).is_file()
            assert run.settings == settings[run.model]
        assert run.settings == hash_settings(configs / run.config)


def test_hash_of_settings(tmp_path):
    (tmp_path / "parts").mkdir()
    base, file = tmp_path / "parts" / "base.yaml", tmp_path / "x.yaml"
    base.write_text("A: {C: 2, B: 1}")
    file.write_text("_BASE_: parts/base.yaml\nA:\n  C: 3")
    found = hash_settings(file)
    assert found == hashlib.sha256(b'{"A": {"B": 1, "C": 3}}').hexdigest()
    base.write_text("# the same\nA: {B: 1, C: 7}")  # C is not its own
    assert hash_settings(file) == found
    base.write_text("A: {B: 2}")
    assert hash_settings(file) != found
    with pytest.raises(FileNotFoundError):
        hash_settings(tmp_path / "y.yaml")


def test_axes_are_those_of_results(tmp_path):
    for name in (
        *("donuts_shape/det_unet/50/seed_2", "donuts_shape/mask_rcnn/250/seed_10"),
        *("donuts_shape/retinanet/1000/seed_x", "donuts_shape/retinanet/0100/seed_1"),
        *("donuts_shape/retinanet/99/copy_of_seed_1", "donuts_shape/other/98/seed_3"),
        *("circles/det_unet/97/seed_4", "circles_scale/det_unet/96", "old/a/b/c/d/e"),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "result.json").touch()
    (tmp_path / "circles_scale/det_unet/95/seed_5").mkdir(parents=True)
    assert find_axes(tmp_path) == {
        "models": ["mask_rcnn", "det_unet"],
        "tasks": ["donuts_shape"],
        "sizes": [250, 50],
        "seeds": [2, 10],
    }
    assert not any(find_axes(tmp_path / "nowhere").values())


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


def test_the_figure_has_a_line_in_its_color_for_each_model(scores, tmp_path):
    file = tmp_path / "figure5.png"
    plot_figure(scores, ("donuts_shape", "circles_scale"), MODELS, (100, 50), file, title="small")
    image = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert image.shape[1] > image.shape[0] > 500
    for color in ((0, 114, 178), (213, 94, 0), (230, 159, 0)):  # lines of three models
        assert (np.abs(image - color).max(axis=2) < 8).sum() > 100
    empty = tmp_path / "empty.png"
    plot_figure({}, ("donuts_shape",), MODELS, (100, 50), empty, title="wide letters " * 12)
    image = np.asarray(Image.open(empty).convert("L"))
    assert image.shape[1] > 100
    assert image[:, 0].min() == image[:, -1].min() == 255  # the title is not cut


def test_the_title_says_the_size_of_the_experiment():
    _, configs = running.find_program()
    axes = {"models": ["retinanet"], "tasks": ["circles_scale"], "sizes": [1000, 100]}
    runs = make_grid(Path("out"), {"retinanet": ""}, **axes, num_test=250, small=True)
    args = argparse.Namespace(config_file=str(configs / runs[0].config), opts=[])
    cfg = load_config(args)
    cfg.INPUT.CT.IMAGE_SIZE, cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = 96, 70, 4
    expected = (
        "Toy experiments: small models; 96 x 96 pixels; 70 iterations of 4 images; n = 1000, 100; "
        "250 test images; seeds 1, 2, 3"
    )
    assert figure_title(runs, len(runs), cfg) == expected
    assert figure_title(runs, 5, cfg) == f"{expected}; 5 of 6 runs"


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
