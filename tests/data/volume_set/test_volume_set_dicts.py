import dataclasses
import os

from lesion_d2.data.slices.ct import read_slice, slice_size, slice_stack
from lesion_d2.data.transforms.borders import slice_files
from lesion_d2.data.volume_set.dicts import WINDOW, load_volume_set
from lesion_d2.data.volume_set.form import Lesion, Volume, VolumeSet, write_volume_set
from lesion_d2.data.volume_set.voxels import write_voxels

import numpy as np
import pytest
from detectron2.structures import BoxMode
from made_up_sets import CLASSES, write_made_up_set
from pycocotools import mask as mask_util


@pytest.fixture
def made_up(tmp_path):
    return write_made_up_set(tmp_path / "mine")


def test_slices_with_a_lesion_have_dicts(made_up):
    root, volumes = made_up
    dicts = load_volume_set(root)
    assert [image["image_id"] for image in dicts] == [
        "a_001",
        "a_002",
        "a_003",
        "a_004",
        "b_000",
        "single_000",
        "empty_000",
    ]

    first = dicts[0]
    assert first == {
        "file_name": f"{root}/images/a.b2nd/001.png",
        "image_id": "a_001",
        "height": 48,
        "width": 64,
        "spacing": (0.7, 0.7, 2.5),
        "slice_range": (0, 5),
        "slice_index": 1,
        "patient": "p1",
        "volume": "a",
        "window": (-1350.0, 150.0),
        "annotations": first["annotations"],
    }

    (annotation,) = first["annotations"]
    lesion = volumes[0].lesions[0]
    rle = annotation.pop("segmentation")
    assert annotation == {
        "bbox": list(lesion.box_on(1)),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 1,
        "lesion_id": 1,
        "row": 1,
    }

    ys, xs = np.nonzero(mask_util.decode(rle))
    assert lesion.box_on(1) == (xs.min() - 0.5, ys.min() - 0.5, xs.max() + 0.5, ys.max() + 0.5)


def test_a_lesion_is_key_on_its_largest_slice(made_up):
    root, _ = made_up
    keys = {
        annotation["lesion_id"]: image["slice_index"]
        for image in load_volume_set(root)
        for annotation in image["annotations"]
        if annotation.get("is_key")
    }
    # Of boxes that are all alike, the middle one.
    assert keys == {1: 2, 2: 3, 3: 0, 4: 0, 5: 0}


def test_every_slice_has_a_dict_if_asked_for(made_up):
    root, volumes = made_up
    dicts = load_volume_set(root, {"p1", "p3"}, every_slice=True)
    assert [image["image_id"] for image in dicts] == [
        *(f"a_00{n}" for n in range(6)),
        "single_000",
        "empty_000",
    ]
    x1, y1, _, x2, y2, _ = volumes[0].lesions[0].box
    assert dicts[0]["volume_boxes"] == [[x1, y1, x2, y2], [50.0, 30.0, 63.5, 40.0]]
    assert dicts[0]["volume_boxes"] is dicts[5]["volume_boxes"]
    assert dicts[-1]["annotations"] == [] and dicts[-1]["volume_boxes"] == []


def test_boxes_are_cut_and_what_is_known_is_told(made_up):
    root, _ = made_up
    a_003, b_000, single = (load_volume_set(root)[n] for n in (2, 4, 5))
    second = a_003["annotations"][-1]
    assert second["bbox"] == [50.0, 30.0, 63.5, 40.0]  # 70 on disk
    assert second["diameters_mm"] == (11.0, 7.0)
    assert second["recist"] == [51.0, 35.0, 62.0, 35.0, 56.0, 31.0, 56.0, 39.0]
    assert [a.get("iscrowd") for a in b_000["annotations"]] == [None, 1]
    assert b_000["spacing"] is None and b_000["window"] == WINDOW
    assert [a["category_id"] for a in single["annotations"]] == [0] and len(CLASSES) == 2


def test_slices_are_read_like_files(made_up):
    root, _ = made_up
    image = load_volume_set(root)[1]
    voxels = np.random.default_rng(0).integers(-1000, 400, (6, 48, 64)).astype(np.int16)
    assert np.array_equal(read_slice(image["file_name"]), voxels[2])
    assert slice_size(image["file_name"]) == (48, 64)
    folder = os.path.dirname(image["file_name"])
    assert slice_files(folder) == {n: f"{folder}/{n:03d}.png" for n in range(6)}
    options = {"num_slices": 5, "interval": 2.0, "slice_range": image["slice_range"]}
    stack = slice_stack(image["file_name"], spacing_z=2.5, **options)
    halves = [np.rint(0.6 * voxels[0] + 0.4 * voxels[1]), 0.2 * voxels[1] + 0.8 * voxels[2]]
    assert np.abs(stack[0] - halves[0]).max() <= 1 and np.array_equal(stack[2], voxels[2])
    stack = slice_stack(image["file_name"], spacing_z=None, **options)
    assert np.array_equal(stack, voxels[:5])
    with pytest.raises(FileNotFoundError, match=r"a\.b2nd/006\.png: no such CT slice"):
        read_slice(f"{folder}/006.png")
    with pytest.raises(FileNotFoundError, match=r"no\.b2nd: no such voxel file"):
        read_slice(f"{folder[:-6]}no.b2nd/000.png")


def test_files_that_are_missing_or_others_are_told_at_once(made_up):
    root, _ = made_up
    os.remove(root / "images" / "a.b2nd")
    write_voxels(root / "images" / "b.b2nd", np.zeros((3, 48, 64), np.int16))
    (root / "images" / "single.b2nd").write_bytes(b"")
    with pytest.raises(ValueError) as error:
        load_volume_set(root)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("volume_set.json: 3 problems") and len(lines) == 4
    assert (
        "volume 'a': found no " in lines[1] and "images/a.b2nd, expected its voxel file" in lines[1]
    )
    assert "volume 'b': found voxels of shape (3, 48, 64)" in lines[2]
    assert "volume 'single': " in lines[3] and "damaged voxels" in lines[3]


def test_the_file_is_read_anew_when_it_changed(made_up):
    root, volumes = made_up
    assert len(load_volume_set(root)) == 7
    lesion = Lesion(9, 0, (1.0, 1.0, 0.0, 5.0, 5.0, 1.0))
    only = dataclasses.replace(volumes[1], lesions=(lesion,))
    write_volume_set(root, VolumeSet(CLASSES, (only,)))
    assert [image["image_id"] for image in load_volume_set(root)] == ["b_000", "b_001"]
    with pytest.raises(FileNotFoundError, match="no such file, expected a volume set"):
        load_volume_set(root / "images")


def test_volumes_of_many_slices(tmp_path):
    volume = np.arange(1005, dtype=np.int16)[:, None, None] * np.ones((1, 4, 4), np.int16)
    write_voxels(tmp_path / "long.b2nd", volume)
    lesion = Lesion(1, 0, (0.0, 0.0, 998.0, 3.0, 3.0, 1002.0))
    volumes = (Volume("long", "p", "long.b2nd", volume.shape, lesions=(lesion,)),)
    write_volume_set(tmp_path, VolumeSet(("lesion",), volumes))
    dicts = load_volume_set(tmp_path)
    assert [image["image_id"] for image in dicts[:3]] == ["long_998", "long_999", "long_1000"]
    for image in dicts:
        stack = slice_stack(image["file_name"], num_slices=5, interval=0, spacing_z=1.0)
        assert stack[:, 0, 0].tolist() == [image["slice_index"] + n for n in range(-2, 3)]
