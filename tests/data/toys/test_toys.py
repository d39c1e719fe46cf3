import importlib.util
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lesion_d2
from lesion_d2.data.catalog import is_registered, load_records, suggest_names
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.slices.ct import hu_to_pixels, read_slice
from lesion_d2.data.toys import images as toys
from lesion_d2.data.toys import on_demand
from lesion_d2.data.toys.images import dataset_name, load_toys, register_toys, write_toys
from lesion_d2.data_checks.loading import expand_names
from lesion_d2.evaluation import LesionEvaluator

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

TINY = {"num_train": 12, "num_val": 3, "num_test": 6}
SPLITS = {"train": 12, "val": 3, "test": 6}
TASKS = ("donuts_shape", "donuts_pattern", "circles_scale")
CLASSES = {
    "donuts_shape": ["circle", "donut"],
    "donuts_pattern": ["circle", "donut"],
    "circles_scale": ["radius 19", "radius 20"],
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    assert write_toys(folder / "toys", **TINY, workers=1)
    return folder


@pytest.fixture(scope="module")
def root(datasets) -> Path:
    return datasets / "toys"


def load(root, task="donuts_shape", split="train", num_images=None):
    return load_toys(root / f"{task}_{split}.json", root, num_images)


def decode(annotation):
    return coco_mask.decode(annotation["segmentation"]).astype(bool)


def draw(task, label, x, y):
    """Pixels that are 0.2 brighter, and those of the mask, written out."""
    bright, mask = np.zeros((2, 320, 320), bool)
    # Nothing is farther than 20 pixels from its center.
    rows, columns = (range(max(c - 22, 0), min(c + 23, 320)) for c in (y, x))
    for row in rows:
        for column in columns:
            distance = math.hypot(column - x, row - y)
            radius = 19 if task == "circles_scale" and label == 0 else 20
            inside = distance <= radius
            hole = task != "circles_scale" and label == 1 and distance <= 4
            bright[row, column] = inside and not hole
            mask[row, column] = inside and not (hole and task == "donuts_shape")
    return bright, mask


def center(annotation):
    x1, y1, x2, y2 = annotation["bbox"]
    return int((x1 + x2) / 2), int((y1 + y2) / 2)


# --- pixels, masks and boxes ----------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_images_are_their_definition(task, root):
    noises, insides = [], []
    for i, record in enumerate(load(root, task)):
        [annotation] = record["annotations"]
        assert annotation["category_id"] == i % 2
        bright, mask = draw(task, i % 2, *center(annotation))
        assert (decode(annotation) == mask).all()
        noise = read_slice(record["file_name"]) / 10_000 - 0.2 * bright
        assert noise.shape == (320, 320) and noise.min() >= 0 and noise.max() <= 1
        noises.append(noise)
        insides.append(noise[bright])
    # What is left is uniform, and the same inside an object: 1/sqrt(12 n) off the mean at n pixels.
    noise, inside = np.concatenate(noises), np.concatenate(insides)
    assert noise.min() < 1e-3 and noise.max() > 1 - 1e-3
    assert abs(noise.mean() - 0.5) < 4 / math.sqrt(12 * noise.size)
    assert noise.std() == pytest.approx(1 / math.sqrt(12), rel=0.01)
    assert abs(inside.mean() - 0.5) < 4 / math.sqrt(12 * inside.size)
    flat = noises[0].ravel()
    assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(flat, noises[1].ravel())[0, 1]) < 0.02  # another one an image


def test_images_are_drawn_from_their_own_seed(root):
    for split, (s, count) in enumerate(SPLITS.items()):
        for folder, task in enumerate(("donuts_shape", "circles_scale")):
            for i, record in enumerate(load(root, task, s)):
                rng = np.random.default_rng([0, folder, split, i])
                x, y = rng.integers(24, 296, 2)
                [annotation] = record["annotations"]
                assert center(annotation) == (x, y)
                expected = rng.random((320, 320)) + 0.2 * draw(task, i % 2, x, y)[0]
                found = read_slice(record["file_name"])
                assert np.abs(found - 10_000 * expected).max() <= 0.5 + 1e-6
            assert i == count - 1


@pytest.mark.parametrize("task", TASKS)
def test_boxes_are_tight_around_pixel_centers(task, root):
    for i, record in enumerate(load(root, task)):
        [annotation] = record["annotations"]
        rows, columns = np.nonzero(decode(annotation))
        box = [columns.min() - 0.5, rows.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5]
        assert annotation["bbox"] == box and annotation["bbox_mode"] == BoxMode.XYXY_ABS
        width = 39 if task == "circles_scale" and i % 2 == 0 else 41
        assert box[2] - box[0] == box[3] - box[1] == width
        assert min(box) >= 3.5 and max(box) <= 315.5  # 4 pixels are free


def test_the_margin_is_reached_and_not_passed():
    centers = []
    for i in range(300):
        rows, columns = np.nonzero(toys.make_toy("circles_scale", "val", i, seed=4)[1])
        centers += [(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2]
    assert 24 <= min(centers) < 28 and 291 < max(centers) <= 295


def test_donut_tasks_share_images_and_differ_in_the_hole(root):
    shapes, patterns = load(root, "donuts_shape"), load(root, "donuts_pattern")
    for i, (shape, pattern) in enumerate(zip(shapes, patterns, strict=True)):
        assert shape["file_name"] == pattern["file_name"]
        (a,), (b,) = shape["annotations"], pattern["annotations"]
        assert a["bbox"] == b["bbox"]
        num_hole = (decode(a) != decode(b)).sum()
        assert num_hole == (49 if i % 2 else 0)  # pixels no further than 4 from one of them
    assert len(list((root / "donuts").iterdir())) == len(list((root / "circles").iterdir())) == 21


def test_annotation_files_are_cocos(root, capsys):
    for task in TASKS:
        coco = COCO(root / f"{task}_train.json")
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == CLASSES[task]
        assert len(coco.getImgIds()) == 12
        for image_id in coco.getImgIds():
            [image] = coco.loadImgs([image_id])
            [annotation] = coco.loadAnns(coco.getAnnIds([image_id]))
            assert (root / image["file_name"]).is_file()
            mask = coco.annToMask(annotation)
            assert mask.shape == (image["height"], image["width"]) == (320, 320)
            assert annotation["area"] == mask.sum()
            assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()


# --- sets and subsets -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_registered_sets_have_their_images_and_classes(task, datasets, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    names = set()
    for split, count in SPLITS.items():
        name = f"toy_{task}_{split}"
        records = load_records(name)
        assert len(records) == count
        names |= {record["file_name"] for record in records}
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == CLASSES[task]
        assert metadata.evaluator_type == "lesion"
        assert dataset_name(task, split) == name
        assert DatasetCatalog.get(dataset_name(task, split, 2)) == records[:2]
    assert len(names) == sum(SPLITS.values())
    with pytest.raises(ValueError, match=r"train.json: found 12 images, expected 50 or more$"):
        load_records(f"toy_{task}_train_50")


def test_toys_are_registered_when_they_are_asked_for(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root.parent))
    name = "toy_circles_scale_train_3"
    for catalog in (DatasetCatalog, MetadataCatalog):
        assert name not in catalog and name not in catalog.list()
    try:
        assert MetadataCatalog.get(name).thing_classes == CLASSES["circles_scale"]
        assert DatasetCatalog.get(name) == load(root, "circles_scale")[:3]
        assert is_registered(name) and name in DatasetCatalog.list()
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert len(DatasetCatalog.get(name)) == 3  # and again


@pytest.mark.parametrize(
    "name", ["toy_circles_scale", "toy_circles_scale_train_0", "toy_squares_train", "toy", "", None]
)
def test_other_names_are_not_registered(name):
    before = DatasetCatalog.list()
    assert not is_registered(name)
    with pytest.raises(KeyError, match="is not registered! Available datasets"):
        DatasetCatalog.get(name)
    assert DatasetCatalog.list() == before
    assert "toy_circles_scale_train" in suggest_names("toy_circles_scale")


@pytest.mark.parametrize("first", SPLITS)
def test_one_split_that_is_registered_leaves_out_no_other(first):
    known = [name for name in DatasetCatalog.list() if name.startswith("toy_")]
    for name in known:
        DatasetCatalog.remove(name)
    names = [f"toy_circles_scale_{split}" for split in SPLITS]
    assert is_registered(f"toy_circles_scale_{first}")
    assert expand_names(["toy_circles_scale"]) == names


def test_threads_that_ask_for_one_toy_find_it_whole(monkeypatch):
    barrier = threading.Barrier(4)

    def slowly(name, *args):
        time.sleep(0.01)
        register_toys(name, *args)

    def ask(_):
        barrier.wait()
        return MetadataCatalog.get("toy_circles_scale_val_1").get("thing_classes")

    monkeypatch.setattr(on_demand, "register_toys", slowly)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, range(4))) == [CLASSES["circles_scale"]] * 4


def test_subsets_are_the_first_images(root):
    name = "toy_of_a_test"
    try:
        register_toys(name, str(root), "circles_scale", "train", 7)
        subset = load_records(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert subset == load(root, "circles_scale")[:7]
    assert [r["annotations"][0]["category_id"] for r in subset] == [0, 1, 0, 1, 0, 1, 0]


def test_a_larger_split_begins_with_the_smaller_one(root, tmp_path):
    write_toys(tmp_path / "toys", num_train=1, num_val=4, num_test=1, workers=1)
    more, fewer = load(tmp_path / "toys", split="val"), load(root, split="val")
    for a, b in zip(more, fewer, strict=False):
        assert (read_slice(a["file_name"]) == read_slice(b["file_name"])).all()
        assert a["annotations"] == b["annotations"]
    assert len(more) == 4 and len(fewer) == 3


def test_splits_share_no_noise(root):
    first = [read_slice(load(root, split=split)[0]["file_name"]) for split in SPLITS]
    first.append(read_slice(load(root, "circles_scale")[0]["file_name"]))
    correlation = np.corrcoef([hu.ravel() for hu in first])
    assert np.abs(correlation - np.eye(4)).max() < 0.05


def test_dicts_have_what_the_project_reads(root):
    records = load(root)
    assert len({record["image_id"] for record in records}) == 12
    for record in records:
        assert (record["height"], record["width"]) == (320, 320)
        assert record["spacing"] == (1, 1, 1)
        number = int(Path(record["file_name"]).stem)
        assert record["slice_range"] == (number, number) and record["slice_index"] == number
        pixels = hu_to_pixels(read_slice(record["file_name"]), record["window"])
        assert pixels.min() < 1 and 200 < pixels.max() < 255


# --- what reads them ------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_mapper_reads_toys_as_slices(task, root):
    mapper = LesionDatasetMapper(
        True,
        augmentations=[],
        num_slices=3,
        slice_interval=1.0,
        hu_window=(0, 12_000),
        mask_method="ellipse",
    )
    for i, record in enumerate(load(root, task)[:4]):
        mapped = mapper(record)
        assert (mapped["image"] == mapped["image"][1]).all()  # no other image is a neighbor
        instances = mapped["instances"]
        assert instances.gt_classes.tolist() == [i % 2]
        x, y = center(record["annotations"][0])
        expected = draw(task, i % 2, x, y)[1]
        assert (instances.gt_masks.tensor[0].numpy() == expected).all()
        assert expected[y, x] == (task != "donuts_shape" or i % 2 == 0)
        assert instances.gt_boxes.tensor.tolist() == [record["annotations"][0]["bbox"]]


def test_the_truth_as_predictions(datasets, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    records = load_records("toy_donuts_pattern_test")
    for flip, expected in ((0, 100), (1, 0)):
        evaluator = LesionEvaluator("toy_donuts_pattern_test", num_bootstrap=0)
        evaluator.reset()
        for record in records:
            [annotation] = record["annotations"]
            output = Instances((320, 320))
            output.pred_boxes = Boxes(torch.tensor([annotation["bbox"]]))
            output.scores = torch.ones(1)
            output.pred_classes = torch.tensor([annotation["category_id"] ^ flip])
            output.pred_masks = torch.from_numpy(decode(annotation))[None]
            evaluator.process([record], [{"instances": output}])
        results = evaluator.evaluate()
        assert results["bbox"]["AP10"] == pytest.approx(expected)
        assert results["bbox"]["AP"] == pytest.approx(expected)
        assert results["segm"]["AP"] == pytest.approx(expected)
        assert results["froc"]["sens@1"] == 100  # pools the classes


# --- writing --------------------------------------------------------------------------------------


def files(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_same_bytes_for_any_number_of_workers(root, tmp_path, warm_spawn):
    write_toys(tmp_path / "toys", **TINY, workers=2)
    assert files(tmp_path / "toys") == files(root)
    write_toys(tmp_path / "other", **TINY, seed=1, workers=1)
    other = files(tmp_path / "other")
    assert all(other[Path(f"donuts/{i:06d}.png")] not in files(root).values() for i in range(21))


def test_same_options_write_nothing_and_others_are_refused(tmp_path):
    tiny = {"num_train": 2, "num_val": 1, "num_test": 1, "workers": 1}
    assert write_toys(tmp_path / "toys", **tiny)
    before = files(tmp_path / "toys")
    assert not write_toys(tmp_path / "toys", **tiny)
    with pytest.raises(FileExistsError, match=r"\(num_val 1 instead of 2\).*--overwrite"):
        write_toys(tmp_path / "toys", **{**tiny, "num_val": 2})
    assert files(tmp_path / "toys") == before
    assert write_toys(tmp_path / "toys", **{**tiny, "num_val": 2}, overwrite=True)
    assert len(list((tmp_path / "toys" / "donuts").iterdir())) == 5
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine: found something other than a toy data set"):
        write_toys(tmp_path / "mine", **tiny, overwrite=True)


def test_interrupted_writing_leaves_what_was_there(tmp_path, monkeypatch):
    tiny = {"num_train": 2, "num_val": 1, "num_test": 1, "workers": 1}
    write_toys(tmp_path / "old", **tiny)
    before, make, calls = files(tmp_path / "old"), toys.make_toy, []

    def interrupt(*args):
        calls.append(args)
        if len(calls) % 3 == 0:
            raise KeyboardInterrupt
        return make(*args)

    monkeypatch.setattr(toys, "make_toy", interrupt)
    for name in ("new", "old"):
        with pytest.raises(KeyboardInterrupt):
            write_toys(tmp_path / name, **tiny, seed=1, overwrite=True)
    assert len(calls) == 6
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert files(tmp_path / "old") == before


def test_the_command_writes_what_it_is_asked_for(tmp_path, capsys):
    path = Path(lesion_d2.__file__).parents[1] / "datasets" / "prepare_toys.py"
    spec = importlib.util.spec_from_file_location("prepare_toys", path)
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    options = ["--root", str(tmp_path / "toys"), "--val", "1", "--test", "1", "--workers", "1"]
    assert command.main([*options, "--train", "2"]) == 0
    assert capsys.readouterr().out.startswith(f"Wrote {tmp_path / 'toys'} in ")
    assert json.loads((tmp_path / "toys" / "toy.json").read_text())["num_train"] == 2
    assert command.main([*options, "--train", "3"]) == 1
    assert "num_train 2 instead of 3" in capsys.readouterr().err
    assert command.main([*options, "--train", "0"]) == 1
    assert capsys.readouterr().err == (
        "error: toy option num_train: found 0, expected 1 to 99999\n"
    )


# --- bad input ------------------------------------------------------------------------------------


def test_what_is_missing_is_said_in_a_line(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.json: no such.*prepare_toys\.py") as error:
        load_toys(tmp_path / "x.json", tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"12 of 12 images are missing.*prepare_toys\.py"):
        load_toys(root / "donuts_shape_train.json", tmp_path)
    with pytest.raises(ValueError, match="found 3 images, expected 4 or more"):
        load(root, split="val", num_images=4)
    with pytest.raises(ValueError, match="found num_images 0, expected 1"):
        load(root, num_images=0)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"images": []}', '{"images": [{"id": 1}], "annotations": []}']
)
def test_no_annotation_file(content, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match="found no toy annotations") as error:
        load_toys(tmp_path / "x.json", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "squares"}, "found task 'squares', expected one of"),
        ({"split": "all"}, "found split 'all', expected one of"),
        ({"num_images": 0}, "found num_images 0, expected 1"),
    ],
)
def test_an_invalid_registration_is_refused(change, message):
    options = {"task": "donuts_shape", "split": "train", "num_images": 2, **change}
    with pytest.raises(ValueError, match=f"toy_x: {message}"):
        register_toys("toy_x", "nowhere", **options)
    assert "toy_x" not in DatasetCatalog


@pytest.mark.parametrize(
    ("option", "value"), [("num_val", 0), ("num_test", 100_000), ("seed", -1), ("workers", 0)]
)
def test_options_out_of_range_are_refused_and_nothing_is_written(option, value, tmp_path):
    with pytest.raises(ValueError, match=f"toy option {option}: found {value}, expected"):
        write_toys(tmp_path / "toys", **{option: value})
    assert not list(tmp_path.iterdir())
