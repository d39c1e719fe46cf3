"""Each kind of fault, planted in a small data set, is found at its place, and nothing else."""

import json
import os
import re
from pathlib import Path

from lesion_d2.data.coco import register_ct_coco
from lesion_d2.data_checks import (
    JSON_FILE,
    KINDS,
    PAGE_FILE,
    SHEET_FILE,
    check_data_set,
    pixels,
)
from lesion_d2.data_checks.fault_log import MAX_PLACES, FaultLog
from lesion_d2.scans.png import read_png_slice

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from made_up_slices import SIZE, MadeUpSet, annotation, body, write_slice
from PIL import Image
from pycocotools import mask as mask_util

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def sets(tmp_path):
    """``made_train`` and ``made_val``, registered: six slices and four, clean, of two classes."""
    made = {
        "made_train": MadeUpSet(tmp_path / "images", "train", 6, 0, classes=2),
        "made_val": MadeUpSet(tmp_path / "images", "val", 4, 100, classes=2),
    }
    for name, one in made.items():
        DatasetCatalog.register(name, lambda one=one: one.images)
        MetadataCatalog.get(name).set(thing_classes=["cyst", "mass"], evaluator_type="lesion")
    yield made["made_train"], made["made_val"]
    for name in made:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def found(report):
    """Kind -> places."""
    return {fault.kind: fault.places for fault in report.faults}


def rle(mask):
    encoded = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def square(x1, y1, x2, y2, size=SIZE):
    """A mask of whole pixels, from the first to the last."""
    mask = np.zeros((size, size), bool)
    mask[y1 : y2 + 1, x1 : x2 + 1] = True
    return mask


def test_a_clean_data_set_has_no_fault(sets):
    for one in sets[0].images:
        one["annotations"][0]["bbox"] = [17.5, 21.5, 30.5, 35.5]
        one["annotations"][0]["segmentation"] = rle(square(18, 22, 30, 35))
    report = check_data_set("made", workers=1)
    assert report.names == ("made_train", "made_val")
    assert not report.faults and not report.has_errors
    assert "no fault found" in report.text()


# --- Annotations ----------------------------------------------------------------------------------

MASK = rle(square(18, 22, 30, 35))
BOXES = {
    "box_outside": annotation(70, 10, 80, 20),
    "box_overhang": annotation(50, 20, 66, 30),
    "bad_box": annotation(20, 20, 20, 30),
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


# --- Files, HU, spacing ---------------------------------------------------------------------------


def _gray(hu):
    return np.clip((hu + 160) / 400 * 255, 0, 255)


def _step(hu):
    hu = hu.copy()
    hu[1::2] = hu[::2]
    return hu


HU = {
    "gray_levels": _gray,
    "no_offset": lambda hu: np.clip(hu + 1024, 0, 4095),
    "no_tissue": lambda hu: hu - 1024,
    "no_air": lambda hu: np.clip(hu, -160, 240),
    "blank_lesion_image": lambda hu: np.full_like(hu, -1024),
}


@pytest.mark.parametrize("kind", HU)
def test_values_that_are_no_hu_are_found(sets, kind):
    sets[0].hu(2, HU[kind])
    if kind in ("blank_lesion_image", "no_tissue"):  # else it is told of as a lesion on air
        sets[0].images[2]["annotations"][0]["iscrowd"] = 1
    places = found(check_data_set("made", workers=1))
    assert list(places) == [kind]
    assert places[kind][0].startswith("made_train, image train_2: found ")


def test_a_flipped_slice_and_another_size_are_found(sets):
    image = sets[1].images[1]
    image.update(height=256, width=256, spacing=(1.25, 1.25, 5.0))
    image["annotations"][0]["bbox"] = [80, 110, 100, 130]
    write_slice(Path(image["file_name"]), body(101, size=256))
    places = found(check_data_set("made", workers=1))
    assert list(places) == ["image_sizes"]
    assert "256 x 256 in made_val, image val_1" in places["image_sizes"][0]
    write_slice(Path(image["file_name"]), body(101, size=256)[::-1])
    places = found(check_data_set("made", workers=1))
    assert list(places) == ["image_sizes", "upside_down"]
    assert places["upside_down"][0].startswith("made_val, image val_1: found bone ")


def test_a_file_that_cannot_be_read_is_found(sets):
    missing, damaged, text, other = (Path(one["file_name"]) for one in sets[0].images[:4])
    missing.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-20])
    text.write_text("no image")
    write_slice(other, body(3, size=48))
    places = found(check_data_set("made", workers=1))
    assert set(places) == {"missing_file", "unreadable_file", "image_size"}
    assert places["missing_file"] == (f"made_train, image train_0: {missing}: no such CT slice",)
    assert [str(damaged) in places["unreadable_file"][0], str(text) in places["unreadable_file"][1]]
    assert "image train_3: found 48 x 48 pixels" in places["image_size"][0]
    report = check_data_set("made", workers=1, allow_missing=True)
    assert {f.kind for f in report.faults if f.severity == "warning"} == {"missing_file"}


SPACINGS = {
    "bad_spacing": (0.0, 0.7, 1.0),
    "odd_spacing": (5.0, 0.7, 0.7),
}


@pytest.mark.parametrize("kind", SPACINGS)
def test_an_odd_spacing_is_found(sets, kind):
    sets[1].images[3]["spacing"] = SPACINGS[kind]
    places = found(check_data_set("made", workers=1))
    assert list(places) == [kind]
    assert places[kind][0].startswith("made_val, image val_3: found ")


def test_an_unknown_spacing_is_counted_and_lesions_are_in_pixels(sets):
    for one in sets[0].images:
        one["spacing"] = None
    report = check_data_set("made_train", workers=1)
    assert not report.faults
    assert report.counts["made_train"]["volumes_without_spacing"] == 6
    assert report.counts["made_train"]["sizes_mm"] is None
    assert report.counts["made_train"]["sizes_pixels"]["range"] == [13.0, 13.0, 13.0]


def test_slices_of_one_volume_go_together(sets):
    for one in sets[0].images:
        one["volume"] = "v1"
        one["annotations"][0]["lesion"] = 1
    write_slice(Path(sets[0].images[1]["file_name"]), body(1, size=48))
    sets[0].images[1].update(height=48, width=48, spacing=(5.0, 5.0, 2.5))
    report = check_data_set("made_train", workers=1)
    places = found(report)
    assert set(places) == {"volume_sizes", "mixed_spacing", "class_missing"}
    assert places["volume_sizes"][0].startswith("made_train, volume v1: found slices of 48 x 48")
    counts = report.counts["made_train"]
    assert (counts["volumes"], counts["images"], counts["lesions"]) == (1, 6, 1)


# --- Copies and splits ----------------------------------------------------------------------------


def test_copies_are_found_by_their_pixels(sets):
    train, val = sets
    # Other bytes, the same pixels: within a split it is a warning, across two an error.
    hu = body(train.images[0]["patient"])
    for index, one in ((4, train), (1, val)):
        file = Path(one.images[index]["file_name"])
        Image.fromarray((hu.astype(np.int32) + 32768).astype(np.uint16)).save(
            file, compress_level=0
        )
        assert file.read_bytes() != Path(train.images[0]["file_name"]).read_bytes()
    report = check_data_set("made", workers=1)
    places = found(report)
    assert set(places) == {"duplicate_image", "image_in_two_splits"}
    assert places["duplicate_image"][0].startswith("made_train, image train_4: found the pixels of")
    assert (
        "made_val, image val_1: found the pixels of made_train, image train_0"
        in (places["image_in_two_splits"][0])
    )


def test_two_names_of_the_same_slices_are_no_copies(sets):
    DatasetCatalog.register("made_extra", lambda: sets[0].images[:2])
    MetadataCatalog.get("made_extra").set(thing_classes=["cyst", "mass"])
    try:
        report = check_data_set(["made_train", "made_extra", "made_val"], workers=1)
    finally:
        DatasetCatalog.remove("made_extra")
        MetadataCatalog.remove("made_extra")
    assert not report.faults
    assert report.counts["made_extra"]["images"] == 2


def test_blank_slices_are_no_copies(sets):
    for index in (0, 1):
        sets[0].hu(index, lambda hu: np.full_like(hu, -1024))
        sets[0].images[index]["annotations"] = []
    places = found(check_data_set("made_train", workers=1))
    assert set(places) == {"blank_image"} and len(places["blank_image"]) == 2


def test_a_patient_in_two_splits_is_found(sets):
    sets[1].images[2]["patient"] = sets[0].images[1]["patient"]
    places = found(check_data_set("made", workers=1))
    assert places == {
        "patient_in_two_splits": (
            "made_val: found patient 1, who is in made_train too, expected another",
        )
    }


@pytest.mark.parametrize(("split", "kind"), [(0, "class_not_trained"), (1, "class_missing")])
def test_a_class_that_a_split_lacks_is_found(sets, split, kind):
    for one in sets[split].images:
        one["annotations"][0]["category_id"] = 0
    report = check_data_set("made", workers=1)
    assert list(found(report)) == [kind] and report.has_errors == (split == 0)
    assert "'mass'" in report.faults[0].places[0]


def test_a_split_without_lesions_is_found(sets):
    for one in sets[1].images:
        one["annotations"] = []
    places = found(check_data_set("made", workers=1))
    assert list(places) == ["no_lesion"] and "made_val" in places["no_lesion"][0]


def test_a_dict_without_what_a_training_reads_is_found(sets):
    del sets[0].images[5]["height"]
    sets[0].images[4]["annotations"] = [[1, 2, 3, 4]]
    places = found(check_data_set("made", workers=1))
    assert places["bad_record"] == (
        "made_train, image 'train_4': found annotations [[1, 2, 3, 4]], expected a list of dicts",
        "made_train, image 'train_5': found no 'height'",
    )


# --- Counts, files, real data ---------------------------------------------------------------------


def test_counts_are_those_of_a_slow_count(tiny_phantom):
    report = check_data_set("phantom_volumes_train", workers=1)
    assert not report.has_errors
    counts, images = (
        report.counts["phantom_volumes_train"],
        DatasetCatalog.get("phantom_volumes_train"),
    )
    lesions = {}
    for image in images:
        for one in image["annotations"]:
            lesions.setdefault((image["volume"], one["lesion"]), []).append(one["diameters_mm"][0])
    sizes = sorted(max(sizes) for sizes in lesions.values())
    values = [np.array(Image.open(image["file_name"])).astype(int) - 32768 for image in images]
    assert counts["lesions"] == len(lesions)
    assert counts["images"] == len(images)
    assert counts["images_without_lesion"] == sum(not image["annotations"] for image in images)
    assert counts["patients"] == len({image["patient"] for image in images})
    assert counts["volumes"] == len({image["volume"] for image in images})
    assert counts["hu"] == [min(v.min() for v in values), max(v.max() for v in values)]
    assert counts["sizes_mm"]["range"] == pytest.approx(
        [sizes[0], np.median(sizes), sizes[-1]], abs=1e-6
    )
    assert sum(counts["sizes_mm"]["histogram"].values()) == len(lesions)
    assert counts["sizes_mm"]["histogram"]["10 to 20"] == sum(10 <= s < 20 for s in sizes)


def test_what_is_read_first_makes_no_difference(sets, monkeypatch):
    for one in sets[0].images[1:4]:
        one["annotations"][0]["bbox"] = [0, 0, 9, 9]
    Path(sets[0].images[5]["file_name"]).write_bytes(b"")
    for one in sets[1].images[:2]:
        write_slice(Path(one["file_name"]), body(0))
    in_order = check_data_set("made", workers=1)
    assert {fault.kind: fault.count for fault in in_order.faults} == {
        "lesions_on_air": 3,
        "unreadable_file": 1,
        "image_in_two_splits": 2,
    }

    def last_first(function, items, _):
        yield from map(function, reversed(items))

    monkeypatch.setattr(pixels, "map_unordered", last_first)
    assert check_data_set("made").to_json() == in_order.to_json()


def test_files_hold_what_was_found(sets, tmp_path):
    sets[0].images[0]["annotations"][0]["segmentation"] = rle(square(18, 22, 30, 35))
    sets[0].images[1]["annotations"][0] = annotation(0, 0, 9, 9, row="<b>&")
    output = tmp_path / "out"
    report = check_data_set("made", output=output, workers=1, pictures=3)
    assert sorted(os.listdir(output)) == sorted([JSON_FILE, SHEET_FILE, PAGE_FILE])
    content = json.loads((output / JSON_FILE).read_text())
    assert content == report.to_json() and content["errors"] == 1
    assert content["faults"][0]["places"] == list(report.faults[0].places)
    sheet = np.array(Image.open(output / SHEET_FILE))
    assert sheet.shape[1] > 3 * 512 and (sheet == (255, 230, 0)).all(axis=2).any()
    page = (output / PAGE_FILE).read_text()
    assert "row &lt;b&gt;&amp;" in page and "<b>" not in page
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page
    check_data_set("made", output=output, workers=1, pictures=0)
    assert sorted(os.listdir(output)) == sorted([JSON_FILE, PAGE_FILE])


def test_every_bad_annotation_can_be_drawn(sets, tmp_path):
    bad = {"recist": [1, 2], "diameters_mm": (float("nan"), 1.0)}
    sets[0].images[1]["annotations"] += [*BOXES.values(), annotation(20, 20, 30, 30, **bad)]
    del sets[0].images[2:], sets[1].images[1:]
    output = tmp_path / "out"
    report = check_data_set("made", output=output, workers=1, pictures=2)
    assert {*BOXES, "bad_record"} <= {fault.kind for fault in report.faults}
    assert report.faults[0].kind == "bad_record" and report.faults[0].count == 2
    assert (output / SHEET_FILE).is_file()


def test_a_log_keeps_the_first_places_in_any_order():
    logs = FaultLog(), FaultLog()
    numbers = np.random.default_rng(0).permutation(100).tolist()
    for log, order in zip(logs, (range(100), numbers), strict=True):
        for number in order:
            log.add("tiny_box", f"image {number}\n", number)
    assert logs[0].faults() == logs[1].faults()
    (fault,) = logs[1].faults()
    assert fault.count == 100
    assert fault.places == tuple(f"image {n}" for n in range(MAX_PLACES))


def test_every_kind_is_told_of_in_the_readme():
    text = (Path(__file__).parents[2] / "datasets" / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (error|warning) \| ([^|]+?) \| [^|]+ \|$", text, re.M)
    assert rows == [(name, *kind) for name, kind in KINDS.items()]


@pytest.mark.skipif(not (SHARED / "deeplesion_sample").is_dir(), reason="no real slices here")
def test_real_slices_have_no_fault(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(SHARED))
    report = check_data_set("deeplesion_sample", workers=1)
    assert not report.faults
    assert report.counts["deeplesion_sample"]["lesions"] == 4


@pytest.mark.skipif(not (SHARED / "liver_slices").is_dir(), reason="no real slices here")
def test_real_slices_upside_down_are_found(sets):
    files = sorted((SHARED / "liver_slices" / "images").glob("*.png"))[:6]
    for one, file in zip(sets[0].images, files, strict=True):
        write_slice(Path(one["file_name"]), read_png_slice(file)[::-1])
        one.update(height=512, width=512, spacing=(0.8, 0.8, 5.0))
        one["annotations"][0]["bbox"] = [200, 200, 300, 300]
    places = found(check_data_set("made_train", workers=1))
    assert list(places) == ["upside_down"] and len(places["upside_down"]) == 6


@pytest.mark.skipif(not (SHARED / "liver_slices").is_dir(), reason="no real slices here")
def test_real_boxes_alone_have_no_fault():
    root = SHARED / "liver_slices"
    options = {"hu_offset": 32768, "patient": r"(\d+)_"}
    register_ct_coco("liver_checked", root / "annotations.json", root, **options)
    try:
        report = check_data_set("liver_checked", workers=1)
    finally:
        DatasetCatalog.remove("liver_checked")
        MetadataCatalog.remove("liver_checked")
    assert not report.faults
    counts = report.counts["liver_checked"]
    assert counts["patients"] == 11 and counts["lesions"] == 24
