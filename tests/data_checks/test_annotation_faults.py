"""Each fault of annotations, planted in a small data set, is found at its place alone."""

from pathlib import Path

from lesion_d2.data_checks import (
    KINDS,
    SHEET_FILE,
    check_data_set,
)

import numpy as np
import pytest
from made_up_slices import SIZE, annotation, found, rle, square

SHARED = Path(__file__).parents[3] / "shared" / "data"


MASK = rle(square(18, 22, 30, 35))
BOXES = {
    "box_outside": annotation(70, 10, 80, 20),
    "box_overhang": annotation(50, 20, 66, 30),
    "bad_box": annotation(-1e308, 20, 1e308, 30),
    "tiny_box": annotation(30, 30, 31.5, 40),
    "unknown_class": annotation(20, 20, 30, 30, category=2),
    "lesion_on_air": annotation(0, 0, 8, 8),
    "mask_box": annotation(30, 22, 44, 35, segmentation=MASK),
    "bad_mask": annotation(18, 22, 30, 35, segmentation=rle(np.zeros((SIZE, SIZE)))),
}


@pytest.mark.parametrize("kind", BOXES)
def test_a_bad_annotation_is_found(sets, kind):
    for number, one in enumerate(sets[0].images[:2] * 10):  # enough lesions for one on air
        moved = annotation(20 + number, 24, 28 + number, 33, category=number % 2)
        one["annotations"].append(moved)
    sets[0].images[3]["annotations"].append({**BOXES[kind], "row": 7})
    report = check_data_set("made", workers=1)
    places = found(report)
    expected = {kind, "lesion_on_air"} if kind == "box_overhang" else {kind}
    assert set(places) <= expected and len(places[kind]) == 1
    assert places[kind][0].startswith("made_train, image train_3, row 7: found ")
    assert report.has_errors == (KINDS[kind].severity == "error")


@pytest.mark.parametrize(
    "mask",
    [
        rle(square(3, 3, 5, 5, size=32)),
        {"size": [SIZE, SIZE], "counts": "_"},
        [[18, 22, 30, 22, 30, 35]],
    ],
    ids=["other size", "no run lengths", "polygon"],
)
def test_a_mask_that_cannot_be_used_is_found(sets, mask):
    sets[1].images[2]["annotations"][0]["segmentation"] = mask
    places = found(check_data_set("made", workers=1))
    assert list(places) == ["bad_mask"]
    assert places["bad_mask"][0].startswith("made_val, image val_2, annotation 1: found ")


def test_a_box_may_have_deeplesions_margin_around_its_mask(sets):
    tiny = square(22, 26, 23, 27)
    sets[0].images[0]["annotations"] = [
        annotation(16.5, 20.5, 28.5, 32.5, segmentation=rle(tiny)),
        annotation(22, 26, 23, 27, segmentation=rle(tiny), category=1),
    ]
    kinds = set(found(check_data_set("made_train", workers=1)))
    assert kinds == {"tiny_box"}


def test_lesions_on_air_spoil_a_training_where_they_are_many(sets):
    for one in sets[0].images[:2]:
        one["annotations"][0]["bbox"] = [1, 1, 8, 8]
    report = check_data_set("made", workers=1)
    assert [fault.kind for fault in report.faults] == ["lesions_on_air"]
    assert report.faults[0].count == 2 and report.has_errors


def test_the_same_lesion_twice_is_found(sets):
    sets[1].images[1]["annotations"].append(annotation(18.2, 22, 30, 35, category=1, row=9))
    report = check_data_set("made", workers=1)
    assert list(found(report)) == ["repeated_lesion"] and not report.has_errors
    assert "image val_1, row 9" in report.faults[0].places[0]


def test_a_region_to_ignore_is_no_lesion(sets):
    sets[0].images[0]["annotations"].append(annotation(0, 0, 8, 8, iscrowd=1))
    report = check_data_set("made", workers=1)
    assert not report.faults
    assert report.counts["made_train"]["ignore_regions"] == 1
    assert report.counts["made_train"]["lesions"] == 6


def test_a_size_unlike_all_others_is_found(sets):
    rng = np.random.default_rng(0)
    for one in sets[0].images:
        one["annotations"] = [
            annotation(10 + i, 20, 20 + i, 30, category=i % 2, diameters_mm=(size, size / 2))
            for i, size in enumerate(rng.lognormal(2.5, 0.6, 5))
        ]
    assert not found(check_data_set("made_train", workers=1))
    sets[0].images[4]["annotations"][2]["diameters_mm"] = (4000.0, 20.0)
    places = found(check_data_set("made_train", workers=1))
    assert list(places) == ["odd_lesion_size"] and len(places["odd_lesion_size"]) == 1
    assert "image train_4: found a lesion of 4e+03 mm" in places["odd_lesion_size"][0]


def test_every_bad_annotation_can_be_drawn(sets, tmp_path):
    bad = {"recist": [1, 2], "diameters_mm": (float("nan"), 1.0)}
    sets[0].images[1]["annotations"] += [*BOXES.values(), annotation(20, 20, 30, 30, **bad)]
    del sets[0].images[2:], sets[1].images[1:]
    output = tmp_path / "out"
    report = check_data_set("made", output=output, workers=1, pictures=2)
    assert {*BOXES, "bad_record"} <= {fault.kind for fault in report.faults}
    assert report.faults[0].kind == "bad_record" and report.faults[0].count == 2
    assert (output / SHEET_FILE).is_file()
