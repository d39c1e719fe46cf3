import json
import math
from pathlib import Path

from lesion_d2.data.deeplesion.key_slices import register_deeplesion
from lesion_d2.data.phantoms.phantom import write_phantom
from lesion_d2.tools.visualize.__main__ import main
from lesion_d2.tools.visualize.dataset import mask_source
from lesion_d2.tools.visualize.pictures import names_of_pictures
from lesion_d2.tools.visualize.predictions import pick_notes, pick_outcomes, threshold_at_fps
from lesion_d2.tools.visualize.results import read_results
from lesion_d2.visualization import (
    TRUTH_COLOR,
    ImageOutcome,
    match_outcome,
)

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from made_up_results import LESIONS, NAME, SIZE, run_predictions, write_results


def test_dataset_pictures_of_the_first_images(records, tmp_path, capsys):
    output = tmp_path / "pictures"
    arguments = ["--output", str(output), "--pick", "first", "--num", "2", "--masks", "ellipse"]
    assert main(["dataset", "--dataset", NAME, *arguments]) == 0
    paths = capsys.readouterr().out.split()
    assert paths == [str(output / n) for n in ("one.png", "two.png", "contact_sheet.png")]
    white = ["--style", "paper", *arguments[2:], "--output", str(tmp_path / "white")]
    assert main(["dataset", "--dataset", NAME, *white]) == 0
    for path in capsys.readouterr().out.split():
        assert (cv2.imread(path)[:2] == 255).all()
    picture = cv2.imread(paths[0])[:, :, ::-1]
    assert (np.abs(picture - 255 * np.array(TRUTH_COLOR)) < 40).all(axis=2).any()
    assert picture.shape[1] == 1024 + 16
    assert cv2.imread(paths[2]).shape[1] == 2 * 512 + 3 * 8


@pytest.mark.usefixtures("small_pictures")
@pytest.mark.parametrize("masks", ["none", "grabcut"])
def test_random_dataset_pictures_follow_the_seed(records, tmp_path, capsys, masks):
    written = []
    for folder in ("a", "b"):
        arguments = ["--output", str(tmp_path / folder), "--num", "2", "--masks", masks, "--zoom"]
        assert main(["dataset", "--dataset", NAME, "--seed", "3", *arguments]) == 0
        names = [path.rsplit("/", 1)[1] for path in capsys.readouterr().out.split()]
        written.append((names, [(tmp_path / folder / n).read_bytes() for n in names]))
    assert written[0] == written[1]
    assert len(set(written[0][0])) == 3


def test_masks_of_the_data_set_go_before_pseudo_masks(records):
    corner = np.zeros((SIZE, SIZE), np.uint8, order="F")
    corner[2:5, 3:9] = 1
    records[1]["annotations"][0]["segmentation"] = mask_util.encode(corner)
    del records[1]["annotations"][0]["recist"]  # as the toys, which have none
    own, computed = mask_source("ellipse")(records[1])
    np.testing.assert_array_equal(own, corner > 0)
    assert computed[40:52, 40:56].any() and computed.dtype == own.dtype == bool


@pytest.mark.usefixtures("small_pictures")
def test_pictures_of_predictions_go_beside_the_results(records, tmp_path, capsys):
    detections = [("one", (8, 8, 24, 24), 0.9), ("two", (8, 8, 24, 24), 0.8)]
    detections += [("two", (30, 30, 38, 38), 0.7), ("none", (1, 1, 9, 9), 0.2)]
    results = write_results(tmp_path / "run" / "results.json", detections)
    assert run_predictions(results, "--num", "1", "--score-threshold", "0.3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "score threshold 0.300: 2 of 3 lesions found at 0.33 false positives per image, 3 images"
    )
    folder = tmp_path / "run" / "pictures"
    names = ["best_01_one.png", "worst_01_two.png", "random_01_none.png", "contact_sheet.png"]
    assert lines[1:] == [str(folder / name) for name in names]
    assert sorted(names) == sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("small_pictures")
def test_pictures_of_an_earlier_call_are_removed(records, tmp_path):
    detections = [("one", (8, 8, 24, 24), 0.9), ("none", (1, 1, 9, 9), 0.2)]
    results = write_results(tmp_path / "run" / "results.json", detections)
    folder = tmp_path / "run" / "pictures"
    assert run_predictions(results, "--num", "1") == 0
    assert len(list(folder.iterdir())) == 4
    (folder / "best_of_mine.png").touch()
    assert run_predictions(results, "--num", "1", "--pick", "worst") == 0
    names = ["best_of_mine.png", "contact_sheet.png", "worst_01_none.png"]
    assert sorted(p.name for p in folder.iterdir()) == names
    output = ["--output", str(folder), "--pick", "first"]
    for num, pictures in ((3, ["none.png", "one.png", "two.png"]), (1, ["one.png"])):
        assert main(["dataset", "--dataset", NAME, "--num", str(num), *output]) == 0
        assert sorted(p.name for p in folder.iterdir()) == sorted([*names, *pictures])


def test_slices_are_not_replaced_by_pictures(records, tmp_path, capsys):
    before = (tmp_path / "one.png").read_bytes()
    assert main(["dataset", "--dataset", NAME, "--output", str(tmp_path)]) == 1
    assert f"found slices of {NAME}, expected another folder" in capsys.readouterr().err
    assert (tmp_path / "one.png").read_bytes() == before


@pytest.mark.usefixtures("small_pictures")
def test_without_a_threshold_the_run_has_the_wanted_rate(records, tmp_path, capsys):
    boxes = [(30, 2, 38, 10), (30, 14, 38, 22), (30, 26, 38, 34), (2, 50, 10, 58)]
    detections = [("two", box, 0.9 - 0.2 * i) for i, box in enumerate(boxes)]
    detections.append(("one", (8, 8, 24, 24), 0.45))
    results = write_results(tmp_path / "results.json", detections)
    assert run_predictions(results, "--num", "1", "--fps-per-image", "0.7") == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "0 of 3 lesions found at 0.67 false positives per image" in line
    assert run_predictions(results, "--num", "1") == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "1 of 3 lesions found at 1.00 false positives per image" in line


@pytest.mark.usefixtures("small_pictures")
@pytest.mark.parametrize("inclusive", [False, True])
def test_boxes_count_as_in_the_evaluation(records, tmp_path, capsys, inclusive):
    # Of 16 x 16 pixels 16 x 7.9: less than half, but 17 x 8.9 of 17 x 17.
    results = write_results(tmp_path / "results.json", [("one", (8, 8, 24, 15.9), 0.9)])
    table = {
        "dataset": NAME,
        "rows": [{"stratum": "all lesions", "lesions": 1, "mean_sens": 0.0}],
        "settings": {"inclusive": inclusive},
    }
    (tmp_path / "froc.json").write_text(json.dumps(table))
    assert run_predictions(results, "--num", "1", "--score-threshold", "0.5") == 0
    found, rate = (1, "0.00") if inclusive else (0, "0.33")
    line = capsys.readouterr().out.splitlines()[0]
    assert f"{found} of 3 lesions found at {rate} false positives per image" in line


def random_outcomes(rng, num_images=12):
    outcomes = []
    for i in range(num_images):
        corners = rng.integers(0, 40, (9, 2))
        boxes = np.concatenate([corners, corners + rng.integers(6, 24, (9, 2))], axis=1)
        predictions = Instances((SIZE, SIZE))
        predictions.pred_boxes = Boxes(torch.as_tensor(boxes[:7], dtype=torch.float32))
        predictions.scores = torch.as_tensor(rng.integers(1, 20, 7) / 20).float()
        record = {
            "image_id": str(i),
            "annotations": [{"bbox": box.tolist(), "bbox_mode": 0} for box in boxes[6:]],
        }
        outcomes.append(match_outcome(record, predictions))
    return outcomes


def test_threshold_keeps_as_many_detections_as_the_rate_allows():
    rng = np.random.default_rng(0)
    for rate in (0.0, 0.5, 1.0, 2.5, 5.0, 100.0):
        outcomes = random_outcomes(rng)
        scores = np.concatenate([o.predictions.scores.numpy() for o in outcomes])
        false = np.concatenate([o.is_false_positive for o in outcomes])
        threshold = threshold_at_fps(outcomes, rate)
        best = 0
        for candidate in sorted(scores):  # the most detections that a loop may keep
            kept = scores >= candidate
            if (kept & false).sum() <= rate * len(outcomes):
                best = kept.sum()
                break
        assert (scores >= threshold).sum() == best
        again = [
            match_outcome(o.record, o.predictions, score_threshold=threshold) for o in outcomes
        ]
        assert sum(o.is_false_positive.sum() for o in again) <= rate * len(outcomes)


def outcome(name, quality, false_positives=0, *, is_found=True):
    wrong = np.ones(false_positives, bool)
    return ImageOutcome(
        record={"image_id": name},
        predictions=None,
        is_hit=~wrong,
        is_false_positive=wrong,
        is_repeat=~wrong,
        is_found=np.array([is_found]),
        quality=quality,
    )


def test_picks_are_ordered_and_never_twice():
    qualities = {"a": 0.2, "b": 0.9, "c": float("nan"), "d": 0.5, "e": 0.0}
    outcomes = [outcome(name, quality) for name, quality in qualities.items()]
    chosen = pick_outcomes(outcomes, ["best", "worst", "random"], 2, seed=1)
    names = [(pick, o.record["image_id"]) for pick, o in chosen]
    assert names == [("best", n) for n in "bd"] + [("worst", n) for n in "ea"] + [("random", "c")]
    alone = [o.record["image_id"] for _, o in pick_outcomes(outcomes, ["random"], 5, seed=1)]
    assert sorted(alone) == list("abcde")
    assert alone == [
        o.record["image_id"] for _, o in pick_outcomes(outcomes, ["random"], 9, seed=1)
    ]
    assert alone != [
        o.record["image_id"] for _, o in pick_outcomes(outcomes, ["random"], 5, seed=2)
    ]


def test_equal_quality_is_ordered_by_false_positives():
    outcomes = [outcome("a", 0.0, 1), outcome("b", 0.0, 3), outcome("c", 0.0, 0)]
    for pick, expected in (("best", "cab"), ("worst", "bac")):
        chosen = pick_outcomes(outcomes, [pick], 3)
        assert "".join(o.record["image_id"] for _, o in chosen) == expected


def test_an_image_with_a_missed_lesion_is_never_best():
    outcomes = [outcome("a", 0.9, is_found=False), outcome("b", 0.2), outcome("c", 0.1)]
    for picks, expected in ((["best"], "bc"), (["best", "worst"], "bca")):
        chosen = pick_outcomes(outcomes, picks, 3)
        assert "".join(o.record["image_id"] for _, o in chosen) == expected


def test_the_rules_stand_below_the_sheet():
    rules, quality = pick_notes({"best": 0, "worst": 2})
    assert rules.startswith("Best: all lesions were found") and "Worst: the quality" in rules
    assert rules.endswith("None is best: there is no other image that fits the rule.")
    assert quality.startswith("Quality: the highest IoU x score")
    assert pick_notes({"random": 1}, "volume") == ["Random: drawn from all others."]


@pytest.mark.parametrize(("picks", "num"), [(["nicest"], 1), (["best"], 0)])
def test_invalid_picks_are_refused(picks, num):
    with pytest.raises(ValueError, match="expected"):
        pick_outcomes([outcome("a", 1.0)], picks, num)


def test_pictures_stay_in_their_folder_whatever_images_are_called():
    records = [{"image_id": name} for name in (5, "a*", "../../a", "/a/b", "a\0")]
    assert names_of_pictures(records) == [
        "5.png",
        "a[*].png",
        ".._.._a.png",
        "_a_b.png",
        "a_.png",
    ]


def test_results_become_instances_of_every_image(records, tmp_path):
    path = write_results(tmp_path / "r.json", [("two", (10, 20, 40, 60), 0.5)])
    results = read_results(path, records, NAME)
    assert list(results) == list(LESIONS)
    assert results["two"].pred_boxes.tensor.tolist() == [[10, 20, 40, 60]]
    assert results["two"].scores.tolist() == [0.5]
    assert len(results["one"]) == len(results["none"]) == 0


GOOD = {"image_id": "one", "category_id": 0, "bbox": [1, 1, 5, 5], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file, expected the results of a run"),
        ("{broken", "found no readable JSON"),
        (json.dumps({"froc": {}}), "found a dict, expected a list"),
        (json.dumps([GOOD, 7]), "entry 1: found 7, expected an object with image_id"),
        (
            json.dumps([{**GOOD, "image_id": "else"}]),
            "entry 0: found image 'else', expected an image of data",
        ),
        (
            json.dumps([GOOD, {"image_id": "one", "bbox": [1, 1, 5, 5]}]),
            "entry 1: found no 'score'",
        ),
        (
            json.dumps([{**GOOD, "bbox": [1, 2, 3]}]),
            "entry 0: bbox: found [1, 2, 3], expected x, y",
        ),
        (
            json.dumps([{**GOOD, "score": "high"}]),
            "entry 0: score: found 'high', expected a number",
        ),
    ],
)
def test_bad_results_are_one_line(records, tmp_path, capsys, content, message):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert run_predictions(str(path)) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith(f"error: {path}: ") and message in error[0]
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[
            ({"score": value}, "score: found")
            for value in (1e29, None, math.nan, "x", [1], 10**400)
        ],
        *[({"category_id": value}, "category_id: found") for value in (None, 1e29, -1, 7, "0", [])],
        *[({"image_id": value}, "image_id: found") for value in ([1], None, {}, 1.5, "\n")],
        *[
            ({"bbox": value}, "bbox: found")
            for value in (5, None, {}, [[]], [1, 2, 3, -1], [1, 2, 3, 1e29], [1, 2, math.inf, 4])
        ],
        *[
            ({"segmentation": {"size": size, "counts": "00"}}, "segmentation: found a mask of")
            for size in ("x", [-1, 3], [100_000, 100_000], [math.nan, 64], [1e29, 1e29], [9, 9])
        ],
        ({"segmentation": {"size": [64, 64], "counts": "n0i03"}}, "segmentation: found an RLE"),
        (
            {"segmentation": {"size": [64, 64], "counts": [4096]}},
            "segmentation: found the mask counts",
        ),
    ],
)
def test_results_are_told_of_by_entry_and_key(records, tmp_path, change, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD, {**GOOD, **change}]))
    with pytest.raises(ValueError, match=f"results.json: entry 1: {message}") as error:
        read_results(str(path), records, NAME)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "phantom_tset"], "data set 'phantom_tset', which is not registered"),
        (["--dataset", NAME, "--window", "240", "-160"], "window: found '240 -160'"),
        (["--dataset", NAME, "--masks", "missing.json"], "missing.json"),
    ],
)
def test_bad_arguments_are_one_line(records, tmp_path, capsys, arguments, message):
    assert main(["dataset", "--output", str(tmp_path / "out"), *arguments]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and message in error[0]


def test_a_missing_slice_is_one_line(records, tmp_path, capsys):
    (tmp_path / "one.png").unlink()
    arguments = ["--output", str(tmp_path / "out"), "--pick", "first"]
    assert main(["dataset", "--dataset", NAME, *arguments]) == 1
    errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
    assert len(errors) == 1 and "one.png" in errors[0]


@pytest.mark.usefixtures("small_pictures")
def test_images_without_files_can_be_left_out(tmp_path, capsys):
    root, name = tmp_path / "phantom", f"{NAME}_missing"
    write_phantom(root, num_patients=3, size=64, extent_mm=0, workers=1)
    register_deeplesion(name, str(root), None)
    try:
        first, second = DatasetCatalog.get(name)[:2]
        Path(first["file_name"]).unlink()
        output = ["--output", str(tmp_path / "out"), "--pick", "first", "--num", "1"]
        assert main(["dataset", "--dataset", name, *output]) == 1
        assert first["file_name"] in capsys.readouterr().err
        assert main(["dataset", "--dataset", name, *output, "--allow-missing"]) == 0
        assert f"{second['image_id']}.png" in capsys.readouterr().out
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
