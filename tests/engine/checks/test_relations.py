"""What a key requires of other keys: the model, other options, data sets."""

import re

from lesion_d2.config import get_lesion_config
from lesion_d2.engine import InputError
from lesion_d2.engine.checks.model import check_model
from lesion_d2.engine.checks.relations import (
    RELATIONS,
    TRAINING_RELATIONS,
    check_regions,
    check_relations,
)
from lesion_d2.engine.checks.values import flat

import made_up_patches
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
    message = rf"{key}: found '.*', expected {expected}.*has regions, iscrowd 1, the first: b"
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


def test_all_keys_of_the_tables_exist():
    known = dict(flat(get_lesion_config()))
    for relation in (*RELATIONS, *TRAINING_RELATIONS):
        on, _, rule = relation.partition(" -> ")
        keys = [key.partition(" is ")[0] for key in re.split(" or | and ", on)]
        assert {f"{key}PERIOD" if key[-1] in "._" else key for key in keys} <= set(known)
        assert re.match(r"[A-Z0-9_.]+(?=: \S)", rule)[0] in known


@pytest.mark.parametrize(("name", "value"), [("CLIP_VALUE", 0.0), ("NORM_TYPE", -1.0)])
def test_clipping_of_gradients_has_a_limit_and_a_norm_only_where_it_is_on(name, value):
    key = f"SOLVER.CLIP_GRADIENTS.{name}"
    off, on = ({"SOLVER.CLIP_GRADIENTS.ENABLED": enabled} for enabled in (False, True))
    check_relations(tiny_config(**{key: value}, **off), TRAINING_RELATIONS)
    with pytest.raises(InputError) as error:
        check_relations(tiny_config(**{key: value}, **on), TRAINING_RELATIONS)
    why = "SOLVER.CLIP_GRADIENTS.ENABLED is True"
    assert str(error.value) == f"{key}: found {value}, expected above 0 ({why})"
    cfg = tiny_config(**on)
    cfg.SOLVER.CLIP_GRADIENTS[name] = float("inf")
    check_relations(cfg, TRAINING_RELATIONS)


ATSS = "MODEL.RETINANET.ATSS_CANDIDATES"
NEGATIVES = "MODEL.RETINA_UNET.SHEM_NEGATIVES"
IN_2D = ("INPUT.VOLUME.PATCH_SIZE", (0, 0, 0))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("LesionRCNN3D", (ATSS, 4), f"'LesionRCNN3D', expected a LesionRetinaNet.*{ATSS} is 4"),
        (
            "RetinaNet",
            (*IN_2D, ATSS, 9),
            f"META_ARCHITECTURE: found 'RetinaNet', expected.*{ATSS} is 9",
        ),
        ("LesionRetinaNet", (*IN_2D, NEGATIVES, 2), f"expected a RetinaUNet .{NEGATIVES} is 2"),
        (
            "DetUNet3D",
            (NEGATIVES, 2),
            f"found 'DetUNet3D', expected a RetinaUNet.*{NEGATIVES} is 2",
        ),
        (
            "RetinaUNet3D",
            (NEGATIVES, 2, "MODEL.RETINA_UNET.SHEM_POOL", 0),
            r"SHEM_POOL: found 0, expected 1 or more .*SHEM_NEGATIVES is 2\)",
        ),
        (
            "RetinaNet3D",
            ("MODEL.RETINANET.ATSS_CENTER_INSIDE", True),
            r"ATSS_CANDIDATES: found 0, expected 1 or more.*ATSS_CENTER_INSIDE is True\)",
        ),
    ],
)
def test_keys_without_a_meaning_stop_a_run(model, options, message):
    with pytest.raises(InputError, match=message) as error:
        check_relations(made_up_patches.tiny_config(model, *options), RELATIONS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["RetinaUNet3D", "RetinaNet3D"])
def test_what_the_model_goes_by_is_taken(model):
    options = (ATSS, 4, "MODEL.RETINANET.ATSS_CENTER_INSIDE", True, NEGATIVES, 2)
    built = check_model(made_up_patches.tiny_config(model, *options))
    assert (built.atss.num_candidates, built.atss.center_inside) == (4, True)
    assert (built.shem_pool, built.shem_negatives) == (20, 2)
