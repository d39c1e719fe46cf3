import json
import statistics

from lesion_d2.tools.compare_runs import main

import pytest

VALUES = {"net_1": 60.0, "net_2": 64.0, "net_3": 71.0, "better_1": 80.0}


@pytest.fixture
def runs(tmp_path):
    """Evaluations of four runs, whose sensitivity rises by one percent from rate to rate."""
    for name, value in VALUES.items():
        _write(tmp_path / name, value)
    (tmp_path / "net_4.log").touch()
    return tmp_path


def _write(folder, value, lesions=7, rate="1"):
    rows = [
        {"stratum": label, "lesions": lesions, "images": 5}
        | {
            "sens@0.5": value + more,
            f"sens@{rate}": value + more + 1,
            "mean_sens": value + more + 2,
        }
        | {"sens@0.5_low": 0.0, "mean_sens_high": 100.0}
        for label, more in (("all lesions", 0), ("bone", 9))
    ]
    target = folder / "inference" / "some_test"
    target.mkdir(parents=True)
    content = {"dataset": "some_test", "rows": rows}
    content["curve"] = {"sensitivity": [0.1, value / 100], "fps_per_image": [0.5, value / 10]}
    (target / "froc.json").write_text(json.dumps(content))


def _table(text):
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    return [lines[0], *lines[2:]]


@pytest.mark.parametrize(("options", "more"), [([], 0), (["--stratum", "bone"], 9)])
def test_mean_and_spread(runs, capsys, options, more):
    arguments = [f"Net={runs}/net_*", f"+ more={runs}/better_*", "--dataset", "some_test", *options]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "some_test" in output and ": 7" in output
    header, net, better = _table(output)
    assert header == ["", "runs", "0.5", "1", "mean_sens"]
    spread = statistics.stdev([60, 64, 71])
    expected = [f"{65 + more + i:.1f} ± {spread:.1f}" for i in range(3)]
    assert net == ["Net", "3", *expected]
    assert better == ["+ more", "1", *(f"{80 + more + i:.1f}" for i in range(3))]


def test_ends_of_the_curves(runs, capsys):
    arguments = [f"Net={runs}/net_*", f"+ more={runs}/better_*", "--dataset", "some_test", "--ends"]
    assert main(arguments) == 0
    header, net, better = _table(capsys.readouterr().out)
    assert header[-3:] == ["mean_sens", "largest", "at"]
    spread = statistics.stdev([60, 64, 71])
    assert net[-2:] == [f"65.0 ± {spread:.1f}", f"6.5 ± {spread / 10:.1f}"]
    assert better[-2:] == ["80.0", "8.0"]


def test_ends_of_a_run_without_detections_and_without_a_curve(runs, capsys):
    file = runs / "better_1" / "inference" / "some_test" / "froc.json"
    content = json.loads(file.read_text())
    content["curve"] = {"sensitivity": [], "fps_per_image": []}
    file.write_text(json.dumps(content))
    assert main([f"Net={runs}/better_*", "--dataset", "some_test", "--ends"]) == 0
    assert _table(capsys.readouterr().out)[1][-2:] == ["0.0", "0.0"]
    del content["curve"]
    file.write_text(json.dumps(content))
    assert main([f"Net={runs}/better_*", "--dataset", "some_test", "--ends"]) == 1
    assert "froc.json: found no curve" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Net={}/none_*"], "none_*: found no folder"),
        (["Net={}/net_*", "--dataset", "other"], "evaluations found: some_test; expected one on"),
        (["Net={}/net_*", "--stratum", "skin"], "'skin', expected one of all lesions, bone"),
        (["Net={}/net_*", "Small={}/small"], "different numbers of lesions (Net: [7], Small: [3])"),
        (
            ["Net={}/net_*", "Rates={}/rates"],
            "with sens@0.5, sens@1, mean_sens and sens@0.5, sens@2",
        ),
    ],
)
def test_bad_input_is_one_line(runs, capsys, arguments, message):
    _write(runs / "small", 1.0, lesions=3)
    _write(runs / "rates", 1.0, rate="2")
    arguments = [argument.format(runs) for argument in arguments]
    if "--dataset" not in arguments:
        arguments += ["--dataset", "some_test"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_experiments_have_different_names(runs, capsys):
    with pytest.raises(SystemExit):
        main([f"A={runs}/net_1", f"A={runs}/net_2", "--dataset", "some_test"])
    assert "found experiments A, A, expected different names" in capsys.readouterr().err


def test_an_experiment_has_a_name_and_a_pattern(capsys):
    with pytest.raises(SystemExit):
        main(["output/net_*", "--dataset", "some_test"])
    assert "found 'output/net_*', expected NAME=PATTERN" in capsys.readouterr().err
