import csv
import itertools
import json
import shutil
from pathlib import Path

from lesion_d2.data.deeplesion.key_slices import load_deeplesion
from lesion_d2.data.phantoms.phantom import write_phantom
from lesion_d2.data.phantoms.volumes import load_volumes
from lesion_d2.structures.lesion_types import COARSE_TYPES
from lesion_d2.structures.recist import measure_recist

import numpy as np
import pytest
from deeplesion_rows import read_rows
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "phantom"
    write_phantom(root, num_patients=5, size=96, seed=3, extent_mm=6.0, workers=1)
    return root


@pytest.fixture
def copy(root, tmp_path) -> Path:
    """A copy of the data set to spoil."""
    return Path(shutil.copytree(root, tmp_path / "phantom"))


def read_entries(root: Path) -> list[dict]:
    return json.loads((root / "true_volumes.json").read_text())


def spoil(root: Path, change) -> None:
    entries = read_entries(root)
    change(entries)
    (root / "true_volumes.json").write_text(json.dumps(entries))


def encode(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def test_every_slice_on_disk_is_there_once_and_in_order(root):
    dicts = load_volumes(root, None)
    files = sorted(str(path) for path in (root / "Images_png").glob("*/*.png"))
    assert sorted(d["file_name"] for d in dicts) == files
    assert len({d["image_id"] for d in dicts}) == len(dicts) > 100
    for _, group in itertools.groupby(dicts, key=lambda d: d["volume"]):
        numbers = [d["slice_index"] for d in group]
        assert numbers == sorted(numbers)
    for d in dicts:
        path = Path(d["file_name"])
        assert d["volume"] == path.parent.name == f"{d['patient']:06d}_{d['study']:02d}_01"
        assert d["image_id"] == f"{d['volume']}_{path.stem}" and d["slice_index"] == int(path.stem)
    assert any(not d["annotations"] for d in dicts)


def test_splits_are_those_of_the_file(root):
    parts = {split: load_volumes(root, split) for split in ("train", "val", "test")}
    ids = [d["image_id"] for part in parts.values() for d in part]
    assert sorted(ids) == sorted(d["image_id"] for d in load_volumes(root, None))
    key_slices = load_deeplesion(root / "DL_info.csv", root / "Images_png", "test")
    assert {d["patient"] for d in parts["test"]} == {d["patient"] for d in key_slices}


@pytest.mark.parametrize("coarse_types", [False, True])
def test_key_slices_are_as_in_the_file(root, coarse_types):
    by_id = {d["image_id"]: d for d in load_volumes(root, "train", coarse_types=coarse_types)}
    key_slices = load_deeplesion(
        root / "DL_info.csv", root / "Images_png", "train", coarse_types=coarse_types
    )
    for expected in key_slices:
        found = by_id[expected["image_id"]]
        assert {**found, "annotations": 0} == {
            **expected,
            "annotations": 0,
            "volume": found["image_id"].rsplit("_", 1)[0],
            "volume_boxes": found["volume_boxes"],
        }
        for a, b in zip(found["annotations"], expected["annotations"], strict=True):
            assert a.pop("true_segmentation")["size"] == [96, 96]
            assert a == {**b, "lesion_id": b["row"], "is_key": True}


def test_boxes_follow_the_masks_of_every_slice(root):
    dicts = load_volumes(root, None)
    spacing = {d["image_id"]: d["spacing"][0] for d in dicts}
    found = {
        (a["lesion_id"], d["slice_index"]): (d["image_id"], a)
        for d in dicts
        for a in d["annotations"]
    }
    rows = read_rows(root)
    expected = {
        (entry["row"], int(z)): coco_mask.decode(rle)
        for entry in read_entries(root)
        for z, rle in entry["masks"].items()
    }

    assert found.keys() == expected.keys() and len(found) > 2 * len(rows)
    for key, mask in expected.items():
        image_id, annotation = found[key]
        ys, xs = np.nonzero(mask)
        x1, y1, x2, y2 = annotation["bbox"]
        assert annotation["bbox_mode"] == BoxMode.XYXY_ABS and annotation["row"] == key[0]
        # The end points span most of the mask: the box is the mask's, at most 5.5 px wider.
        assert 0 <= x1 <= xs.mean() <= x2 <= 96 and 0 <= y1 <= ys.mean() <= y2 <= 96
        assert x1 >= xs.min() - 5.5 - 1e-3 and x2 <= xs.max() + 5.5 + 1e-3
        assert y1 >= ys.min() - 5.5 - 1e-3 and y2 <= ys.max() + 5.5 + 1e-3
        recist = measure_recist(mask > 0)
        np.testing.assert_allclose(annotation["recist"], recist, rtol=1e-5)
        points = recist.reshape(4, 2)
        low, high = points.min(axis=0) - 5, points.max(axis=0) + 5
        np.testing.assert_allclose(annotation["bbox"], np.clip([*low, *high], 0, 96), rtol=2e-5)
        length = np.hypot(*(points[1] - points[0])) * spacing[image_id]
        assert annotation["diameters_mm"][0] == pytest.approx(length, rel=1e-4)
        assert annotation["coarse_type"] == int(rows[key[0] - 2]["Coarse_lesion_type"])


def test_no_mask_is_too_small_to_be_measured():
    for code in range(1, 2**9):
        mask = np.zeros((8, 9), bool)
        mask[2:5, 4:7] = np.reshape([code >> k & 1 for k in range(9)], (3, 3))
        points = measure_recist(mask).reshape(4, 2)
        low, high = points.min(axis=0), points.max(axis=0)
        assert np.isfinite(points).all() and (high > low).all(), mask
        assert (low >= (3.5, 1.5)).all() and (high <= (6.5, 4.5)).all(), mask


def test_a_mask_of_one_pixel_has_a_box(copy):
    def shrink(entries):
        entry = entries[0]
        last = max(entry["masks"], key=int)
        mask = np.zeros((96, 96))
        mask[7, 95] = 1
        entry["masks"][last] = encode(mask)
        return int(last)

    last = {}
    spoil(copy, lambda entries: last.update(z=shrink(entries)))
    [annotation] = [
        a
        for d in load_volumes(copy, None)
        for a in d["annotations"]
        if a["lesion_id"] == 2 and d["slice_index"] == last["z"]
    ]
    x1, y1, x2, y2 = annotation["bbox"]
    assert (x1, x2) == (89.5, 95.5) and 1.5 <= y1 <= 2 and 12 <= y2 <= 12.5


def test_types_are_classes(root):
    dicts = load_volumes(root, None, coarse_types=True)
    annotations = [a for d in dicts for a in d["annotations"]]
    assert len({a["category_id"] for a in annotations}) > 2
    assert all(a["category_id"] == a["coarse_type"] - 1 for a in annotations)
    plain = [a for d in load_volumes(root, None) for a in d["annotations"]]
    assert {a["category_id"] for a in plain} == {0}
    assert [a["bbox"] for a in plain] == [a["bbox"] for a in annotations]


def test_holes_between_slices_stay(copy):
    entry = read_entries(copy)[0]
    volume = entry["image_id"].rsplit("_", 1)[0]
    folder = copy / "Images_png" / volume
    key = int(entry["image_id"].rsplit("_", 1)[1])
    numbers = sorted(int(path.stem) for path in folder.glob("*.png"))
    gone = max(n for n in numbers if n != key)
    (folder / f"{gone:03d}.png").unlink()
    (folder / "notes.txt").touch()
    for lesion in range(10):
        spoil(
            copy,
            lambda entries, k=lesion: (
                entries[k]["masks"].pop(str(gone), None)
                if entries[k]["image_id"].startswith(volume)
                else None
            ),
        )
    found = [d["slice_index"] for d in load_volumes(copy, None) if d["volume"] == volume]
    assert found == [n for n in numbers if n != gone]


def test_they_are_registered(tiny_phantom):
    for split in ("train", "val", "test"):
        plain = DatasetCatalog.get(f"phantom_volumes_{split}")
        types = DatasetCatalog.get(f"phantom_volumes_{split}_types")
        assert [d["image_id"] for d in plain] == [d["image_id"] for d in types]
        assert Path(plain[0]["file_name"]).is_relative_to(tiny_phantom / "phantom")
        assert {a["category_id"] for d in plain for a in d["annotations"]} == {0}
        metadata = MetadataCatalog.get(f"phantom_volumes_{split}")
        assert metadata.thing_classes == ["lesion"]
        assert metadata.evaluator_type == "lesion_volume"
        metadata = MetadataCatalog.get(f"phantom_volumes_{split}_types")
        assert metadata.thing_classes == list(COARSE_TYPES)
    # What a caller does to the dicts stays with the caller.
    plain[0]["annotations"].append("x")
    assert "x" not in DatasetCatalog.get("phantom_volumes_test")[0]["annotations"]


def test_columns_are_registered(root, tmp_path, monkeypatch):
    (tmp_path / "phantom_columns").symlink_to(root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for split in ("train", "val", "test"):
        for suffix, coarse_types in (("", False), ("_types", True)):
            found = DatasetCatalog.get(f"phantom_columns_volumes_{split}{suffix}")
            expected = load_volumes(tmp_path / "phantom_columns", split, coarse_types=coarse_types)
            assert found == expected and len(found) > 0


def first_mask(entries):
    return next(iter(entries[0]["masks"].values()))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda e: e[0].update(row=999), r"entry 0: found row 999 on .*, expected a lesion of"),
        (lambda e: e[0].update(image_id="000009_01_01_001"), "entry 0: found row 2 on 000009"),
        (lambda e: e.append(e[0]), "found row 2 twice, expected once"),
        (lambda e: e.pop(1), r"no entry for 1 rows of DL_info.csv \(the first: 3\)"),
        (lambda e: e[0].pop("masks"), "entry 0: found .*, expected a lesion with image_id, row"),
        (lambda e: e[0]["masks"].update({"a": first_mask(e)}), "entry 0: found"),
        (lambda e: first_mask(e).pop("counts"), r"row 2, slice \d+: found the mask counts None"),
        (lambda e: e[0].update(masks={}), "row 2: found no mask on the key slice"),
        (
            lambda e: e[0]["masks"].update({"9999": first_mask(e)}),
            "row 2: found a mask on slice 9999, which is not on disk",
        ),
        (
            lambda e: first_mask(e).update(encode(np.ones((96, 95)))),
            r"row 2, slice \d+: found a mask of \[96, 95\] .*, expected \[96, 96\]",
        ),
        (
            lambda e: first_mask(e).update(encode(np.zeros((96, 96)))),
            r"row 2, slice \d+: found an empty mask",
        ),
        (
            lambda e: first_mask(e).update(counts=first_mask(e)["counts"][:-3]),
            r"row 2, slice \d+: found an RLE mask of .* pixels in .* runs, .* fill 96 x 96 pixels",
        ),
        (lambda e: first_mask(e).update(counts="!"), r"row 2, slice \d+: "),
    ],
)
def test_an_invalid_entry_is_refused_with_the_file(copy, change, message):
    spoil(copy, change)
    with pytest.raises(ValueError, match=message) as error:
        load_volumes(copy, None)
    assert str(error.value).startswith(f"{copy / 'true_volumes.json'}")
    assert "\n" not in str(error.value)


def test_unknown_splits_and_unreadable_files_are_refused(copy):
    with pytest.raises(ValueError, match="found split 'all', expected one of"):
        load_volumes(copy, "all")
    file = copy / "true_volumes.json"
    for text in ("[{", "\x00"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"true_volumes.json: found no readable JSON"):
            load_volumes(copy, "test")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"true_volumes.json: found no readable JSON"):
        load_volumes(copy, "test")
    file.write_text("{}")
    with pytest.raises(ValueError, match="found a dict, expected a list of lesions"):
        load_volumes(copy, "test")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"true_volumes.json: no such file"):
        load_volumes(copy, "test")


def test_lesions_of_unknown_type_are_refused_as_classes(copy):
    file = copy / "DL_info.csv"
    with file.open(newline="") as opened:
        rows = list(csv.reader(opened))
    rows[1][rows[0].index("Coarse_lesion_type")] = "-1"
    with file.open("w", newline="") as opened:
        csv.writer(opened, lineterminator="\n").writerows(rows)
    assert load_volumes(copy, None)
    with pytest.raises(ValueError, match="row 2: found coarse type -1, expected 1 to 8"):
        load_volumes(copy, None, coarse_types=True)


def test_key_slices_and_the_boxes_of_a_volume(root):
    dicts = load_volumes(root, None)
    expected = [(number, row["File_name"][:-4]) for number, row in enumerate(read_rows(root), 2)]
    found = [
        (a["lesion_id"], d["image_id"]) for d in dicts for a in d["annotations"] if a.get("is_key")
    ]
    assert sorted(found) == expected
    for _, group in itertools.groupby(dicts, key=lambda d: d["volume"]):
        group = list(group)
        assert all(d["volume_boxes"] is group[0]["volume_boxes"] for d in group)
        boxes = {}
        for a in (a for d in group for a in d["annotations"]):
            x1, y1, x2, y2 = boxes.get(a["lesion_id"], a["bbox"])
            u1, v1, u2, v2 = a["bbox"]
            boxes[a["lesion_id"]] = [min(x1, u1), min(y1, v1), max(x2, u2), max(y2, v2)]
        assert sorted(group[0]["volume_boxes"]) == sorted(boxes.values())


def test_the_annotated_part_is_every_slice_of_the_first_patients(root, tmp_path, monkeypatch):
    (tmp_path / "phantom").symlink_to(root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    whole = DatasetCatalog.get("phantom_volumes_train")
    patients = sorted({d["patient"] for d in whole})
    for share, number in ((0.01, 1), (0.5, round(len(patients) / 2)), (1.0, len(patients))):
        part = load_volumes(tmp_path / "phantom", "train", patients_share=share)
        assert part == [d for d in whole if d["patient"] in patients[:number]]
    found = DatasetCatalog.get("phantom_volumes_annotated")
    first = [d for d in whole if d["patient"] in patients[: max(1, round(0.2 * len(patients)))]]
    assert found == [{**d, "hidden_annotations": []} for d in first]
    assert MetadataCatalog.get("phantom_volumes_annotated").evaluator_type == "lesion_volume"
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match=f"found patients_share {share}, expected a share"):
            load_volumes(root, "train", patients_share=share)
