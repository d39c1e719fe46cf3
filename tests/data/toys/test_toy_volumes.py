import math
import runpy
import sys
from pathlib import Path

from lesion_d2.data.toys.volumes import SHAPE, TASKS, make_toy_volume, write_toy_volumes
from lesion_d2.data.volume_set.catalog import register_volume_set
from lesion_d2.data.volume_set.form import read_volume_set
from lesion_d2.data.volume_set.voxels import read_voxels

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as coco_mask

SCRIPT = Path(__file__).parents[3] / "datasets" / "prepare_toys.py"
SPLITS = ("train", "val", "test")
TINY = {"num_train": 4, "num_val": 2, "num_test": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    roots = write_toy_volumes(folder, **TINY)
    assert [root.name for root in roots] == [f"toy_{task}" for task in TASKS]
    return folder


def draw(task, label, center):
    """Voxels that are 0.2 brighter, and those of the mask, written out."""
    bright, mask = np.zeros((2, *SHAPE), bool)
    for place in np.ndindex(SHAPE):
        distance = math.dist(place, center)
        inside = distance <= (7 if task == "spheres_scale" and label == 0 else 8)
        hole = task != "spheres_scale" and label == 1 and distance <= 3
        bright[place] = inside and not hole
        mask[place] = inside and not (hole and task == "shells_shape")
    return bright, mask


@pytest.mark.parametrize(("task", "index"), [(t, i) for t in TASKS for i in (0, 1)])
def test_volumes_are_their_definition(folder, task, index):
    volume_set = read_volume_set(folder / f"toy_{task}")
    volume = volume_set.volumes[index]
    assert volume.patient in volume_set.splits["train"] and volume.shape == SHAPE

    [lesion] = volume.lesions
    assert lesion.category == index
    x1, y1, z1, x2, y2, z2 = lesion.box
    center = [(z1 + z2) / 2, (y1 + y2) / 2, (x1 + x2) / 2]
    bright, mask = draw(task, index, center)
    found = np.zeros(SHAPE, bool)
    for number, counts in lesion.masks.items():
        found[number] = coco_mask.decode({"size": list(SHAPE[1:]), "counts": counts})
    assert np.array_equal(found, mask)

    at = np.argwhere(mask)
    low, high = at.min(axis=0), at.max(axis=0)
    assert lesion.box == (low[2] - 0.5, low[1] - 0.5, low[0], high[2] + 0.5, high[1] + 0.5, high[0])
    assert low.min() >= 2 and (high < np.subtract(SHAPE, 2)).all()

    noise = read_voxels(folder / f"toy_{task}" / volume.image) / 10_000 - 0.2 * bright
    assert noise.min() >= -1e-4 and noise.max() <= 1 + 1e-4
    # 1/sqrt(12 n) off the mean at n voxels
    assert abs(noise.mean() - 0.5) < 4 / math.sqrt(12 * noise.size)
    assert abs(noise[bright].mean() - 0.5) < 4 / math.sqrt(12 * bright.sum())


def test_shells_share_their_volumes_and_splits_do_not(folder):
    shape, pattern = (read_volume_set(folder / f"toy_shells_{t}") for t in ("shape", "pattern"))
    for a, b in zip(shape.volumes, pattern.volumes, strict=True):
        files = folder / "toy_shells_shape" / a.image, folder / "toy_shells_pattern" / b.image
        assert np.array_equal(*map(read_voxels, files))
    seen = [make_toy_volume("shells_shape", s, i)[0][0] for s in SPLITS for i in (0, 2)]
    for k, one in enumerate(seen):
        assert all(abs(np.corrcoef(one.ravel(), o.ravel())[0, 1]) < 0.1 for o in seen[:k])


def test_registered_by_their_folders(folder):
    names = register_volume_set(folder / "toy_spheres_scale")
    try:
        dicts = DatasetCatalog.get("toy_spheres_scale_volumes_train")
        assert len(dicts) == 4 * SHAPE[0] and len({d["volume"] for d in dicts}) == 4
        assert MetadataCatalog.get("toy_spheres_scale_val").thing_classes == [
            "radius 7",
            "radius 8",
        ]
        assert all(d["window"] == (0, 12_000) for d in dicts)
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_command_writes_volumes(tmp_path, monkeypatch, capsys):
    arguments = ["--volumes", "--train", "2", "--val", "1", "--test", "1", "--root", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["prepare_toys.py", *arguments])
    for again in (False, True):
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert ended.value.code == 0
        assert ("Wrote" in capsys.readouterr().out) is not again
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"toy_{task}" for task in TASKS)
    monkeypatch.setattr(sys, "argv", ["prepare_toys.py", *arguments, "--seed", "1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 1 and "seed 0 instead of 1" in capsys.readouterr().err
