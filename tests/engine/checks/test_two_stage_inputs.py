"""Checks of the inputs of two-stage models, such as ULDor."""

from lesion_d2.engine import InputError, load_config
from lesion_d2.engine.checks import check_inputs

import pytest
from run_training import write_weights
from tiny_run import uldor_args

import train_net

_MINING = {"HARD_NEGATIVES__PERIOD": 2}
_STANDARD = {
    "MODEL__ROI_HEADS__NAME": "StandardROIHeads",
    "MODEL__ROI_HEADS__NUM_CLASSES": 1,
}
_RETINA_UNET = {
    "MODEL__META_ARCHITECTURE": "RetinaUNet",
    "MODEL__ANCHOR_GENERATOR__SIZES": [[8], [16], [32], [64]],
}
_COUNTED = {"MODEL__ULDOR__COUNT_FALSE_POSITIVES": True}
_BY_LOSS = {"SOLVER__PATIENCE_METRIC": "validation_loss", "SOLVER__EARLY_STOP_PATIENCE": 3}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"HARD_NEGATIVES__PERIOD": -1}, "HARD_NEGATIVES.PERIOD: found -1, expected 0"),
        ({"HARD_NEGATIVES__EPOCHS": -1.0}, "HARD_NEGATIVES.EPOCHS: found -1.0, expected 0"),
        ({"HARD_NEGATIVES__START_ITER": -1}, "HARD_NEGATIVES.START_ITER: found -1, expected 0"),
        ({"HARD_NEGATIVES__START_EPOCHS": -0.5}, "HARD_NEGATIVES.START_EPOCHS: found -0.5"),
        (
            {"HARD_NEGATIVES__PERIOD": 4},
            r"no mining in 4 iterations, expected a multiple of PERIOD",
        ),
        (
            {"HARD_NEGATIVES__PERIOD": 2, "HARD_NEGATIVES__START_ITER": 3},
            r"PERIOD \(2\) from START_ITER \(3\)",
        ),
        (
            {"HARD_NEGATIVES__PERIOD": 2, "DATASETS__TRAIN": ("phantom_train", "phantom_train")},
            "images twice .the first: '",
        ),
        ({"HARD_NEGATIVES__MAX_PER_IMAGE": 0}, "MAX_PER_IMAGE: found 0, expected 1 or more"),
        (
            {"HARD_NEGATIVES__POSITIVE_IOU_THRESH": 1.5},
            "HARD_NEGATIVES.POSITIVE_IOU_THRESH: found 1.5, expected 0 to 1",
        ),
        ({"HARD_NEGATIVES__MIN_SCORE": -0.1}, "HARD_NEGATIVES.MIN_SCORE: found -0.1"),
        (
            {**_MINING, **_STANDARD},
            "ROI_HEADS.NAME: found 'StandardROIHeads', expected 'ULDorROIHeads'.*PERIOD is 2",
        ),
        (
            {**_RETINA_UNET, "HARD_NEGATIVES__EPOCHS": 1.0},
            "META_ARCHITECTURE: found 'RetinaUNet', expected a two-stage model.*EPOCHS is 1.0",
        ),
        (
            {**_MINING, "MODEL__MASK_ON": False, "MODEL__LESION_RCNN__SEG_LOSS_WEIGHT": 0.5},
            "MODEL.MASK_ON: found False, expected True for .*RCNN.SEG_LOSS_WEIGHT .*PERIOD is 2",
        ),
        (
            {
                **_MINING,
                "MODEL__LESION_RCNN__SEG_LOSS_WEIGHT": 0.5,
                "MODEL__SEG_HEAD__CLASS_AGNOSTIC": True,
            },
            "CLASS_AGNOSTIC: found True, expected False, as hard negatives are no lesions.*PERIOD",
        ),
        (
            {**_MINING, "HARD_NEGATIVES__DATASETS": ("phantom_train", "phantom_val")},
            r"HARD_NEGATIVES.DATASETS: found \(.*'phantom_val'\), expected names of DATASETS.TRAIN",
        ),
        (
            {**_MINING, **_COUNTED},
            "COUNT_FALSE_POSITIVES: found True, expected False but for --eval-only.*PERIOD is 2",
        ),
        (
            {**_COUNTED, **_STANDARD},
            "ROI_HEADS.NAME: found 'StandardROIHeads', expected 'ULDorROIHeads'.*COUNT_FALSE",
        ),
        ({**_COUNTED, **_RETINA_UNET}, "META_ARCHITECTURE: found 'RetinaUNet'.*COUNT_FALSE"),
        (
            {**_COUNTED, "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0},
            "SCORE_THRESH_TEST: found 0.0, expected more than 0",
        ),
        (
            {"DATASETS__MISSING_ANNOTATION_RATIO": 1.0},
            "MISSING_ANNOTATION_RATIO: phantom_train: found a hidden share of 1.0, expected",
        ),
        (
            {"DATASETS__MISSING_ANNOTATION_RATIO": -0.1},
            "DATASETS.MISSING_ANNOTATION_RATIO: phantom_train: found a hidden share of -0.1",
        ),
        (
            {"DATASETS__MISSING_ANNOTATION_SEED": -1},
            "DATASETS.MISSING_ANNOTATION_SEED: found -1, expected 0",
        ),
        (
            {
                "DATASETS__MISSING_ANNOTATION_RATIO": 0.5,
                "DATASETS__TEST": ("phantom_val", "phantom_train"),
            },
            "DATASETS.TEST: found .*'phantom_train'.*hidden annotations .*ANNOTATION_RATIO is 0.5",
        ),
        (
            {**_BY_LOSS, "SOLVER__PATIENCE_METRIC": "loss"},
            "SOLVER.PATIENCE_METRIC: found 'loss', expected .*'validation_loss'",
        ),
        (
            _BY_LOSS,
            "TEST.LOSS_PERIOD: found 0, .* for the validation_loss .*EARLY_STOP_PATIENCE is 3",
        ),
        (
            {**_BY_LOSS, "TEST__LOSS_PERIOD": 1, "DATASETS__TEST": ()},
            r"DATASETS.TEST: found \(\), expected a data set to evaluate \(TEST.LOSS_PERIOD is 1\)",
        ),
        ({"TEST__LOSS_EPOCHS": 0.5, "DATASETS__TEST": ()}, "to evaluate .TEST.LOSS_EPOCHS is 0.5"),
        ({"TEST__LOSS_PERIOD": -1}, "TEST.LOSS_PERIOD: found -1, expected 0"),
        ({"TEST__LOSS_EPOCHS": -1.0}, "TEST.LOSS_EPOCHS: found -1.0, expected 0"),
        (
            {"MODEL__ROI_HEADS__NUM_CLASSES": 3},
            "ROI_HEADS.NUM_CLASSES: found 3, expected 2, .*phantom_train .*and one of false posi",
        ),
        (
            {**_STANDARD, "MODEL__ROI_HEADS__NUM_CLASSES": 2},
            r"ROI_HEADS.NUM_CLASSES: found 2, expected 1, .*phantom_train \(DATASETS.TRAIN\)$",
        ),
        ({"MODEL__ROI_HEADS__NUM_CLASSES": 1}, "NUM_CLASSES: found 1, expected 2 or more"),
    ],
)
def test_wrong_inputs_of_uldor_stop_a_run_before_it_writes(
    tiny_phantom, tmp_path, changes, message
):
    output_dir = tmp_path / "output"
    with pytest.raises(InputError, match=message) as error:
        train_net.main(uldor_args(output_dir, **changes))
    assert "\n" not in str(error.value)
    assert not output_dir.exists()


@pytest.mark.parametrize(
    "changes",
    [
        _MINING,
        {**_MINING, "MODEL__MASK_ON": False, "HARD_NEGATIVES__DATASETS": ("phantom_train",)},
        {
            "HARD_NEGATIVES__EPOCHS": 1.0,
            "HARD_NEGATIVES__START_EPOCHS": 1.0,
            "SOLVER__MAX_EPOCHS": 2.0,
        },
        {**_BY_LOSS, "TEST__LOSS_PERIOD": 2, "TEST__EVAL_PERIOD": 0},
        {**_BY_LOSS, "TEST__LOSS_EPOCHS": 1.0, "TEST__EVAL_PERIOD": 0},
        {"SOLVER__PATIENCE_METRIC": "validation_loss"},  # without patience nothing goes by it
        _STANDARD,
        {**_STANDARD, "MODEL__MASK_ON": False},
        _COUNTED,  # in evaluations during a training without mining
    ],
)
def test_good_inputs_of_uldor(tiny_phantom, tmp_path, changes):
    args = uldor_args(tmp_path, **changes)
    assert check_inputs(load_config(args), args) > 0


def test_false_positives_are_counted_in_the_evaluation_of_a_run_that_mined(tiny_phantom, tmp_path):
    options = {**_MINING, **_COUNTED, "MODEL__WEIGHTS": tmp_path / "weights.pth"}
    write_weights(uldor_args(tmp_path), options["MODEL__WEIGHTS"])
    args = uldor_args(tmp_path, "--eval-only", **options)
    assert check_inputs(load_config(args), args) == 0


@pytest.mark.parametrize("flags", [(), ("--eval-only",)])
def test_a_checkpoint_for_one_class_more_or_less_stops_a_run(tiny_phantom, tmp_path, flags):
    file = tmp_path / "weights.pth"
    for saved, loaded, message in (
        (
            _STANDARD,
            {},
            r"weights.pth: found .* 1 class, expected 2 .*StandardROIHeads and NUM_C.* 1",
        ),
        (
            {},
            _STANDARD,
            r"weights.pth: found .* 2 classes, expected 1 .*ULDorROIHeads and NUM_C.* 2",
        ),
    ):
        write_weights(uldor_args("output", **saved), file)
        args = uldor_args(tmp_path / "output", *flags, MODEL__WEIGHTS=file, **loaded)
        with pytest.raises(InputError, match=rf"MODEL.WEIGHTS: .*{message}") as error:
            train_net.main(args)
        assert "\n" not in str(error.value) and not (tmp_path / "output").exists()
        args = uldor_args(tmp_path / "output", *flags, MODEL__WEIGHTS=file, **saved)
        check_inputs(load_config(args), args)


def test_a_checkpoint_of_another_run_is_not_resumed_from(tiny_phantom, tmp_path):
    write_weights(uldor_args("output"), tmp_path / "model_0000001.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    args = uldor_args(tmp_path, "--resume", **_STANDARD)
    with pytest.raises(InputError, match=r"--resume: .*001.pth: found .* 2 classes, expected 1"):
        train_net.main(args)
    args = uldor_args(tmp_path, "--resume", "--eval-only")
    check_inputs(load_config(args), args)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "ROI_HEADS.NAME: found 'ULDorROIHeads', expected 'LesionROIHeads' .*SHEM_POOL is 10"),
        (
            {"MODEL__PROPOSAL_GENERATOR__NAME": "RPN"},
            "PROPOSAL_GENERATOR.NAME: found 'RPN', expected 'LesionRPN' .*SHEM_POOL is 10",
        ),
        ({"MODEL__LESION_RCNN__SHEM_POOL": -1}, "SHEM_POOL: found -1, expected 0"),
    ],
)
def test_parts_without_hard_example_mining_are_named(tiny_phantom, tmp_path, changes, message):
    args = uldor_args(tmp_path, **{"MODEL__LESION_RCNN__SHEM_POOL": 10, **changes})
    with pytest.raises(InputError, match=message):
        check_inputs(load_config(args), args)
