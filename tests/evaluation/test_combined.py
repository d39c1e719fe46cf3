"""Parts of a data set, evaluated one by one and then together, against one evaluation of all."""

import json

from lesion_d2.evaluation import VolumeEvaluator
from lesion_d2.evaluation.combined import combine_evaluations, read_volume_detections
from lesion_d2.inference import Linker

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from made_up_volume_lesions import detect, make_dicts

CRITERIA = ("iou@0.1", "p3d@0.3", "iobb@0.5")
NAMES = ("whole", "part0", "part1", "part2")


def _with_key_slices_and_regions(dicts: list[dict], regions: bool) -> list[dict]:
    known = set()
    for d in dicts:
        for a in d["annotations"]:
            a["is_key"] = (d["volume"], a["lesion_id"]) not in known
            known.add((d["volume"], a["lesion_id"]))
        if regions and d["patient"] % 2:
            box = {"bbox": [140.0, 140.0, 190.0, 190.0], "bbox_mode": BoxMode.XYXY_ABS}
            d["annotations"].append({**box, "category_id": 0, "iscrowd": 1})
    return dicts


@pytest.fixture(scope="module", params=[(0.0, False), (0.5, True)], ids=["", "regions"])
def evaluations(request, tmp_path_factory):
    """Of all and of three parts, whose patients are mixed; files of the parts by their names."""
    folder, (pixel, regions) = tmp_path_factory.mktemp("evaluations"), request.param
    dicts = _with_key_slices_and_regions(make_dicts(), regions)
    chosen = {"whole": dicts}
    for k in range(3):
        chosen[f"part{k}"] = [d for d in dicts if d["patient"] % 3 == k]
    assert all(chosen.values())
    results = {}
    for name, own in chosen.items():
        DatasetCatalog.register(name, lambda own=own: own)
        classes = {"thing_classes": ["a", "b", "c"], "evaluator_type": "lesion_volume"}
        MetadataCatalog.get(name).set(**classes, first_pixel=pixel)
        link = Linker("merge", {"iou_threshold": 0.1})
        evaluator = VolumeEvaluator(name, folder / name, link=link, criteria=CRITERIA)
        for d in own:
            lesions = {**d, "annotations": [a for a in d["annotations"] if "lesion_id" in a]}
            evaluator.process([d], [{"instances": detect(lesions)}])
        results[name] = evaluator.evaluate()
    yield results, {name: folder / name / "volumes.json" for name in chosen}
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _read(files, *names):
    return [read_volume_detections(files[name]) for name in names]


def test_parts_together_are_the_whole_to_the_digit(evaluations):
    results, files = evaluations
    combined = combine_evaluations(_read(files, "part2", "part0", "part1"), "whole")
    assert (
        combined.results.keys()
        == results["whole"].keys()
        == {
            "volume",
            "volume_p3d",
            "volume_iobb",
        }
    )

    for task, numbers in results["whole"].items():
        np.testing.assert_equal(dict(combined.results[task]), numbers)
    whole = json.loads(files["whole"].read_text())
    assert (combined.num_lesions, combined.num_volumes) == (whole["lesions"], whole["volumes"])
    assert combined.num_patients == 8 and combined.band is None

    # The mean over the parts would be another number.
    means = [results[name]["volume"]["AP10"] for name in NAMES[1:]]
    assert 0 < results["whole"]["volume"]["AP10"] < 100
    assert abs(np.mean(means) - combined.results["volume"]["AP10"]) > 0.1


def test_a_part_alone_counts_its_own_volumes(evaluations):
    results, files = evaluations
    (part,) = _read(files, "part1")
    np.testing.assert_equal(dict(part.results["volume"]), results["part1"]["volume"])
    combined = combine_evaluations([part], "whole")
    for task, numbers in results["part1"].items():
        np.testing.assert_equal(dict(combined.results[task]), numbers)


def test_intervals_are_those_of_patients_drawn_one_by_one(evaluations):
    results, files = evaluations
    parts = _read(files, *NAMES[1:])
    combined = combine_evaluations(parts, "whole", num_bootstrap=60, seed=5)
    volume = combined.results["volume"]
    assert all(
        volume[f"{name}_low"] <= volume[name] <= volume[f"{name}_high"]
        for name in ("sens@0.5", "sens@4", "mean_sens")
    )
    assert volume["sens@0.5_low"] < volume["sens@0.5_high"]
    rates, low, high = combined.band
    curve = 100 * combined.curve.at(rates)
    assert (100 * low <= curve + 1e-9).mean() > 0.9 and (curve <= 100 * high + 1e-9).mean() > 0.9
    again = combine_evaluations(parts, "whole", num_bootstrap=60, seed=5).results["volume"]
    np.testing.assert_equal(dict(again), dict(volume))
    assert {k: v for k, v in volume.items() if k in results["whole"]["volume"]} == pytest.approx(
        results["whole"]["volume"], nan_ok=True
    )


def test_what_is_not_to_be_combined(evaluations, tmp_path):
    _, files = evaluations
    (first,) = _read(files, "part0")
    with pytest.raises(ValueError, match="found no evaluation, expected at least one"):
        combine_evaluations([], "whole")
    with pytest.raises(ValueError, match="part0: found 2 evaluations, expected one"):
        combine_evaluations([first, first], "whole")
    with pytest.raises(ValueError, match="found in part0 and in whole, expected data sets without"):
        combine_evaluations([first, *_read(files, "whole")], "whole")
    with pytest.raises(ValueError, match=r"part1: found no volume 0000.*expected all of part0"):
        combine_evaluations([first], "part1")
    content = json.loads(files["part1"].read_text())
    content["settings"]["inclusive"] = True
    (tmp_path / "other.json").write_text(json.dumps(content))
    other = read_volume_detections(tmp_path / "other.json")
    with pytest.raises(ValueError, match="found evaluations with inclusive False and True"):
        combine_evaluations([first, other], "whole")


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected an evaluation of volumes"):
        read_volume_detections(tmp_path / "volumes.json")
    for content in ({}, [], {"settings": 3}, {"settings": {}, "dataset": "x", "detections": []}):
        (tmp_path / "volumes.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"volumes\.json: found no readable evaluation of vol"):
            read_volume_detections(tmp_path / "volumes.json")


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ("", "dataset", "gone", "dataset: .*gone"),
        ("", "dataset", [1], r"\(dataset: found \[1\]"),
        ("", "detections", 5, r"\(detections: found 5, expected a list"),
        ("", "operating_points", {}, r"\(operating_points: found no 'points'"),
        ("", "results", {"AP10": "x"}, r"\(results: 'AP10': found 'x', expected a number"),
        ("settings", "inclusive", 1, r"\(settings: inclusive: found 1, expected true or false"),
        ("detection", "score", 1e29, r"\(detections, 0: score: found 1e\+29, expected a number"),
        ("detection", "category_id", None, r"\(detections, 0: category_id: found None"),
        ("detection", "category_id", 8, r"\(detections, 0: category_id: found 8, expected 0 to"),
        ("detection", "box3d", [1, 2], r"\(detections, 0: box3d: found \[1, 2\]"),
        ("detection", "volume", [1], r"\(detections, 0: volume: found \[1\]"),
        ("detection", "key_slices", {"x": [1, 2, 3, 4]}, r"\(detections, 0: key_slices: found"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_key(
    evaluations, tmp_path, place, key, value, message
):
    _, files = evaluations
    content = json.loads(files["part1"].read_text())
    target = content["detections"][0] if place == "detection" else content.get(place, content)
    target[key] = value
    file = tmp_path / "volumes.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"^{file}: .*{message}") as error:
        read_volume_detections(file)
    assert "\n" not in str(error.value)
