from lesion_d2.engine import InputError
from lesion_d2.engine.checks.training import check_regions

import pytest
from tiny_run import tiny_config

REGION = {"image_id": "b", "annotations": [{"iscrowd": 1}]}
IMAGES = [{"image_id": "a", "annotations": [{"iscrowd": 0}, {}]}, REGION]
RCNN = {"MODEL__META_ARCHITECTURE": "LesionRCNN", "MODEL__ROI_HEADS__NAME": "LesionROIHeads"}


@pytest.mark.parametrize(
    "changes, key, expected",
    [
        ({"MODEL__META_ARCHITECTURE": "RetinaNet"}, "META_ARCHITECTURE", "a LesionRetinaNet, "),
        ({**RCNN, "MODEL__PROPOSAL_GENERATOR__NAME": "RPN"}, "GENERATOR.NAME", "'LesionRPN'"),
        ({**RCNN, "MODEL__ROI_HEADS__NAME": "StandardROIHeads"}, "HEADS.NAME", "'LesionROIHeads'"),
        ({**RCNN, "MODEL__ROI_HEADS__NAME": "CascadeROIHeads"}, "HEADS.NAME", "'LesionROIHeads'"),
    ],
)
def test_parts_that_know_no_regions_to_ignore_are_named(changes, key, expected):
    cfg = tiny_config(**changes)
    message = rf"{key}: found '.*', expected {expected}.*DATASETS.TRAIN \(iscrowd, the first: b\)"
    with pytest.raises(InputError, match=message):
        check_regions(cfg, IMAGES)
    check_regions(cfg, IMAGES[:1])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"MODEL__META_ARCHITECTURE": "LesionRetinaNet"},
        {"MODEL__META_ARCHITECTURE": "DetUNet"},
        RCNN,
        {**RCNN, "MODEL__ROI_HEADS__NAME": "ULDorROIHeads"},
        {"MODEL__META_ARCHITECTURE": "RFCN3DCE", "MODEL__ROI_HEADS__NAME": "RFCNROIHeads"},
    ],
)
def test_models_of_this_project_know_regions_to_ignore(changes):
    check_regions(tiny_config(**changes), IMAGES)
