import json
import logging

from lesion_d2.data.catalog import load_records
from lesion_d2.data.dataset_options import DatasetOptions, ExcludedSeries, read_dataset
from lesion_d2.data.volume_set.catalog import register_volume_set, register_volume_sets
from lesion_d2.data.volume_set.form import read_volume_set, write_volume_set
from lesion_d2.evaluation import LesionEvaluator, VolumeEvaluator

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from made_up_sets import CLASSES, write_made_up_set
from pycocotools import mask as mask_util


@pytest.fixture
def datasets(tmp_path):
    """A folder of data sets; what was registered meanwhile is forgotten afterwards."""
    known = set(DatasetCatalog.list())
    yield tmp_path
    for name in set(DatasetCatalog.list()) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def mine(datasets):
    root, _ = write_made_up_set(datasets / "mine")
    register_volume_set(root)
    return root


def test_each_data_set_of_a_folder_is_registered(datasets, monkeypatch):
    write_made_up_set(datasets / "mine")
    (datasets / "empty").mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))

    assert register_volume_sets() == [
        "mine",
        "mine_train",
        "mine_val",
        "mine_fold0_train",
        "mine_fold0_test",
        "mine_volumes",
        "mine_volumes_train",
        "mine_volumes_val",
        "mine_fold0_volumes_train",
        "mine_fold0_volumes_test",
    ]
    assert register_volume_sets() == []  # they are known

    ids = {name: _ids(name) for name in ("mine_val", "mine_volumes_val", "mine_fold0_volumes_test")}
    assert ids == {
        "mine_val": ["b_000"],
        "mine_volumes_val": ["b_000", "b_001", "b_002", "b_003"],
        "mine_fold0_volumes_test": [*(f"a_00{n}" for n in range(6)), "single_000", "empty_000"],
    }
    assert MetadataCatalog.get("mine_train").thing_classes == list(CLASSES)
    assert MetadataCatalog.get("mine_train").evaluator_type == "lesion"
    assert MetadataCatalog.get("mine_volumes").evaluator_type == "lesion_volume"


def _ids(name: str) -> list[str]:
    return [image["image_id"] for image in DatasetCatalog.get(name)]


def test_splits_that_were_added_are_registered_then(mine):
    volume_set = read_volume_set(mine)
    volume_set = type(volume_set)(
        volume_set.classes, volume_set.volumes, {}, {"train": ("p1",), "test": ("p2",), "val": ()}
    )
    write_volume_set(mine, volume_set)
    assert register_volume_set(mine) == ["mine_test", "mine_volumes_test"]
    assert _ids("mine_test") == ["b_000"]
    with pytest.raises(ValueError, match="data set 'mine_val': found no images"):
        load_records("mine_val")


def test_damaged_ones_and_names_of_others_are_told_of(datasets, caplog):
    good, _ = write_made_up_set(datasets / "good")
    text = (good / "volume_set.json").read_text()
    for name, content in (("broken", text[:100]), ("other", "{}"), ("phantom", text)):
        (datasets / name).mkdir()
        (datasets / name / "volume_set.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        assert len(register_volume_sets(datasets)) == 10
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3 and all("\n" not in message for message in messages)
    assert "broken/volume_set.json: found no readable JSON" in messages[0]
    assert "other/volume_set.json: found no volume set, expected" in messages[1]
    assert "found the name 'phantom_train' of another data set, expected" in messages[2]
    with pytest.raises(ValueError, match="found the name 'a/b', expected letters"):
        register_volume_set(good, "a/b")


def test_what_is_wrong_with_a_volume_is_told_when_it_is_read(mine):
    file = mine / "volume_set.json"
    content = json.loads(file.read_text())
    content["volumes"][0]["lesions"][0]["box"][0] = "x"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"volume 'a', lesion 1: box: found \['x', "):
        DatasetCatalog.get("mine_train")


def test_options_of_data_sets(mine):
    images = read_dataset("mine_train", DatasetOptions(hidden_share=0.5, hidden_seed=1))
    hidden = {a["lesion_id"] for image in images for a in image["hidden_annotations"]}
    shown = {a["lesion_id"] for image in images for a in image["annotations"]}
    assert len(hidden) == 2 and not hidden & shown  # two of three lesions, each on all its slices
    excluded = ExcludedSeries.of(["mine_volumes_val"])
    left = read_dataset("mine", DatasetOptions(excluded=excluded))
    assert left == [image for image in DatasetCatalog.get("mine") if image["volume"] != "b"]
    with pytest.raises(ValueError, match="mine_volumes: found a data set whose annotations cannot"):
        read_dataset("mine_volumes", DatasetOptions(hidden_share=0.5))
    with pytest.raises(
        ValueError, match="mine_train: found a data set that can only be read completely"
    ):
        read_dataset("mine_train", DatasetOptions(allow_missing=True))


def _truth(image: dict, *, masks: bool = False) -> dict:
    """The lesions of an image as a model's output."""
    size = (image["height"], image["width"])
    lesions = [a for a in image["annotations"] if not a.get("iscrowd")]
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in lesions]).reshape(-1, 4))
    instances.scores = torch.ones(len(lesions))
    instances.pred_classes = torch.tensor([a["category_id"] for a in lesions], dtype=torch.int64)
    if masks:
        decoded = [mask_util.decode(a["segmentation"]) for a in lesions]
        instances.pred_masks = torch.from_numpy(np.array(decoded).reshape(-1, *size).astype(bool))
    return {"instances": instances}


class _ByLesion:
    """Links the boxes of a slice to those of the next ones that overlap them."""

    name, parameters = "test", {}

    def __call__(self, boxes, scores, slice_ids, classes):
        tracklets = np.full(len(boxes), -1)
        for i in np.argsort(slice_ids, kind="stable"):
            before = [
                j
                for j in range(len(boxes))
                if slice_ids[j] == slice_ids[i] - 1
                and (boxes[j, :2] < boxes[i, 2:]).all()
                and (boxes[i, :2] < boxes[j, 2:]).all()
            ]
            tracklets[i] = tracklets[before[0]] if before else tracklets.max() + 1
        linked = [np.flatnonzero(tracklets == n) for n in range(tracklets.max(initial=-1) + 1)]
        ends = [
            [*boxes[n, :2].min(0), slice_ids[n].min(), *boxes[n, 2:].max(0), slice_ids[n].max()]
            for n in linked
        ]
        first = [n[0] for n in linked]
        return np.array(ends).reshape(-1, 6), scores[first], classes[first], tracklets


def test_the_truth_as_detections_is_perfect(mine, tmp_path):
    images = DatasetCatalog.get("mine")
    evaluator = LesionEvaluator("mine", tmp_path / "slices", distributed=False, num_bootstrap=0)
    evaluator.reset()
    evaluator.process(images, [_truth(image) for image in images])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100) and results["froc"]["sens@0.5"] == 100
    assert results["froc_size"]["10_to_30mm/sens@0.5"] == 100  # lesion 2, of 11 mm

    images = DatasetCatalog.get("mine_volumes")
    evaluator = VolumeEvaluator(
        "mine_volumes", link=_ByLesion(), criteria=("iou@0.1", "p3d@0.5"), distributed=False
    )
    evaluator.process(images, [_truth(image) for image in images])
    results = evaluator.evaluate()
    assert results["volume"]["AP10"] == pytest.approx(100)
    assert results["volume"]["sens@0.5"] == results["volume"]["patient_AP"] == 100
    assert results["volume_p3d"]["sens@0.5"] == 100


def test_masks_are_scored_where_all_lesions_have_them(mine):
    volume_set = read_volume_set(mine)
    (volume, *_) = volume_set.volumes
    volume = type(volume)(**{**vars(volume), "lesions": volume.lesions[:1]})
    write_volume_set(mine, type(volume_set)(CLASSES, (volume,)))
    images = DatasetCatalog.get("mine")
    evaluator = LesionEvaluator("mine", distributed=False, num_bootstrap=0)
    evaluator.reset()
    evaluator.process(images, [_truth(image, masks=True) for image in images])
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100)
