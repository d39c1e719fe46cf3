import json
import math

from lesion_d2.engine import LesionCheckpointer, Trainer
from lesion_d2.evaluation import VolumeEvaluator

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_run import tiny_args, tiny_config

import train_net


@pytest.fixture
def weights(tmp_path) -> str:
    """Weights of an untrained model with one class."""
    LesionCheckpointer(Trainer.build_model(tiny_config()), str(tmp_path)).save("untrained")
    return str(tmp_path / "untrained.pth")


def test_evaluation_only_of_volumes(tiny_phantom, tmp_path, weights):
    args = tiny_args(
        tmp_path / "test",
        "--eval-only",
        MODEL__WEIGHTS=weights,
        DATASETS__TEST=("phantom_volumes_test", "phantom_test"),
        # An untrained model is sure of nothing.
        MODEL__RETINANET__SCORE_THRESH_TEST=0.0,
        TEST__DETECTIONS_PER_IMAGE=20,
        TEST__MERGE_IOU_THRESH=0.2,
    )
    results = train_net.main(args)
    numbers = results["phantom_volumes_test"]["volume"]
    assert 0 <= numbers["AP10"] <= 100 and 0 <= numbers["sens@16"] <= 100
    assert math.isnan(numbers["patient_AP"])  # every patient has a lesion
    assert {"bbox", "froc"} <= set(results["phantom_test"])
    folder = tmp_path / "test" / "inference" / "phantom_volumes_test"
    assert (folder / "froc.png").exists()
    content = json.loads((folder / "volumes.json").read_text())
    assert content["settings"]["merge_iou_threshold"] == 0.2
    slices = {(d["volume"], d["slice_index"]) for d in DatasetCatalog.get("phantom_volumes_test")}
    assert len(content["detections"]) > 20
    for detection in content["detections"]:
        first, last = detection["box3d"][2], detection["box3d"][5]
        assert {(detection["volume"], first), (detection["volume"], last)} <= slices
    assert any(d["box3d"][2] < d["box3d"][5] for d in content["detections"])


def test_the_data_set_picks_its_evaluator(tiny_phantom, tmp_path):
    cfg = tiny_config(OUTPUT_DIR=tmp_path)
    for name in ("phantom_volumes_val", "phantom_volumes_val_types"):
        assert isinstance(Trainer.build_evaluator(cfg, name), VolumeEvaluator)
    assert not isinstance(Trainer.build_evaluator(cfg, "phantom_val"), VolumeEvaluator)
    assert MetadataCatalog.get("coco_2017_val").evaluator_type == "coco"
    with pytest.raises(ValueError, match="found evaluator_type 'coco', expected 'lesion' or"):
        Trainer.build_evaluator(cfg, "coco_2017_val")


def test_volumes_are_named_among_the_known_data_sets(tiny_phantom, tmp_path, weights):
    args = tiny_args(
        tmp_path, "--eval-only", MODEL__WEIGHTS=weights, DATASETS__TEST=("phantom_volume_test",)
    )
    with pytest.raises(ValueError, match=r"found 'phantom_volume_test', .*phantom_volumes_test"):
        train_net.setup(args)
