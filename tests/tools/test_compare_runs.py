import json
import statistics

from lesion_d2.structures.lesion_types import COARSE_TYPES
from lesion_d2.tools.compare_runs import TYPES, main

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


STRATA = [  # as an evaluation writes them: label, group, lesions, percent above that of the run
    ("all lesions", "froc", 20, 0),
    ("< 10 mm", "froc_size", 4, 1),
    ("10-30 mm", "froc_size", 16, 2),
    ("> 30 mm", "froc_size", 0, None),
    ("bone", "froc_type", 3, 3),
    ("abdomen", "froc_type", 0, None),
    ("lung", "froc_type", 5, 4),
    ("soft tissue", "froc_type", 9, 5),
    ("donut", "froc_type", 3, 6),
    ("interval <= 2.5 mm", "froc_interval", 12, 7),
    ("interval > 2.5 mm", "froc_interval", 8, 8),
]


def _write_strata(folder, value, strata=STRATA):
    rows = []
    for label, group, lesions, more in strata:
        sensitivity = None if more is None else value + more
        rows.append({"group": group, "stratum": label, "lesions": lesions, "images": 9})
        rows[-1] |= {"sens@0.5": 1.0, "sens@4": sensitivity, "mean_sens": 2.0, "sens@4_low": 0.0}
    target = folder / "inference" / "some_test"
    target.mkdir(parents=True)
    (target / "froc.json").write_text(json.dumps({"dataset": "some_test", "rows": rows}))


def test_strata_with_lesions_are_columns_in_the_papers_order(tmp_path, capsys):
    for name, value in VALUES.items():
        _write_strata(tmp_path / name, value)
    arguments = [f"Net={tmp_path}/net_*", f"+ more={tmp_path}/better_*", "--dataset", "some_test"]
    assert main([*arguments, "--strata", "4"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("Sensitivity in % at 4 false positives per image, some_test\n")
    header, counts, net, better = _table(output)
    types, sizes = ["lung", "soft tissue", "bone", "donut"], ["< 10 mm", "10-30 mm"]
    intervals = ["interval <= 2.5 mm", "interval > 2.5 mm"]
    assert header == ["", "runs", *types, *sizes, *intervals]
    assert counts == ["lesions", "", "5", "9", "3", "3", "4", "16", "12", "8"]
    more = [4, 5, 3, 6, 1, 2, 7, 8]
    spread = statistics.stdev([60, 64, 71])
    assert net == ["Net", "3", *(f"{65 + m:.1f} ± {spread:.1f}" for m in more)]
    assert better == ["+ more", "1", *(f"{80 + m:.1f}" for m in more)]


def test_types_are_those_of_the_evaluation():
    assert sorted(TYPES) == sorted(COARSE_TYPES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Net={}/net", "--strata", "3"], "froc.json: found no sens@3, expected one of sens@0.5, "),
        (["Net={}/plain", "--strata", "4"], "froc.json: found no strata with lesions, expected"),
        (
            ["Net={}/net", "Other={}/other", "--strata", "4"],
            "different numbers of lesions (Net: 5 lung, 9 soft tissue, ",
        ),
        (
            ["Net={}/net", "Other={}/other", "--strata", "4"],
            "Other: 5 lung), expected one data set",
        ),
        (["Net={}/none", "--strata", "4"], "none: found no folder"),
    ],
)
def test_bad_strata_are_one_line(tmp_path, capsys, arguments, message):
    _write_strata(tmp_path / "net", 1.0)
    _write_strata(tmp_path / "plain", 1.0, STRATA[:1])
    _write_strata(tmp_path / "other", 1.0, [STRATA[0], STRATA[6]])
    arguments = [argument.format(tmp_path) for argument in arguments]
    assert main([*arguments, "--dataset", "some_test"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("other", [["--ends"], ["--stratum", "bone"]])
def test_strata_stand_alone(capsys, other):
    with pytest.raises(SystemExit):
        main(["Net=net", "--dataset", "some_test", "--strata", "4", *other])
    assert "found --strata with --stratum or --ends" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Net={}/none_*"], "none_*: found no folder"),
        (["Net={}/net_*", "--dataset", "other"], "found evaluations: some_test; expected one on"),
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


def _write_volumes(folder, value, lesions=7, criteria=("p3d@0.5", "iou@0.1"), **changes):
    tasks = [
        f"volume_{text.partition('@')[0]}" if i else "volume" for i, text in enumerate(criteria)
    ]
    results = {
        task: {"AP" if i == 0 else "AP10": value + i, "AP-a": 0.0}
        | {"sens@0.125": value + 2 + i, "mean_sens": None if value == 1 else value + 3 + i}
        for i, task in enumerate(tasks)
    }
    content = {
        "lesions": lesions,
        "volumes": 4,
        "settings": {"criteria": dict(zip(tasks, criteria, strict=True))},
        "results": results.pop("volume") | {"patient_AP": 50.0},
        "other_results": results,
    }
    target = folder / "inference" / "some_volumes"
    target.mkdir(parents=True)
    (target / "volumes.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize(("criterion", "more"), [(None, 0), ("p3d@0.5", 0), ("iou@0.1", 1)])
def test_volumes_have_sensitivities_and_average_precision(tmp_path, capsys, criterion, more):
    for name, value in VALUES.items():
        _write_volumes(tmp_path / name, value)
    _write_volumes(tmp_path / "undefined", 1)
    arguments = [f"Net={tmp_path}/net_*", f"None={tmp_path}/undefined", "--volumes"]
    arguments += ["--criterion", criterion] if criterion else []
    assert main([*arguments, "--dataset", "some_volumes"]) == 0
    output = capsys.readouterr().out
    assert f"some_volumes: 7 lesions in 4 volumes, {criterion or 'p3d@0.5'}, sides of x2" in output
    header, net, undefined = _table(output)
    assert header == ["", "runs", "0.125", "mean_sens", "AP10" if more else "AP"]
    spread = statistics.stdev([60, 64, 71])
    assert net == ["Net", "3", *(f"{65 + more + i:.1f} ± {spread:.1f}" for i in (2, 3, 0))]
    assert undefined == ["None", "1", f"{3 + more:.1f}", "nan", f"{1 + more:.1f}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["A={}/run", "--criterion", "iou@0.2"], "found no iou@0.2, expected one of p3d@0.5, iou"),
        (
            ["A={}/run", "B={}/iobb"],
            "found criteria iobb@0.3 and p3d@0.5, expected the same in all",
        ),
        (
            ["A={}/run", "B={}/whole_pixels"],
            "found evaluations with sides of x2 - x1 and sides of x2 - x1 + 1, AP all_points, exp",
        ),
        (["A={}/run", "B={}/fewer"], "different numbers of lesions (A: [7], B: [3])"),
        (
            ["A={}/old"],
            "volumes.json: found no readable evaluation of volumes (settings: found no 'criteria'",
        ),
        (["A={}/text"], "evaluation of volumes (results: 'AP': found 'x', expected a number or"),
        (["A={}/lacks"], "(other_results: found no 'volume_iou', expected an object of metrics"),
        (["A={}/bad"], "volumes.json: found no readable JSON"),
        (["A={}/empty"], "volumes.json: no such file, expected an evaluation of volumes"),
    ],
)
def test_bad_volumes_are_one_line(tmp_path, capsys, arguments, message):
    _write_volumes(tmp_path / "run", 5.0)
    _write_volumes(tmp_path / "iobb", 5.0, criteria=("iobb@0.3",))
    _write_volumes(tmp_path / "fewer", 5.0, lesions=3)
    _write_volumes(tmp_path / "old", 5.0, settings={})
    _write_volumes(tmp_path / "text", 5.0, results={"AP": "x"})
    _write_volumes(tmp_path / "lacks", 5.0, other_results={})
    rule = {"inclusive": True, "average_precision": "all_points"}
    settings = {"criteria": {"volume": "p3d@0.5", "volume_iou": "iou@0.1"}, **rule}
    _write_volumes(tmp_path / "whole_pixels", 5.0, settings=settings)
    _write_volumes(tmp_path / "bad", 5.0)
    (tmp_path / "bad" / "inference" / "some_volumes" / "volumes.json").write_text("{")
    (tmp_path / "empty").mkdir()
    arguments = [argument.format(tmp_path) for argument in arguments]
    assert main([*arguments, "--volumes", "--dataset", "some_volumes"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--volumes", "--ends"], "found --volumes with --stratum"),
        (["--volumes", "--strata", "4"], "found --volumes with --stratum"),
        (["--criterion", "p3d@0.5"], "found --criterion without --volumes"),
    ],
)
def test_volumes_stand_alone(capsys, options, message):
    with pytest.raises(SystemExit):
        main(["Net=net", "--dataset", "some_volumes", *options])
    assert message in capsys.readouterr().err
