"""Pictures of hard negatives."""

import json

from lesion_d2.tools.visualize.__main__ import main
from lesion_d2.tools.visualize.negatives import MinedImage, pick_mined
from lesion_d2.tools.visualize.results import HARD_NEGATIVE, read_results
from lesion_d2.visualization import (
    FALSE_POSITIVE_COLOR,
    TRUTH_COLOR,
)

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Instances
from made_up_results import NAME, SIZE, run_predictions, write_results


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
    for record in records:
        record["hidden_annotations"] = [hidden] if record is two else []
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
        ([], "found no hard negative"),
        ([NEGATIVE, {k: NEGATIVE[k] for k in ("image_id", "bbox", "score")}], "no 'segmentation'"),
        ([{k: v for k, v in NEGATIVE.items() if k != "mask_iou"}], "entry 0: found no 'mask_iou'"),
        ([{**NEGATIVE, "mask_iou": None}], "entry 0: mask_iou: found None, expected a number"),
        ([{**NEGATIVE, "box_iou": "no"}], "entry 0: box_iou: found 'no', expected a number"),
        (
            [{**NEGATIVE, "image_id": "else"}],
            "entry 0: found image 'else', expected an image of data",
        ),
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
