"""The configs of Bai et al. (2023) say what the paper says, and differ in their own parts alone."""

import pytest
from config_values import CONFIGS, values_of

_TEACHER = "MODEL.MEAN_TEACHER."
_LABELS, _ENABLED = f"{_TEACHER}PSEUDO_LABELS", f"{_TEACHER}ENABLED"
# What a config adds to another one.
_ADDS = {
    "teacher": ("faster_rcnn", {_ENABLED, _LABELS}),
    "add": ("teacher", {_LABELS}),
    "ignore": ("add", {_LABELS}),
    "add_decay": ("add", {"SOLVER.STEPS"}),
    "add_hard_negatives": (
        "add",
        {
            "MODEL.ROI_HEADS.NAME",
            "MODEL.ROI_HEADS.NUM_CLASSES",
            "DATASETS.TRAIN",
            "DATASETS.EXCLUDED_VOLUMES",
            "HARD_NEGATIVES.DATASETS",
            "HARD_NEGATIVES.PERIOD",
            "HARD_NEGATIVES.START_ITER",
        },
    ),
}


def _bai(name: str) -> dict:
    return values_of(CONFIGS / "mean_teacher" / f"{name}.yaml")


@pytest.mark.parametrize("suffix", ["", "_phantom"])
@pytest.mark.parametrize("name", _ADDS)
def test_a_config_adds_its_own_part_alone(name, suffix):
    base, added = _ADDS[name]
    values, others = _bai(f"{name}{suffix}"), _bai(f"{base}{suffix}")
    assert {key for key in values if values[key] != others[key]} == added | {"OUTPUT_DIR"}
    assert values["OUTPUT_DIR"] == f"output/mean_teacher_{name}{suffix}"


def test_they_have_the_papers_values():
    """Bai et al. (2023), sections II and III; the batch is ours."""
    values = _bai("add")
    expected = {
        "MODEL.META_ARCHITECTURE": "LesionRCNN",
        "MODEL.BACKBONE.NAME": "build_fused_fpn_backbone",
        "MODEL.SLICE_IMAGES.BACKBONE": "build_densenet_backbone",
        "MODEL.DENSENET.DEPTH": 121,
        "MODEL.DENSENET.NUM_BLOCKS": 3,
        "MODEL.WEIGHTS": "torchvision://densenet121",
        "MODEL.MEAN_TEACHER.ENABLED": True,
        "MODEL.MEAN_TEACHER.PSEUDO_LABELS": "add",
        "MODEL.MEAN_TEACHER.MOMENTUM": 0.999,
        "MODEL.MEAN_TEACHER.START_ITER": 0,
        "MODEL.MEAN_TEACHER.SCORE_THRESH": 0.9,
        "MODEL.MEAN_TEACHER.GT_NMS_THRESH": 0.7,
        "INPUT.CT.NUM_SLICES": 9,
        "INPUT.CT.SLICE_INTERVAL": 2.0,
        "INPUT.CT.PIXEL_SPACING": 0.8,
        "INPUT.CT.MAX_SIZE": 640,
        "INPUT.CT.HU_WINDOW": (-1024.0, 3071.0),
        "INPUT.AUG.RESIZE_RANGE": (0.8, 1.2),
        "INPUT.AUG.HFLIP_PROB": 0.0,
        "SOLVER.OPTIMIZER": "SGD",
        "SOLVER.BASE_LR": 0.02,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "SOLVER.STEPS": (),
        "SOLVER.MAX_ITER": 80000,
        "DATASETS.EXCLUDED_VOLUMES": ("deeplesion_volumes_val",),
        "TEST.LINKING": "track",
        "TEST.VOLUME_CRITERIA": ("p3d@0.5",),
        "TEST.VOLUME_AP": "all_points",
        "TEST.INCLUSIVE_BOXES": True,
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 32,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
        "TEST.VOLUME_FROC_RATES": (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
    }
    assert {key: values[key] for key in expected} == expected
    assert _bai("ignore")[_LABELS] == "ignore" and _bai("teacher")[_LABELS] == "none"


@pytest.mark.parametrize("suffix", ["", "_phantom"])
def test_the_learning_rate_falls_within_the_training(suffix):
    values = _bai(f"add_decay{suffix}")
    assert values["SOLVER.STEPS"] and max(values["SOLVER.STEPS"]) < values["SOLVER.MAX_ITER"]
