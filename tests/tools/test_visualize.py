import json
import math
from pathlib import Path

from lesion_d2.data.deeplesion import register_deeplesion
from lesion_d2.data.phantom import write_phantom
from lesion_d2.tools.visualize.__main__ import main
from lesion_d2.tools.visualize.dataset import mask_source
from lesion_d2.tools.visualize.negatives import MinedImage, pick_mined
from lesion_d2.tools.visualize.pictures import names_of_pictures
from lesion_d2.tools.visualize.predictions import pick_notes, pick_outcomes, threshold_at_fps
from lesion_d2.tools.visualize.results import HARD_NEGATIVE, read_results
from lesion_d2.visualization import (
    FALSE_POSITIVE_COLOR,
    TRUTH_COLOR,
    ImageOutcome,
    judge,
)

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

NAME = "visualize_test_set"
SIZE = 64
# image id: lesion boxes
LESIONS = {"one": [(8, 8, 24, 24)], "two": [(8, 8, 24, 24), (40, 40, 56, 52)], "none": []}


def make_record(image_id, boxes, folder):
    annotations = []
    for row, (x0, y0, x1, y1) in enumerate(boxes, start=2):
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        recist = [x0 + 2, y, x1 - 2, y, x, y0 + 4, x, y1 - 4]
        annotations.append(
            {"bbox": [x0, y0, x1, y1], "bbox_mode": 0, "category_id": 0, "recist": recist}
            | {"diameters_mm": (x1 - x0 - 4, y1 - y0 - 8), "row": row, "coarse_type": -1}
        )
    return {
        "image_id": image_id,
        "file_name": str(folder / f"{image_id}.png"),
        "height": SIZE,
        "width": SIZE,
        "window": (-100.0, 100.0),
        "annotations": annotations,
    }


@pytest.fixture
def records(tmp_path):
    """A registered data set of three small slices."""
    made = [make_record(image_id, boxes, tmp_path) for image_id, boxes in LESIONS.items()]
    for record in made:
        hu = np.full((SIZE, SIZE), -50)
        for a in record["annotations"]:
            x0, y0, x1, y1 = a["bbox"]
            hu[y0 + 4 : y1 - 4, x0 + 3 : x1 - 3] = 60
        cv2.imwrite(record["file_name"], (hu + 32768).astype(np.uint16))
    DatasetCatalog.register(NAME, lambda: made)
    MetadataCatalog.get(NAME).set(thing_classes=["lesion"])
    yield made
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def write_results(path, detections):
    """detections: (image id, box XYXY, score)."""
    entries = []
    for image_id, (x0, y0, x1, y1), score in detections:
        box = [x0, y0, x1 - x0, y1 - y0]
        entries.append({"image_id": image_id, "category_id": 0, "bbox": box, "score": score})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))
    return str(path)


def run_predictions(results, *arguments):
    return main(["predictions", "--dataset", NAME, "--results", results, *arguments])


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
    assert f"holds slices of {NAME}, expected another folder" in capsys.readouterr().err
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
        outcomes.append(judge(record, predictions))
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
        again = [judge(o.record, o.predictions, score_threshold=threshold) for o in outcomes]
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
def test_bad_picks(picks, num):
    with pytest.raises(ValueError, match="expected"):
        pick_outcomes([outcome("a", 1.0)], picks, num)


def negative(image_id, box, score, mask_iou=0.0, margin=2):
    """An entry of hard_negatives.json, whose mask is the box less a margin."""
    x0, y0, x1, y1 = box
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[y0 + margin : y1 - margin, x0 + margin : x1 - margin] = 1
    rle = {"size": [SIZE, SIZE], "counts": mask_util.encode(mask)["counts"].decode()}
    entry = {"image_id": image_id, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
    return {**entry, "score": score, "segmentation": rle, "mask_iou": mask_iou}


def write_negatives(folder, entries):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "hard_negatives.json"
    path.write_text(json.dumps(entries))
    return str(path)


def run_negatives(results, *arguments):
    return main(["negatives", "--dataset", NAME, "--results", results, *arguments])


def tinted(page, color, gray):
    """Pixels of the slice that a whole mask covers, by the page's color, (64, 64) bool."""
    picture = cv2.imread(str(page))[40 : 40 + 16 * SIZE, 8 : 8 + 16 * SIZE, ::-1]
    expected = 0.7 * gray + 0.3 * 255 * np.asarray(color)
    found = (np.abs(picture - expected) <= 2).all(axis=2)
    return found.reshape(SIZE, 16, SIZE, 16).mean(axis=(1, 3)) > 0.5


@pytest.mark.usefixtures("small_pictures")
def test_pictures_of_hard_negatives_go_to_a_folder_of_their_own(records, tmp_path, capsys):
    entries = [negative("none", (2, 2, 14, 14), 0.8), negative("two", (30, 2, 42, 14), 0.9, 0.1)]
    entries.append(negative("none", (40, 20, 60, 30), 0.75))
    path = write_negatives(tmp_path / "run", entries)
    results = write_results(tmp_path / "run" / "results.json", [("one", (8, 8, 24, 24), 0.9)])
    assert run_predictions(results, "--num", "1") == 0
    pictures = sorted(p.name for p in (tmp_path / "run" / "pictures").iterdir())
    capsys.readouterr()
    assert run_negatives(path) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = tmp_path / "run" / "hard_negatives"
    assert lines[0] == "3 hard negatives on 2 of 3 images"
    names = ["none.png", "two.png", "contact_sheet.png"]  # the most first
    assert lines[1:] == [str(folder / name) for name in names]
    assert sorted(p.name for p in (tmp_path / "run" / "pictures").iterdir()) == pictures
    assert run_negatives(path, "--num", "1") == 0
    assert sorted(p.name for p in folder.iterdir()) == ["contact_sheet.png", "none.png"]


@pytest.mark.usefixtures("small_pictures")
def test_hard_negatives_on_hidden_lesions_are_counted(records, tmp_path, capsys):
    two = next(record for record in records if len(record["annotations"]) == 2)
    hidden = two["annotations"].pop()
    two["hidden_annotations"] = [hidden]
    x0, y0, x1, y1 = hidden["bbox"]
    boxes = [(x0, y0, x1, y1 - 1), (x1 + 1, y0, x1 + 8, y1)]
    path = write_negatives(tmp_path, [negative(two["image_id"], box, 0.9) for box in boxes])
    assert run_negatives(path) == 0
    assert capsys.readouterr().out.splitlines()[0] == "2 hard negatives on 1 of 3 images"
    assert run_negatives(path, "--hidden-share", "0.5") == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("2 hard negatives on 1 of 3 images; 1 of them have an IoU of 0.5")
    assert run_negatives(path, "--hidden-share", "1.5") == 1
    assert "found a hidden share of 1.5, expected one in [0, 1)" in capsys.readouterr().err


@pytest.mark.usefixtures("small_pictures")
def test_hard_negatives_of_a_model_without_masks(records, tmp_path, capsys):
    boxes = {"none": (2, 2, 14, 14), "two": (30, 2, 42, 14)}
    entries = [negative(name, box, 0.8) for name, box in boxes.items()]
    for entry, box_iou in zip(entries, (0.0, 0.25), strict=True):
        del entry["segmentation"], entry["mask_iou"]
        entry["box_iou"] = box_iou
    path = write_negatives(tmp_path, entries)
    read = read_results(path, records, NAME, required=HARD_NEGATIVE)
    assert read["two"].lesion_ious.tolist() == [0.25] and not read["two"].has("pred_masks_rle")
    assert run_negatives(path, "--masks", "none") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 hard negatives on 2 of 3 images" and len(lines) == 4


@pytest.mark.parametrize("masks", ["ellipse", "none"])
def test_masks_of_negatives_and_lesions_lie_where_they_are(records, tmp_path, masks):
    path = write_negatives(tmp_path, [negative("one", (30, 40, 50, 54), 0.9, margin=4)])
    assert run_negatives(path, "--masks", masks, "--output", str(tmp_path / "out")) == 0
    page = tmp_path / "out" / "one.png"
    red = tinted(page, FALSE_POSITIVE_COLOR, 255 * 50 / 200)
    expected = np.zeros((SIZE, SIZE), bool)
    expected[44:50, 34:46] = True
    assert (red == expected).all()
    green = tinted(page, TRUTH_COLOR, 255 * 160 / 200)
    assert green.any() == (masks == "ellipse")
    lesion = np.zeros((SIZE, SIZE), bool)
    lesion[12:21, 11:21] = True  # its bright pixels and the ellipse's
    assert not (green & ~lesion).any()


def test_images_with_the_most_negatives_come_first():
    def image(name, *scores):
        negatives = Instances((SIZE, SIZE))
        negatives.scores = torch.tensor(scores)
        return MinedImage({"image_id": name}, negatives)

    mined = [image("a", 0.99), image("b", 0.5, 0.5), image("c", 0.6, 0.5), image("d", 0.3, 0.8)]

    def picked(*arguments, **options):
        return "".join(i.record["image_id"] for i in pick_mined(mined, *arguments, **options))

    assert picked("most", 9) == "cdba"  # c and d have the same sum
    assert picked("most", 2) == "cd"
    orders = {picked("random", 4, seed=seed) for seed in range(20)}
    assert len(orders) > 5 and {"".join(sorted(order)) for order in orders} == {"abcd"}
    assert picked("random", 2, seed=3) == picked("random", 2, seed=3)
    assert mined[0].title() == "a\n1 hard negative" and mined[1].title() == "b\n2 hard negatives"


NEGATIVE = negative("one", (1, 1, 9, 9), 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no hard negative"),
        ([NEGATIVE, {k: NEGATIVE[k] for k in ("image_id", "bbox", "score")}], "no 'segmentation'"),
        ([{k: v for k, v in NEGATIVE.items() if k != "mask_iou"}], "entry 0: found no 'mask_iou'"),
        ([{**NEGATIVE, "mask_iou": None}], "entry 0: mask_iou: found None, expected a number"),
        ([{**NEGATIVE, "box_iou": "no"}], "entry 0: box_iou: found 'no', expected a number"),
        ([{**NEGATIVE, "image_id": "else"}], "entry 0 is of image 'else', which data set"),
        (
            [{**NEGATIVE, "segmentation": {"size": [9, 9], "counts": "1"}}],
            "entry 0: segmentation: found a mask of [9, 9] pixels (height, width), expected [64",
        ),
        (
            [{**NEGATIVE, "segmentation": [[1, 2, 3]]}],
            "entry 0: segmentation: found the mask [[1, 2, 3]]",
        ),
    ],
)
def test_bad_hard_negatives_are_one_line(records, tmp_path, capsys, content, message):
    path = write_negatives(tmp_path, content)
    assert run_negatives(path) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith(f"error: {path}: ") and message in error[0]
    assert not (tmp_path / "hard_negatives").exists()


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
        (json.dumps({"froc": {}}), "holds a dict, expected a list"),
        (json.dumps([GOOD, 7]), "entry 1: found 7, expected an object with image_id"),
        (json.dumps([{**GOOD, "image_id": "else"}]), "entry 0 is of image 'else', which data set"),
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
        ({"segmentation": {"size": [64, 64], "counts": [4096]}}, "segmentation: found counts"),
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
        (["--dataset", "phantom_tset"], "data set 'phantom_tset' is not registered"),
        (["--dataset", NAME, "--window", "240", "-160"], "window is '240 -160'"),
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
