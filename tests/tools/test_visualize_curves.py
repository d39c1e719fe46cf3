import json

from lesion_d2.tools.visualize import curves
from lesion_d2.tools.visualize.__main__ import main
from lesion_d2.tools.visualize.curves import combine, read_curve

import numpy as np
import pytest


def write_run(folder, sensitivity, band=None, **row):
    """A run with points of a curve at 0.5, 1.5 and 3 false positives per image."""
    target = folder / "inference" / "some_set"
    target.mkdir(parents=True)
    row = {"stratum": "all lesions", "lesions": 4, "images": 2, "mean_sens": 50.0, **row}
    curve = {"sensitivity": sensitivity, "fps_per_image": [0.5, 1.5, 3.0]}
    content = {"dataset": "some_set", "rows": [row], "curve": curve}
    if band is not None:
        content["band"] = band
    (target / "froc.json").write_text(json.dumps(content))
    return target / "froc.json"


def test_a_curve_has_the_values_of_its_table(tmp_path):
    row = {"sens@1": 33.0, "sens@1_low": 1.0, "sens@16": 75.0, "sens@2": None}
    file = write_run(tmp_path / "a", [0.25, 0.5, 0.75], **row)
    curve, band = read_curve(file)
    assert band is None and (curve.num_lesions, curve.num_images) == (4, 2)
    found = curve.at([0.25, 0.5, 1, 1.5, 3, 16])
    np.testing.assert_allclose(found, [0, 0.25, 0.33, 0.5, 0.75, 0.75])
    assert curve.fps_per_image[-1] == 3  # where the detections end


def test_several_runs_are_their_mean_between_the_lowest_and_the_highest(tmp_path):
    rows = [[0.25, 0.5, 0.5], [0.25, 0.75, 1.0]]
    runs = [read_curve(write_run(tmp_path / f"{i}", row))[0] for i, row in enumerate(rows)]
    mean, (rates, low, high), label = combine(runs, [None, None])
    np.testing.assert_allclose(mean.at([0.5, 1, 2]), [0.25, 0.4375, (0.5 + 0.75 + 0.25 / 3) / 2])
    np.testing.assert_allclose([low[-1], high[-1]], [0.5, 1.0])
    assert label == "lowest to highest run" and mean.fps_per_image[-1] == 3 and len(rates) == 64
    assert combine(runs[:1], [None]) == (runs[0], None, "95 % interval")


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn, without the figure."""
    calls = []
    monkeypatch.setattr(curves, "plot_froc", lambda *args, **options: calls.append((args, options)))
    monkeypatch.setattr(curves, "plot_training", lambda *args, **_: calls.append(args))
    return calls


def test_experiments_are_curves_of_one_figure(tmp_path, drawn, capsys):
    band = {"rates": [0.125, 16.0], "low": [0.1, None], "high": [0.3, 0.9]}
    write_run(tmp_path / "one", [0.25, 0.5, 0.75], band)
    for seed in (1, 2):
        write_run(tmp_path / f"two_{seed}", [0.25, 0.5, 0.75])
    names = [f"A={tmp_path}/one", f"B={tmp_path}/two_*"]
    output = str(tmp_path / "froc.png")
    assert main(["froc", *names, "--dataset", "some_set", "--output", output]) == 0
    assert capsys.readouterr().out.splitlines() == [output, str(tmp_path / "froc.pdf")]
    (found, file), options = drawn[0]
    assert list(found) == ["A", "B"] == list(options["bands"]) and file == output
    assert options["band_label"] == "95 % interval or lowest to highest run"
    low = options["bands"]["A"][1]
    assert low[0] == 0.1 and np.isnan(low[1]) and options["title"] == "some_set"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"curve": None}, "curve: found None, expected sensitivity and fps_per_image"),
        ({"band": {"rates": [1], "low": [], "high": []}}, "band: found .*, expected rates, low"),
        ({"band": 3}, "band: found 3, expected rates, low and high of the same length"),
    ],
)
def test_damaged_curves_are_named(tmp_path, change, expected):
    file = write_run(tmp_path / "a", [0.25, 0.5, 0.75])
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=expected):
        read_curve(file)


def test_a_training_is_drawn_from_its_metrics(tmp_path, drawn, capsys):
    assert main(["training", str(tmp_path)]) == 1
    assert "metrics.json: no such file, expected the metrics" in capsys.readouterr().err
    file = tmp_path / "metrics.json"
    file.write_text('{"iteration": 19, "total_loss": 1.0}\n')
    assert main(["training", str(tmp_path)]) == 1
    message = f"error: {file}: found losses of fewer than 2 iterations, expected at least 2\n"
    assert capsys.readouterr().err == message
    file.write_text(file.read_text() + '{"iteration": 39, "total_loss": 0.5}\n')
    assert main(["training", str(tmp_path)]) == 0
    paths = [str(tmp_path / f"training.{ending}") for ending in ("png", "pdf")]
    assert capsys.readouterr().out.splitlines() == paths
    assert list(drawn[0][0]) == ["total_loss"] and drawn[0][1] == tmp_path / "training.png"
