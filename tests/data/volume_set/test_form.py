import json
import re
from dataclasses import replace
from pathlib import Path

import lesion_d2
from lesion_d2.data.volume_set.fields import LESION_FIELDS, SET_FIELDS, VOLUME_FIELDS
from lesion_d2.data.volume_set.form import (
    Lesion,
    Volume,
    VolumeSet,
    lesion_of_mask,
    read_head,
    read_volume_set,
    write_volume_set,
)

import numpy as np
import pytest
from pycocotools import mask as coco_mask

SHAPE = (6, 20, 30)


def make_set() -> VolumeSet:
    mask = np.zeros((2, 3, 4), bool)
    mask[0, 1, 1:3] = mask[1, 2, 3] = True
    lesions = (
        lesion_of_mask(
            1, 1, mask, offset=(2, 5, 6), shape=SHAPE, attributes={"malignancy": np.float32(3.5)}
        ),
        Lesion(
            2,
            0,
            (1.0, 2.0, 0.0, 8.0, 9.0, 5.0),
            recist={3: (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)},
            diameters_mm=(9.0, 4.5),
            ignore=True,
        ),
    )
    direction = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
    volumes = (
        Volume(
            "a",
            "1",
            "images/a.b2nd",
            SHAPE,
            (0.5, 0.6, 2.0),
            (3.0, 4.0, 5.0),
            direction,
            lesions,
            (-1350.0, 150.0),
        ),
        Volume("b", "2", "images/b.b2nd", (1, 20, 30)),
    )
    return VolumeSet(
        ("benign", "malignant"),
        volumes,
        {"importer": "none", "options": [1]},
        {"train": ("1",), "val": ("2",)},
        ({"train": ("2",), "test": ("1",)},),
    )


def test_what_is_written_is_read(tmp_path):
    write_volume_set(tmp_path, make_set())
    assert read_volume_set(tmp_path) == make_set()


def test_a_mask_makes_boxes_of_its_pixels_outer_edges():
    lesion = make_set().volumes[0].lesions[0]
    assert lesion.box == (6.5, 5.5, 2.0, 9.5, 7.5, 3.0)
    assert lesion.slices == [2, 3]
    assert lesion.box_on(2) == (6.5, 5.5, 8.5, 6.5)
    assert lesion.box_on(3) == (8.5, 6.5, 9.5, 7.5)
    rle = {"size": list(SHAPE[1:]), "counts": lesion.masks[2].encode()}
    assert np.argwhere(coco_mask.decode(rle)).tolist() == [[6, 7], [6, 8]]
    with pytest.raises(ValueError, match="lesion 4: found an empty mask"):
        lesion_of_mask(4, 0, np.zeros(SHAPE, bool))
    with pytest.raises(ValueError, match="lesion 4: found a mask of shape"):
        lesion_of_mask(4, 0, np.ones((2, 3, 4), bool), offset=(5, 0, 0), shape=SHAPE)


def test_a_box_alone_is_on_all_its_slices():
    lesion = make_set().volumes[0].lesions[1]
    assert lesion.slices == [0, 1, 2, 3, 4, 5]
    assert lesion.box_on(4) == (1.0, 2.0, 8.0, 9.0)


def test_voxels_have_a_place_in_the_patient():
    volume, unplaced = make_set().volumes
    points = np.array([[0, 0, 0], [2, 3, 4]])
    assert volume.to_patient(points) == pytest.approx(np.array([[3, 4, 5], [4, 2.2, 13]]))
    assert volume.from_patient(volume.to_patient(points)) == pytest.approx(points)
    with pytest.raises(ValueError, match="volume 'b': found no position in the patient"):
        unplaced.to_patient(points)


VOLUME, LESION = ("volumes", 0), ("volumes", 0, "lesions", 0)
BAD = [
    (("version",), 2, "found version 2 of a volume set, expected 1"),
    (("schema",), "x", "found no volume set"),
    (("classes",), ["a", "a"], "classes: found"),
    (("classes",), [], "classes: found"),
    (("volumes",), {}, "volumes: found {}, expected a list"),
    (("more",), 1, "found the key 'more', expected"),
    (("splits", "train"), ["3"], "splits, train: found patient '3'"),
    (("splits", "val"), ["1"], "splits: found patient '1' in train and in val"),
    (("splits", "other"), [], "splits: found"),
    (("folds", 0, "train"), ["2", "2"], "fold 0: found patient '2' in train and in train"),
    (VOLUME, 3, "volume 0: found 3, expected an object"),
    ((*VOLUME, "name"), "../a", "volume '../a': name: found"),
    ((*VOLUME, "name"), "B", "volume names: found 'b' 2 times"),
    ((*VOLUME, "patient"), "", "volume 'a': patient: found"),
    ((*VOLUME, "image"), "/etc/passwd.b2nd", "volume 'a': image: found"),
    ((*VOLUME, "image"), "images/../../a.b2nd", "volume 'a': image: found"),
    ((*VOLUME, "image"), "http://a/b.b2nd", "volume 'a': image: found"),
    ((*VOLUME, "image"), "images\\a.b2nd", "volume 'a': image: found"),
    ((*VOLUME, "image"), "images/b.b2nd", "image files: found 'images/b.b2nd' 2 times"),
    ((*VOLUME, "shape"), [6, 20.0, 30], "volume 'a': shape: found"),
    ((*VOLUME, "shape"), [6, 20, 10**400], "volume 'a': shape: found [6, 20, <integer of"),
    ((*VOLUME, "shape"), [6, 20, 10**6], "volume 'a': shape: found 6 slices of 1000000"),
    ((*VOLUME, "spacing"), [1, 1, 0], "volume 'a': spacing: found [1, 1, 0]"),
    ((*VOLUME, "spacing"), None, "volume 'a': found origin and direction, expected origin"),
    ((*VOLUME, "origin"), [0, 0, float("nan")], "volume 'a': origin: found [0, 0, nan]"),
    ((*VOLUME, "direction"), [1] * 9, "volume 'a': direction: found"),
    ((*VOLUME, "direction"), [1, 1, 0, 0, 0, 0, 0, 0, 1], "volume 'a': direction: found"),
    ((*VOLUME, "window"), [150, -1350], "volume 'a': window: found [150, -1350]"),
    (LESION, None, "volume 'a', lesion at 0: found None, expected an object"),
    ((*LESION, "id"), 2, "lesion ids: found 2 2 times"),
    ((*LESION, "id"), True, "lesion at 0: id: found True"),
    ((*LESION, "category"), 2, "lesion 1: category: found 2, expected less than 2"),
    ((*LESION, "category"), -1, "lesion 1: category: found -1"),
    ((*LESION, "box"), [1, 2, 3], "lesion 1: box: found [1, 2, 3], expected 6 finite"),
    ((*LESION, "box"), [9, 5, 2, 6, 7, 3], "lesion 1: box: found [9, 5, 2, 6, 7, 3]"),
    (
        (*LESION, "box"),
        [6, 5, 2, 6, 7, 3],
        "lesion 1: box: found [6, 5, 2, 6, 7, 3], expected x1 < x2",
    ),
    ((*LESION, "box"), [6, 5, 2, 9, 7, 6], "lesion 1: box: found slices 2 to 6, expected whole"),
    ((*LESION, "box"), [6, 5, 2.5, 9, 7, 3], "lesion 1: box: found slices 2.5 to 3"),
    ((*LESION, "box"), [30, 5, 2, 40, 7, 3], "a box on the slice of 30 x 20 pixels"),
    ((*LESION, "box"), [float("inf"), 5, 2, 9, 7, 3], "lesion 1: box: found [inf"),
    ((*LESION, "boxes", "2"), [1, 2, 3], "lesion 1: boxes: found"),
    ((*LESION, "boxes", "2"), [8, 5, 7, 6], "lesion 1: boxes, slice 2: found [8, 5, 7, 6]"),
    ((*LESION, "boxes", "2"), [7, 6, 8, 6], "lesion 1: boxes, slice 2: found [7, 6, 8, 6]"),
    ((*LESION, "boxes", "2"), [1, 2, 8, 9], "lesion 1: boxes, slice 2: found [1, 2, 8, 9]"),
    ((*LESION, "boxes", "02"), [7, 6, 8, 7], "lesion 1: boxes: found"),
    ((*LESION, "boxes", "4"), [7, 6, 8, 7], "lesion 1: boxes: found slices 2 to 4"),
    ((*LESION, "boxes"), {}, "lesion 1: boxes: found slices none"),
    ((*LESION, "masks", "5"), "0", "lesion 1: masks: found slice 5, expected slices of"),
    ((*LESION, "masks", "2"), "54", "masks, slice 2: found an RLE mask of 9 pixels in 2 runs"),
    ((*LESION, "masks", "2"), "\u20ac" + "o" * 10**6, "masks, slice 2: found an RLE mask of 0"),
    ((*LESION, "masks", "2"), "hb0", "masks, slice 2: found no pixel in 1 runs, expected at least"),
    ((*LESION, "masks", "2"), 5, "lesion 1: masks: found"),
    ((*LESION, "recist"), {"2": [1, 2]}, "lesion 1: recist: found"),
    ((*LESION, "recist"), {"2": [5, 6, 50, 6, 9, 4, 9, 8]}, "recist, slice 2: found [5, 6, 50"),
    (
        (*LESION, "recist"),
        {"2": [-8, 6, 29, 6, 9, 4, 9, 8]},
        "expected end points inside the slice of",
    ),
    ((*LESION, "diameters_mm"), [3, 4], "lesion 1: diameters_mm: found [3, 4]"),
    ((*LESION, "ignore"), 1, "lesion 1: ignore: found 1"),
    ((*LESION, "attributes"), {"a": []}, "lesion 1: attributes: found"),
    ((*LESION, "attributes"), {"a": 10**400}, "lesion 1: attributes: found"),
]


@pytest.mark.parametrize("place, value, message", BAD, ids=[str(n) for n in range(len(BAD))])
def test_what_is_wrong_is_one_line(tmp_path, place, value, message):
    write_volume_set(tmp_path, make_set())
    file = tmp_path / "volume_set.json"
    content = json.loads(file.read_text())
    entry = content
    for key in place[:-1]:
        entry = entry[key]
    entry[place[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        read_volume_set(tmp_path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{file}: ")
    assert len(str(error.value)) < 1500


def test_the_head_is_what_stands_beside_the_volumes(tmp_path):
    write_volume_set(tmp_path, make_set())
    assert read_head(tmp_path) == replace(make_set(), volumes=())
    file = tmp_path / "volume_set.json"
    text = file.read_text()
    file.write_text(json.dumps(json.loads(text), indent=1, sort_keys=True))
    assert read_head(tmp_path) == replace(make_set(), volumes=())
    file.write_text(text[:-1])
    assert read_head(tmp_path) == replace(make_set(), volumes=())
    file.write_text(text[:-2])
    with pytest.raises(ValueError, match="found no readable JSON"):
        read_head(tmp_path)
    file.write_text(text.replace('"val": ["2"]', '"val": ["1"]', 1))
    with pytest.raises(ValueError, match="splits: found patient '1' in train and in val"):
        read_head(tmp_path)


def test_lesions_that_ask_for_annotations_without_end_are_refused(tmp_path):
    depth = 20_000
    box = (1.0, 1.0, 0.0, 2.0, 2.0, depth - 1.0)
    for count in (12, 13):  # 240,000 and 260,000 annotations
        lesions = tuple(
            Lesion(i, 0, box, recist={depth - 1: (1.0,) * 8}) for i in range(1, count + 1)
        )
        volume = Volume("a", "a", "a.b2nd", (depth, 4, 4), lesions=lesions)
        volume_set = VolumeSet(("lesion",), (volume,))
        if count == 12:
            write_volume_set(tmp_path, volume_set)
    with pytest.raises(
        ValueError, match="volume 'a': found lesions on 260000 slices in total, exp"
    ):
        write_volume_set(tmp_path, volume_set)


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    wrong = Lesion(1, 7, (1.0, 1.0, 9.0, 2.0, 2.0, 9.0))
    volumes = tuple(Volume(name, name, f"{name}.b2nd", SHAPE, lesions=(wrong,)) for name in "ab")
    with pytest.raises(ValueError) as error:
        write_volume_set(tmp_path, VolumeSet(("lesion",), volumes))
    lines = str(error.value).splitlines()
    assert lines[0] == f"{tmp_path / 'volume_set.json'}: 4 problems"
    assert lines[1] == (
        "  volume 'a', lesion 1: category: found 7, expected less than 1, the number of classes"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[", "[]", "[" * 100_000, '{"schema": 1}'])
def test_other_files_are_refused(tmp_path, text):
    with pytest.raises(FileNotFoundError, match="no such file, expected a volume set"):
        read_volume_set(tmp_path)
    (tmp_path / "volume_set.json").write_text(text)
    with pytest.raises(ValueError, match="found no"):
        read_volume_set(tmp_path)


PAGE = Path(lesion_d2.__file__).parents[1] / "docs" / "volume_sets.md"


@pytest.mark.skipif(not PAGE.exists(), reason="needs a checkout")
def test_the_example_of_the_documentation_is_one(tmp_path):
    section = PAGE.read_text(encoding="utf-8")
    example = section.partition("```json\n")[2].partition("```")[0]
    (tmp_path / "volume_set.json").write_text(example)
    (volume,) = read_volume_set(tmp_path).volumes
    assert [lesion.id for lesion in volume.lesions] == [1, 2]
    documented = {
        key
        for line in section.partition("| key |")[2].split("\n\n")[0].splitlines()
        for key in re.findall(r"`(\w+)`", line.split("|")[1] if "|" in line else "")
    }
    keys = {*SET_FIELDS, *VOLUME_FIELDS, *LESION_FIELDS} - {"schema", "version"}
    assert keys - {"volumes", "lesions"} <= documented
