"""Each fault of files, of HU and between splits, planted, is found at its place alone."""

from pathlib import Path

from lesion_d2.data.dict_rules import check_dicts
from lesion_d2.data_checks import check_data_set
from lesion_d2.scans.png import read_png_slice

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from made_up_slices import body, found, write_slice
from PIL import Image

SHARED = Path(__file__).parents[3] / "shared" / "data"


def _gray(hu):
    return np.clip((hu + 160) / 400 * 255, 0, 255)


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
        one["annotations"][0]["lesion_id"] = 1
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


def test_many_copies_are_told_of_each_with_the_first(sets):
    train, val = sets
    train.images[1:] = [{**train.images[0], "image_id": f"copy_{i}"} for i in range(20)]
    val.images[1:] = [{**train.images[0], "image_id": i} for i in range(10)]
    report = check_data_set("made", workers=1)
    counts = {fault.kind: fault.count for fault in report.faults}
    assert counts["duplicate_image"] == 20 and counts["image_in_two_splits"] == 10
    for place in found(report)["image_in_two_splits"]:
        assert "found the pixels of made_train, image train_0" in place


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


def test_a_data_set_may_be_called_by_the_name_of_a_split(sets):
    sets[1].images[2]["patient"] = sets[0].images[1]["patient"]
    write_slice(Path(sets[1].images[0]["file_name"]), body(0))
    names = {"lung_test_train": sets[0], "lung_test_test": sets[1]}
    for name, one in names.items():
        DatasetCatalog.register(name, lambda one=one: one.images)
    try:
        report = check_data_set("lung_test", workers=1)
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)
    assert report.names == tuple(names)
    assert set(found(report)) == {"image_in_two_splits", "patient_in_two_splits"}


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
    sets[0].images[3]["image_id"] = "train_2"
    places = found(check_data_set("made", workers=1))
    assert places["bad_record"] == (
        "made_train, image 'train_4': found annotations [[1, 2, 3, 4]], expected a list of dicts",
        "made_train, image 'train_5': found no 'height'",
        "made_train, image 'train_2': found its image_id 2 times, expected one of its own",
    )


def test_what_a_training_refuses_is_found(sets):
    images = sets[0].images
    images[0]["slice_range"] = "1 to 3"
    images[1]["annotations"][0]["iscrowd"] = 2
    images[2]["volume"] = ["a"]
    images[3]["annotations"][0]["segmentation"] = None
    images[4]["annotations"][0]["recist"] = None
    found_by_training = []
    for image in images[:5]:
        with pytest.raises(ValueError) as raised:
            check_dicts([image], ["cyst", "mass"], with_masks=True)
        found_by_training.append(str(raised.value))
    places = found(check_data_set("made_train", workers=1))

    assert set(places) == {"bad_record", "bad_mask"}
    assert sorted(place.partition(", ")[2] for place in places["bad_record"]) == [
        "image 'train_0': found slice_range '1 to 3', expected the first and last slice, or None",
        "image 'train_1': annotation 1: found iscrowd 2, expected 1 (to be ignored) or 0",
        "image 'train_2': found volume ['a'], expected text or a number",
        "image train_4, annotation 1: found recist None, expected 8 finite numbers, or no such key",
    ]
    for place in places["bad_record"]:
        fault = place[place.index("found ") :]
        assert any(fault in text for text in found_by_training)


@pytest.mark.skipif(not (SHARED / "liver_slices").is_dir(), reason="no real slices here")
def test_real_slices_upside_down_are_found(sets):
    files = sorted((SHARED / "liver_slices" / "images").glob("*.png"))[:6]
    for one, file in zip(sets[0].images, files, strict=True):
        write_slice(Path(one["file_name"]), read_png_slice(file)[::-1])
        one.update(height=512, width=512, spacing=(0.8, 0.8, 5.0))
        one["annotations"][0]["bbox"] = [200, 200, 300, 300]
    places = found(check_data_set("made_train", workers=1))
    assert list(places) == ["upside_down"] and len(places["upside_down"]) == 6
