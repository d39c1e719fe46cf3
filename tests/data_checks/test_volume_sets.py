from dataclasses import replace

from lesion_d2.data.volume_set.catalog import register_volume_set
from lesion_d2.data.volume_set.form import (
    Volume,
    VolumeSet,
    lesion_of_mask,
    read_volume_set,
    write_volume_set,
)
from lesion_d2.data.volume_set.voxels import write_voxels
from lesion_d2.data_checks import check_data_set

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from made_up_slices import SIZE, body

DEPTH = 4
LPI = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """``checked_set``: four patients of one volume with one lesion, three of them in splits."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    known = set(DatasetCatalog.list())
    root = tmp_path / "checked_set"
    (root / "images").mkdir(parents=True)
    volumes = [_volume(root, number) for number in range(4)]
    splits = {"train": ("p0", "p1"), "val": ("p2",)}
    write_volume_set(root, VolumeSet(("mass",), tuple(volumes), {}, splits))
    yield root
    for name in set(DatasetCatalog.list()) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def _volume(root, number):
    name = f"v{number}"
    voxels = np.stack([body(10 * number + z) for z in range(DEPTH)])
    write_voxels(root / "images" / f"{name}.b2nd", voxels)
    mask = np.zeros(voxels.shape, bool)
    mask[1:3, 24:32, 20:28] = True
    return Volume(
        name,
        f"p{number}",
        f"images/{name}.b2nd",
        voxels.shape,
        spacing=(5.0, 5.0, 2.0),
        origin=(0.0, 0.0, 0.0),
        direction=LPI,
        lesions=(lesion_of_mask(number + 1, 0, mask),),
    )


def change(root, number, **values):
    """Change a volume in ``volume_set.json``."""
    before = read_volume_set(root)
    volumes = list(before.volumes)
    volumes[number] = replace(volumes[number], **values)
    write_volume_set(root, replace(before, volumes=tuple(volumes)))


def found(report):
    return {fault.kind: fault.places for fault in report.faults}


def test_every_slice_of_all_splits_is_checked(root):
    report = check_data_set("checked_set", workers=1)
    assert report.names == ("checked_set_volumes_train", "checked_set_volumes_val")
    assert found(report) == {"in_no_split": (f"{root}: found patient 'p3' in none of the splits",)}
    counts = report.counts["checked_set_volumes_train"]
    assert (counts["patients"], counts["volumes"], counts["images"]) == (2, 2, 2 * DEPTH)
    assert (counts["lesions"], counts["annotations_with_mask"]) == (2, 4)
    assert counts["images_without_lesion"] == 4
    assert counts["sizes_mm"]["range"] == [40.0, 40.0, 40.0]
    assert check_data_set("checked_set_train", workers=1).names == ("checked_set_train",)


def test_axes_that_are_not_the_projects_are_found(root):
    change(root, 1, direction=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
    places = found(check_data_set("checked_set", workers=1))["odd_orientation"]
    assert len(places) == 1 and places[0].startswith(
        "checked_set_volumes_train, volume v1: found axes x, y and z 0, 180, 180 degrees away"
    )


def test_damaged_voxels_and_copies_are_found(root):
    (root / "images" / "v2.b2nd").write_bytes((root / "images" / "v0.b2nd").read_bytes())
    file = root / "images" / "v1.b2nd"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    report = check_data_set("checked_set", workers=1)
    counts = {fault.kind: fault.count for fault in report.faults}
    assert counts["image_in_two_splits"] == DEPTH and counts["unreadable_file"] > 0
    places = found(report)
    assert str(file) in places["unreadable_file"][0]
    assert places["image_in_two_splits"][0].startswith("checked_set_volumes_val, image v2_000: ")
    file.unlink()
    report = check_data_set("checked_set", workers=1)
    assert report.has_errors and str(file) in found(report)["refused"][0]
    assert "in_no_split" not in found(report)  # whose patients are not known to be
    assert report.counts["checked_set_volumes_val"]["lesions"] == 1


def test_patients_of_splits_that_are_not_checked_are_in_a_split(root):
    splits = {"train": ("p0", "p1"), "val": ("p2",), "test": ("p3",)}
    write_volume_set(root, replace(read_volume_set(root), splits=splits))
    register_volume_set(root)
    names = ["checked_set_volumes_train", "checked_set_volumes_val"]
    assert not check_data_set(names, workers=1).faults


def test_folds_may_share_what_splits_of_one_may_not(root):
    folds = ({"train": ("p0", "p1"), "test": ("p2",)}, {"train": ("p2", "p1"), "test": ("p0",)})
    write_volume_set(root, replace(read_volume_set(root), folds=folds))
    register_volume_set(root)
    names = ["checked_set_fold0", "checked_set_fold1"]
    assert set(found(check_data_set(names, workers=1))) == {"in_no_split"}
    (root / "images" / "v0.b2nd").write_bytes((root / "images" / "v1.b2nd").read_bytes())
    report = check_data_set(names, workers=1)
    counts = {fault.kind: fault.count for fault in report.faults}
    assert counts["image_in_two_splits"] == DEPTH and "patient_in_two_splits" not in counts
    assert all("_fold1_volumes_test, " in p for p in found(report)["image_in_two_splits"])


def test_patients_without_a_lesion_are_in_a_split(root):
    splits = {"train": ("p0", "p1"), "val": ("p2", "p3")}
    write_volume_set(root, replace(read_volume_set(root), splits=splits))
    change(root, 1, lesions=())
    register_volume_set(root)
    names = ["checked_set_train", "checked_set_val"]
    report = check_data_set(names, workers=1)
    assert report.names == tuple(names) and not report.faults


def test_what_the_loader_refuses_is_a_fault(root):
    register_volume_set(root)
    file = root / "volume_set.json"
    file.write_text(file.read_text().replace('"category": 0', '"category": 1'))
    report = check_data_set("checked_set", workers=1)
    (fault,) = (one for one in report.faults if one.severity == "error")
    assert fault.kind == "refused" and fault.count == 4 * 2  # in both splits
    assert "volume 'v0', lesion 1: category: found 1, expected less than 1" in fault.places[0]


def test_a_damaged_volume_set_is_told_of(root):
    file = root / "volume_set.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match=r"checked_set/volume_set\.json: found no readable JSON"):
        check_data_set("checked_set", workers=1)


def test_without_splits_all_slices_are_checked(root):
    write_volume_set(root, replace(read_volume_set(root), splits={}))
    report = check_data_set("checked_set", workers=1)
    assert report.names == ("checked_set_volumes",) and not report.faults
    assert report.counts["checked_set_volumes"]["images"] == 4 * DEPTH
    assert report.counts["checked_set_volumes"]["image_sizes"] == {f"{SIZE} x {SIZE}": 4}
