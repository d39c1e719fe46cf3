import json
import math

from lesion_d2.engine import InputError, LesionCheckpointer, Trainer, load_config
from lesion_d2.engine.checks import check_inputs
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
    assert content["settings"]["linking"] == {"name": "merge", "iou_threshold": 0.2}

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
    with pytest.raises(ValueError, match="found evaluator_type 'coco' in its metadata"):
        Trainer.build_evaluator(cfg, "coco_2017_val")


def test_volumes_are_named_among_the_known_data_sets(tiny_phantom, tmp_path, weights):
    args = tiny_args(
        tmp_path, "--eval-only", MODEL__WEIGHTS=weights, DATASETS__TEST=("phantom_volume_test",)
    )
    with pytest.raises(ValueError, match=r"found 'phantom_volume_test', .*phantom_volumes_test"):
        train_net.setup(args)


def test_criteria_and_tracking_by_config(tiny_phantom, tmp_path, weights):
    args = tiny_args(
        tmp_path,
        "--eval-only",
        MODEL__WEIGHTS=weights,
        DATASETS__TEST=("phantom_volumes_test",),
        MODEL__RETINANET__SCORE_THRESH_TEST=0.0,
        TEST__DETECTIONS_PER_IMAGE=20,
        TEST__LINKING="track",
        TEST__TRACKING__MAX_GAP=2,
        TEST__VOLUME_CRITERIA=("p3d@0.5", "iou@0.1", "iobb@0.3"),
        TEST__VOLUME_FROC_RATES=(0.125, 8.0),
    )
    results = train_net.main(args)
    for task, name in (("volume", "AP"), ("volume_iou", "AP10"), ("volume_iobb", "AP")):
        assert {name, "sens@0.125", "sens@8", "mean_sens"} <= set(results[task])

    file = tmp_path / "inference" / "phantom_volumes_test" / "volumes.json"
    content = json.loads(file.read_text())
    settings = content["settings"]
    assert settings["linking"] == {"name": "track", "iou_threshold": 0.3, "max_gap": 2}
    assert any(d["box3d"][2] < d["box3d"][5] for d in content["detections"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"TEST__LINKING": "sort"}, "TEST.LINKING: found 'sort', expected one of merge, track"),
        (
            {"TEST__TRACKING__IOU_THRESH": 1.0},
            "TRACKING.IOU_THRESH: found 1.0, expected 0 to below 1",
        ),
        ({"TEST__TRACKING__MAX_GAP": -1}, "TRACKING.MAX_GAP: found -1, expected 0"),
        ({"TEST__VOLUME_CRITERIA": ("p3d",)}, "TEST.VOLUME_CRITERIA: found 'p3d', expected overl"),
        (
            {"TEST__VOLUME_AP": "voc"},
            "TEST.VOLUME_AP: found 'voc', expected one of coco, all_points",
        ),
        ({"TEST__VOLUME_CRITERIA": ()}, "TEST.VOLUME_CRITERIA: found no criterion, expected"),
        ({"TEST__VOLUME_FROC_RATES": (0.5, 0)}, r"VOLUME_FROC_RATES: found .0.5, 0., expected"),
        (
            {"TEST__VOLUME_FROC_RATES": ()},
            r"VOLUME_FROC_RATES: found .., expected finite n",
        ),
        (
            {"TEST__VOLUME_FROC_RATES": "(1.0, 1e999)"},
            r"RATES: found .1.0, inf., expected finite",
        ),
        (
            {"TEST__VOLUME_CRITERIA": ("p3d@0.5",), "TEST__BEST_METRIC": "volume/AP10"},
            "TEST.BEST_METRIC: found 'volume/AP10', expected volume/AP for phantom_volumes_val",
        ),
        ({"TEST__BEST_METRIC": "volume_iou/AP10"}, "'volume_iou/AP10', expected volume/AP10 for"),
        (
            {"TEST__BEST_METRIC": "volume_p3d/AP", "DATASETS__TEST": ("phantom_val",)},
            "'volume_p3d/AP', expected one of an evaluation of slices for phantom_val",
        ),
    ],
)
def test_bad_settings_stop_a_run_before_it_writes(tiny_phantom, tmp_path, changes, message):
    settings = {
        "TEST__NUM_BEST_CHECKPOINTS": 2,
        "DATASETS__TEST": ("phantom_volumes_val",),
        **changes,
    }
    with pytest.raises(InputError, match=message) as error:
        train_net.main(tiny_args(tmp_path / "output", **settings))
    assert "\n" not in str(error.value) and not (tmp_path / "output").exists()


@pytest.mark.parametrize("metric", ["volume/mean_sens", "phantom_volumes_val/volume_iou/AP"])
def test_the_best_model_may_go_by_any_criterion(tiny_phantom, tmp_path, metric):
    args = tiny_args(
        tmp_path,
        TEST__NUM_BEST_CHECKPOINTS=2,
        TEST__BEST_METRIC=metric,
        DATASETS__TEST=("phantom_volumes_val",),
        TEST__VOLUME_CRITERIA=("p3d@0.5", "iou@0.3"),
    )
    assert check_inputs(load_config(args), args) > 0
