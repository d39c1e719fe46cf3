import json
import os
import shutil
from pathlib import Path

from lesion_d2.data.phantoms.volumes import load_volumes
from lesion_d2.data.volume_set.voxels import read_voxels
from lesion_d2.importers.phantom import list_phantom, parse_classes
from lesion_d2.importers.running import run_import

import cv2
import numpy as np
import pytest
from deeplesion_rows import read_rows
from pycocotools import mask as coco_mask
from round_trip import check_trains_and_evaluates

CLASSES = {"lung": (5,), "other": (1, 2, 3, 4, 6, 7, 8)}
SPLITS = {"1": "train", "2": "val", "3": "test"}


@pytest.fixture(scope="module")
def root(tiny_phantom) -> Path:
    return tiny_phantom / "phantom"


def test_volumes_are_the_series_with_their_true_masks(root, tmp_path):
    summary = run_import(
        list_phantom(root, classes=CLASSES), tmp_path / "mine", format="phantom", workers=1
    )
    assert summary.written and not summary.left_out
    volume_set = check_trains_and_evaluates(tmp_path / "mine", tmp_path / "round")
    rows, entries = read_rows(root), json.loads((root / "true_volumes.json").read_text())
    assert volume_set.classes == ("lung", "other")
    assert sum(len(volume.lesions) for volume in volume_set.volumes) == len(rows)
    by_row = {entry["row"]: entry for entry in entries}
    series = {row["File_name"].rpartition("_")[0] for row in rows}
    assert {volume.name for volume in volume_set.volumes} == series
    for volume in volume_set.volumes:
        files = sorted((root / "Images_png" / volume.name).iterdir())
        pixels = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED).astype(int) for file in files]
        voxels = read_voxels(tmp_path / "mine" / volume.image)
        assert np.array_equal(voxels, np.stack(pixels) - 32768)
        first = int(files[0].stem)
        for lesion in volume.lesions:
            row, entry = rows[lesion.attributes["row"] - 2], by_row[lesion.attributes["row"]]
            assert row["File_name"].startswith(volume.name)
            assert lesion.category == (row["Coarse_lesion_type"] != "5")
            assert volume.patient in volume_set.splits[SPLITS[row["Train_Val_Test"]]]
            assert volume.spacing == tuple(map(float, row["Spacing_mm_px_"].split(",")))
            masks = {int(n) - first: rle for n, rle in entry["masks"].items()}
            assert set(lesion.masks) == set(masks)
            stack = np.array([coco_mask.decode(rle) for rle in masks.values()])
            ys, xs = np.nonzero(stack.any(0))
            expected = (xs.min() - 0.5, ys.min() - 0.5, min(masks))
            expected += (xs.max() + 0.5, ys.max() + 0.5, max(masks))
            assert lesion.box == expected
            size = list(volume.shape[1:])
            for n, counts in lesion.masks.items():
                own = coco_mask.decode({"size": size, "counts": counts})
                assert np.array_equal(own, coco_mask.decode(masks[n]))


def test_boxes_are_those_of_the_phantoms_volumes_without_their_margin(root):
    boxes = {}
    for record in load_volumes(root, "train"):
        for a in record["annotations"]:
            boxes[record["image_id"], a["row"]] = np.array(a["bbox"])
    case = next(case for case in list_phantom(root).cases if case.split == "train")
    lesion = case.read().volume.lesions[0]
    first = int(Path(case.sources[0]).stem)
    for n in lesion.slices:
        # Around ends of diameters, which are centers of pixels; corners may reach further.
        box = boxes[f"{case.name}_{first + n:03d}", lesion.attributes["row"]]
        assert np.abs(box - lesion.box_on(n) - [-4.5, -4.5, 4.5, 4.5]).max() <= 3


def test_volumes_at_a_spacing(root):
    plain, coarse = (list_phantom(root, spacing=s).cases[0].read() for s in (None, (6, 8, 2)))
    ratio = np.divide((6, 8, 2), plain.volume.spacing)
    expected = [max(1, round(n / r)) for n, r in zip(plain.volume.shape, ratio[::-1], strict=True)]
    assert list(coarse.voxels.shape) == expected
    assert coarse.volume.spacing == (6, 8, 2)
    for before, after in zip(plain.volume.lesions, coarse.volume.lesions, strict=True):
        centers = [
            v.to_patient(np.reshape(le.box, (2, 3)).mean(0)[None])
            for v, le in ((plain.volume, before), (coarse.volume, after))
        ]
        assert np.abs(np.subtract(*centers)).max() < 8


def test_classes_are_read_from_texts():
    assert parse_classes(["lung=5", "other=1,2,3,4,6,7,8"]) == CLASSES
    types = parse_classes(["types"])
    assert len(types) == 8 and types["bone"] == (1,) and types["pelvis"] == (8,)
    for texts in (["lung"], ["=5"], ["a=5", "a=6"], ["a=5;6"], ["a="]):
        with pytest.raises(ValueError, match=r"^--classes: found '.*expected a unique name"):
            parse_classes(texts)


def test_what_is_no_phantom_is_refused(root, tmp_path):
    with pytest.raises(ValueError, match="class 'b': found the coarse type 5, expected one from"):
        list_phantom(root, classes={"a": (5,), "b": (5,)})
    with pytest.raises(ValueError, match=r"DL_info\.csv, row \d+: found coarse type \d, expected"):
        list_phantom(root, classes={"kidney": (6,)})
    with pytest.raises(ValueError, match=r"spacing: found \(0, 1, 1\), expected"):
        list_phantom(root, spacing=(0, 1, 1))
    with pytest.raises(FileNotFoundError):
        list_phantom(tmp_path)


def test_a_series_with_a_hole_is_refused(root, tmp_path):
    copy = tmp_path / "phantom"
    shutil.copytree(root, copy, copy_function=os.symlink)
    number = next(n for n, c in enumerate(list_phantom(copy).cases) if len(c.sources) == 7)
    os.unlink(list_phantom(copy).cases[number].sources[1])  # of five slices; the key is the third
    with pytest.raises(ValueError, match=r"found 4 slices from \d+ to \d+, expected no gaps"):
        list_phantom(copy).cases[number].read()
