import json

from lesion_d2.evaluation.matching import match_images
from lesion_d2.evaluation.report import make_report
from lesion_d2.evaluation.strata import Truth
from lesion_d2.tools.show_results import main

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def run(tmp_path):
    """OUTPUT_DIR of a run with an evaluation: one lesion of two found, at 0.5 FPs per image."""
    boxes = [np.array([[10.0, 10, 30, 30]]), np.array([[40.0, 40, 60, 60]])]
    dicts = [
        {"image_id": str(i), "patient": i, "spacing": (1, 1, 5.0)}
        | {"annotations": [{"bbox": box[0].tolist(), "bbox_mode": 0, "diameters_mm": (20, 15)}]}
        for i, box in enumerate(boxes)
    ]
    predictions = [boxes[0], np.array([[80.0, 80, 90, 90]])]
    matches = match_images(predictions, [np.array([0.9]), np.array([0.5])], boxes)
    folder = tmp_path / "run" / "inference" / "some_test"
    folder.mkdir(parents=True)
    make_report(matches, Truth.from_dicts(dicts), num_bootstrap=20).write(folder, "some_test", {})
    return tmp_path / "run"


def test_prints_the_table_and_the_paths(run, capsys):
    (run / "model_final.pth").touch()
    (run / "model_best.pth").touch()
    pictures = run / "inference" / "some_test" / "pictures"
    pictures.mkdir()
    for name in ("best_01_0.png", "contact_sheet.png"):
        (pictures / name).touch()
    assert main([str(run)]) == 0

    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("  ")[0].strip(): line.split() for line in lines}
    values = json.loads((pictures.parent / "froc.json").read_text())["rows"][0]
    overall = next(line for line in lines if line.split()[-9:-7] == ["2", "2"])
    expected = [f"{values[k]:.1f}" for k in ("sens@0.5", "sens@16", "mean_sens")]
    assert [overall.split()[i] for i in (-7, -2, -1)] == expected == ["50.0"] * 3

    low = next(line for line in lines if "95 % from" in line).split()
    assert low[-1] == f"{values['mean_sens_low']:.1f}"
    assert "some_test" in lines[0] and any("10-30" in key or "10 to 30" in key for key in rows)
    assert f"curve       {run}/inference/some_test/froc.png" in lines
    assert f"pictures    {pictures}/contact_sheet.png" in lines
    assert f"            {pictures}/ (2 files)" in lines
    assert lines[-1] == f"checkpoint  {run}/model_best.pth"


def test_says_what_was_not_written(run, capsys):
    (run / "inference" / "some_test" / "froc.png").unlink()
    (run / "training.png").touch()
    assert main([str(run), "--dataset", "some_test"]) == 0
    text = capsys.readouterr().out
    assert "froc.png (not written)" in text and "contact_sheet.png (not written)" in text
    assert text.splitlines()[-2] == f"training    {run}/training.png"
    assert text.splitlines()[-1] == f"checkpoint  {run}: no checkpoint"


def test_no_interval_lines_without_a_bootstrap(run, capsys):
    file = run / "inference" / "some_test" / "froc.json"
    content = json.loads(file.read_text())
    content["rows"] = [
        {k: v for k, v in row.items() if not k.endswith(("_low", "_high"))}
        for row in content["rows"]
    ]
    file.write_text(json.dumps(content))
    assert main([str(run)]) == 0
    assert "95 %" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder, expected the OUTPUT_DIR of a run"),
        (["."], "found evaluations: none; expected inference/<data set>/froc.json"),
        (["run", "--dataset", "other"], "found evaluations: some_test; expected one on other"),
    ],
)
def test_missing_results_are_one_line(run, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(run.parent)
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "found no readable JSON"),
        ("[" * 10_000, "found no readable JSON"),
        ("[]", "found no readable FROC table of an evaluation (found [], expected an object"),
        ('{"rows": []}', "found no readable FROC table of an evaluation (found no 'dataset'"),
        ('{"dataset": "x", "rows": []}', "found no readable FROC table of an evaluation (rows"),
        (
            '{"dataset": "x", "rows": [{"stratum": "all", "lesions": 1, "mean_sens": "x"}]}',
            "found no readable FROC table of an evaluation (rows, 0: 'mean_sens': found 'x'",
        ),
        (
            '{"dataset": "x", "rows": [5]}',
            "found no readable FROC table of an evaluation (rows, 0: found 5",
        ),
    ],
)
def test_damaged_results_are_one_line(run, capsys, content, message):
    file = run / "inference" / "some_test" / "froc.json"
    file.write_text(content)
    assert main([str(run)]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith(f"error: {file}: {message}")
