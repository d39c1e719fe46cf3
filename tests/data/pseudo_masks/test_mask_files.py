import json

from lesion_d2.data.pseudo_masks import PseudoMask, ellipse_mask
from lesion_d2.data.pseudo_masks.files import (
    check_mask_files,
    load_mask_file,
    mask_annotation,
    write_mask_file,
)

import numpy as np
import pytest

UPRIGHT = [30, 40, 70, 40, 50, 30, 50, 50]
OBLIQUE = [30.3, 41.2, 71.9, 52.4, 44.1, 60.2, 52.7, 35.5]
IMAGE = {"image_id": "a_1", "height": 100, "width": 90}


@pytest.fixture
def mask_file(tmp_path):
    masks = [ellipse_mask(UPRIGHT, 100, 90), ellipse_mask(OBLIQUE, 100, 90)]
    annotations = [
        mask_annotation("a_1", {"row": row, "recist": recist}, PseudoMask(mask, row == 3))
        for row, recist, mask in zip((2, 3), (UPRIGHT, OBLIQUE), masks, strict=True)
    ]
    path = tmp_path / "masks.json"
    write_mask_file(path, {"method": "ellipse", "dataset": "x", "window": "DICOM"}, annotations)
    return path


def test_masks_survive_the_file(mask_file):
    masks = load_mask_file(mask_file)
    assert len(masks) == 2
    assert masks.info["method"] == "ellipse"
    assert masks.covers("a_1") and not masks.covers("a_2")
    found = masks.mask(IMAGE, {"row": 3, "recist": OBLIQUE})
    np.testing.assert_array_equal(found, ellipse_mask(OBLIQUE, 100, 90))
    assert masks.entry(IMAGE, {"row": 3, "recist": OBLIQUE})["fell_back"]
    assert [p.name for p in mask_file.parent.iterdir()] == ["masks.json"]


def test_a_stale_or_incomplete_file_is_an_error_with_file_and_row(mask_file):
    masks = load_mask_file(mask_file)
    with pytest.raises(ValueError, match=r"masks\.json: the mask of row 2 .* was made from"):
        masks.entry(IMAGE, {"row": 2, "recist": np.add(UPRIGHT, 1).tolist()})
    with pytest.raises(ValueError, match=r"masks\.json: found no mask of row 4 \(image a_1\)"):
        masks.entry(IMAGE, {"row": 4, "recist": UPRIGHT})


def _changed(key, value):
    """A file whose second entry has something else by a key, as text of JSON."""

    def change(text):
        content = json.loads(text)
        content["annotations"][1][key] = "VALUE"
        return json.dumps(content).replace('"VALUE"', value)

    return change


def _mask(size, counts):
    return _changed("segmentation", f'{{"size": {size}, "counts": "{counts}"}}')


SIZES = (
    "[100000, 100000]",
    '"x"',
    "[-1, 90]",
    "[NaN, 90]",
    "[1e29, 1e29]",
    "[32]",
    "null",
    "[0, 0]",
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "found no readable JSON"),
        (lambda text: "[" * 10_000, "found no readable JSON"),
        (lambda text: "1" * 5000, "found no readable JSON"),
        (lambda text: "\xff", "found no readable JSON|found no info.format"),
        (lambda text: "[]", "found no info.format"),
        (lambda text: "{}", "found no info.format"),
        (lambda text: text.replace('"version": 1', '"version": 9'), "found version 9, expected 1"),
        (lambda text: text.replace('"method"', '"way"'), "info.method: found None"),
        (lambda text: text.replace('"annotations"', '"masks"'), "found no list of annotations"),
        (lambda text: text.replace('"counts"', '"count"'), "2 problems"),
        (lambda text: text.replace('"row": 3', '"row": "3"'), "annotation 1: row: found '3'"),
        (lambda text: text.replace('"row": 3, ', ""), "annotation 1: found no 'row'"),
        (lambda text: text.replace('"row": 3', '"row": 2'), r"found 1 lesions .* twice"),
        (_changed("image_id", "[1]"), r"annotation 1: image_id: found \[1\], expected a name"),
        (_changed("fell_back", "0"), "annotation 1: fell_back: found 0"),
        *[
            (_changed("recist", value), "annotation 1: recist: found .*, expected 8 finite")
            for value in ('"x"', "[[]]", "{}", "[1, 2, 3, 4, 5, 6, 7, 1e29]", "[null]")
        ],
        *[
            (_mask(size, "00"), "annotation 1: segmentation: found a mask of|found no readable")
            for size in SIZES
        ],
        (_mask("[100, 90]", "n0i03"), "annotation 1: segmentation: found an RLE mask of"),
        (_changed("segmentation", "5"), "annotation 1: segmentation: found the mask 5"),
    ],
)
def test_damaged_mask_files_are_told_of_by_entry_and_key(mask_file, change, message):
    mask_file.write_text(change(mask_file.read_text()))
    with pytest.raises(ValueError, match=f"masks.json: ({message})"):
        load_mask_file(mask_file)


def test_all_broken_entries_are_told_of(mask_file):
    content = json.loads(mask_file.read_text())
    content["annotations"] = [{**a, "row": None, "recist": 5} for a in content["annotations"]]
    mask_file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="4 problems") as error:
        load_mask_file(mask_file)
    assert str(error.value).count("\n") == 4


def test_masks_of_another_size_than_the_image_are_refused_before_training(mask_file):
    masks = [load_mask_file(mask_file)]
    lesions = [{"row": 2, "recist": UPRIGHT}, {"row": 3, "recist": OBLIQUE}]
    image = {"image_id": "a_1", "height": 100, "width": 90, "annotations": lesions}
    check_mask_files(masks, [image, {**image, "image_id": "another", "height": 5}])
    with pytest.raises(
        ValueError, match=r"row 2 \(image a_1\) has \[100, 90\] pixels, expected \[90, 100\]"
    ):
        check_mask_files(masks, [{**image, "height": 90, "width": 100}])
    with pytest.raises(ValueError, match=r"found no mask of row 9 \(image a_1\)"):
        check_mask_files(masks, [{**image, "annotations": [{"row": 9, "recist": UPRIGHT}]}])
    has_its_own = {"row": 9, "segmentation": {}}
    check_mask_files(masks, [{**image, "annotations": [has_its_own]}])


def test_a_missing_mask_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file, expected a mask file"):
        load_mask_file(tmp_path / "none.json")


def test_a_failed_write_leaves_the_old_file(mask_file):
    before = mask_file.read_text()
    with pytest.raises(ValueError, match=r"masks.json: found a value that JSON cannot represent"):
        write_mask_file(mask_file, {}, [{"row": object()}])
    assert mask_file.read_text() == before
    assert json.loads(before)
    assert [p.name for p in mask_file.parent.iterdir()] == ["masks.json"]
