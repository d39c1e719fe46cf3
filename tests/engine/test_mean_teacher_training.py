import json

from lesion_d2.data.loader import build_lesion_loss_loader
from lesion_d2.engine import InputError, Trainer, load_config, load_model
from lesion_d2.engine.checks import check_inputs
from lesion_d2.engine.processes import unwrap
from lesion_d2.engine.validation_loss import mean_losses
from lesion_d2.modeling import summarize_pseudo_labels

import pytest
import torch
from distributed_run import launch_mean_teacher
from run_training import train
from tiny_run import tiny_args, uldor_args
from warm_processes import torchrun_two

import train_net

_ON = {
    "MODEL__MEAN_TEACHER__ENABLED": True,
    "MODEL__MEAN_TEACHER__MOMENTUM": 0.5,
    # A teacher learns little in a few iterations: all that it finds are pseudo-labels.
    "MODEL__MEAN_TEACHER__SCORE_THRESH": 0.005,
    "MODEL__RETINANET__SCORE_THRESH_TEST": 0.005,
    "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.005,
    "MODEL__RESNETS__NORM": "BN",
    "SOLVER__BASE_LR": 0.001,
    "SOLVER__WARMUP_ITERS": 0,
    "SOLVER__LR_SCHEDULER_NAME": "WarmupMultiStepLR",
}
_UNSEEN = {"DATASETS__TEST": (), "TEST__EVAL_PERIOD": 0}
_HIDDEN = {"DATASETS__MISSING_ANNOTATION_RATIO": 0.5, "DATALOADER__FILTER_EMPTY_ANNOTATIONS": False}


def _states(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in unwrap(trainer.model).state_dict().items()}


def _same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_the_teacher_is_evaluated_and_saved_and_the_student_beside_it(tiny_phantom, tmp_path):
    trainer = train(tiny_args(tmp_path, **_ON))
    model = unwrap(trainer.model)
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert _same(saved["model"], model.teacher.state_dict())
    assert _same(saved["student"], model.student.state_dict())
    assert not _same(saved["model"], saved["student"])
    file = tmp_path / "inference" / "phantom_val" / "coco_instances_results.json"
    during = json.loads(file.read_text())
    file.unlink()
    # Without the mean teacher, which a prediction does not need.
    weights = tmp_path / "model_final.pth"
    options = {**_ON, "MODEL__MEAN_TEACHER__ENABLED": False}
    args = tiny_args(tmp_path, "--eval-only", MODEL__WEIGHTS=weights, **options)
    cfg = train_net.setup(args)
    Trainer.test(cfg, load_model(cfg))
    assert during and json.loads(file.read_text()) == during


def test_a_resumed_run_is_the_run_that_was_not_interrupted(tiny_phantom, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    expected = train(tiny_args(whole, SOLVER__MAX_ITER=4, **_ON, **_UNSEEN))
    counted = summarize_pseudo_labels(unwrap(expected.model).counts)
    assert counted["pseudo_labels_per_image"] > 0
    train(tiny_args(halves, SOLVER__MAX_ITER=2, **_ON, **_UNSEEN))
    resumed = train(tiny_args(halves, "--resume", SOLVER__MAX_ITER=4, **_ON, **_UNSEEN))
    assert resumed.start_iter == 2
    assert _same(_states(resumed), _states(expected))
    assert summarize_pseudo_labels(unwrap(resumed.model).counts) == counted


_NO_PSEUDO_LABELS = {
    **_ON,
    **_UNSEEN,
    "MODEL__MEAN_TEACHER__SCORE_THRESH": 1.0,
    "INPUT__AUG__HFLIP_PROB": 0.5,
    "INPUT__AUG__RESIZE_RANGE": (0.8, 1.2),
    "SOLVER__MAX_ITER": 3,
}


@pytest.fixture(scope="module")
def plain(tiny_phantom, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights of a detector that was trained without a teacher."""
    options = {**_NO_PSEUDO_LABELS, "MODEL__MEAN_TEACHER__ENABLED": False}
    return _states(train(tiny_args(tmp_path_factory.mktemp("plain"), **options)))


@pytest.mark.parametrize("mode", ["none", "add", "ignore"])
def test_without_pseudo_labels_the_student_is_the_plain_detector(
    tiny_phantom, plain, tmp_path, mode
):
    options = {**_NO_PSEUDO_LABELS, "MODEL__MEAN_TEACHER__PSEUDO_LABELS": mode}
    model = unwrap(train(tiny_args(tmp_path, **options)).model)
    assert _same(model.student.state_dict(), plain)
    assert not _same(model.teacher.state_dict(), plain)
    assert (model.counts["images"] > 0) == (mode != "none")


def test_it_begins_with_the_weights_of_the_config(tiny_phantom, tmp_path):
    train(tiny_args(tmp_path / "first", SOLVER__MAX_ITER=2, **_ON, **_UNSEEN))
    weights = tmp_path / "first" / "model_final.pth"
    cfg = train_net.setup(tiny_args(tmp_path / "next", MODEL__WEIGHTS=weights, **_ON, **_UNSEEN))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    teacher = torch.load(weights, weights_only=True)["model"]
    model = unwrap(trainer.model)
    assert _same(model.student.state_dict(), teacher) and _same(model.teacher.state_dict(), teacher)
    assert trainer.start_iter == 0


def test_pseudo_labels_are_logged_with_precision_and_recall(tiny_phantom, tmp_path):
    options = {**_ON, **_UNSEEN, **_HIDDEN, "SOLVER__MAX_ITER": 20}
    trainer = train(tiny_args(tmp_path, **options))
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    [logged] = [line for line in lines if "mean_teacher/pseudo_labels_per_image" in line]
    assert logged["iteration"] == 19
    assert logged["mean_teacher/pseudo_labels_per_image"] > 0
    assert 0.005 <= logged["mean_teacher/mean_score"] < 1
    assert 0 <= logged["mean_teacher/precision"] < 1 and 0 <= logged["mean_teacher/recall"] <= 1
    assert unwrap(trainer.model).counts["images"] == 0  # of the last 20 iterations alone


def test_the_validation_loss_is_the_teacher_s(tiny_phantom, tmp_path):
    trainer = train(tiny_args(tmp_path, TEST__LOSS_PERIOD=4, **_ON))
    model, loader = unwrap(trainer.model), build_lesion_loss_loader(trainer.cfg)
    assert not any("weak_image" in sample for batch in loader for sample in batch)
    expected = mean_losses(model.teacher, loader, seed=3)
    assert trainer.storage.latest()["validation_loss"][0] == sum(expected.values())
    assert expected != mean_losses(model.student, loader, seed=3)
    assert not any(module.training for module in model.teacher.modules())


def test_hard_negatives_are_mined_by_the_teacher(tiny_phantom, tmp_path):
    options = {**_ON, "MODEL__MASK_ON": False, "HARD_NEGATIVES__PERIOD": 2, **_UNSEEN}
    trainer = train(uldor_args(tmp_path, **options))
    assert trainer.storage.latest()["hard_negatives/number"][0] > 0


_IGNORE = {**_ON, "MODEL__MEAN_TEACHER__PSEUDO_LABELS": "ignore"}
_CASCADE = {"MODEL__ROI_HEADS__NAME": "CascadeROIHeads"}
_CASCADE["MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG"] = True


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"MODEL__MEAN_TEACHER__MOMENTUM": 1.0},
            r"MOMENTUM: found 1.0, expected a number in \[0, 1\)",
        ),
        (
            {"MODEL__MEAN_TEACHER__PSEUDO_LABELS": "drop"},
            "PSEUDO_LABELS: found 'drop', expected one of none, a",
        ),
        ({"MODEL__MEAN_TEACHER__SCORE_THRESH": 0.0}, "SCORE_THRESH: found 0.0, expected a score"),
        ({"MODEL__MEAN_TEACHER__GT_NMS_THRESH": 1.5}, "GT_NMS_THRESH: found 1.5, expected an IoU"),
        ({"TEST__PRECISE_BN__ENABLED": True}, "PRECISE_BN.ENABLED: found True, expected False"),
        (
            {**_IGNORE, "MODEL__PROPOSAL_GENERATOR__NAME": "RPN"},
            "PROPOSAL_GENERATOR.NAME: found 'RPN', expected 'LesionRPN' .*PSEUDO_LABELS is ignore",
        ),
        (
            {**_IGNORE, "MODEL__PROPOSAL_GENERATOR__NAME": "PrecomputedProposals"},
            "PROPOSAL_GENERATOR.NAME: found 'PrecomputedProposals', expected 'LesionRPN' ",
        ),
        (
            {**_IGNORE, **_CASCADE},
            "ROI_HEADS.NAME: found 'CascadeROIHeads', expected heads without a cascade .*ignor",
        ),
        (
            {**_IGNORE, "MODEL__META_ARCHITECTURE": "ProposalNetwork"},
            "ARCHITECTURE: found 'ProposalNetwork', expected a RetinaNet, DetUNet or Generalized",
        ),
        (
            {"MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.05},
            "ROI_HEADS.SCORE_THRESH_TEST: found 0.05, expected at most .*SCORE_THRESH is 0.005",
        ),
    ],
)
def test_wrong_options_stop_a_run_before_it_writes(tiny_phantom, tmp_path, changes, message):
    output_dir = tmp_path / "output"
    with pytest.raises(InputError, match=message) as error:
        train_net.main(uldor_args(output_dir, **{**_ON, **changes}))
    assert "\n" not in str(error.value) and not output_dir.exists()


def test_a_threshold_below_the_detector_s_own_is_told_of(tiny_phantom, tmp_path):
    options = {**_ON, "MODEL__RETINANET__SCORE_THRESH_TEST": 0.01}
    args = tiny_args(tmp_path, **options)
    with pytest.raises(
        InputError, match=r"RETINANET.SCORE_THRESH_TEST: found 0.01, expected at most"
    ):
        check_inputs(load_config(args), args)
    # Nobody looks: no threshold counts. A DetUNet has none of its own.
    det_unet = {
        "MODEL__META_ARCHITECTURE": "DetUNet",
        "MODEL__MEAN_TEACHER__PSEUDO_LABELS": "ignore",
    }
    for changes in ({"MODEL__MEAN_TEACHER__PSEUDO_LABELS": "none"}, det_unet):
        args = tiny_args(tmp_path, **{**options, **changes})
        assert check_inputs(load_config(args), args) > 0
    args = uldor_args(tmp_path, **_IGNORE)  # reaching it is enough
    assert check_inputs(load_config(args), args) > 0


@pytest.mark.parametrize("enabled", [True, False])
def test_a_checkpoint_of_the_other_kind_of_training_is_not_resumed(tiny_phantom, tmp_path, enabled):
    options = {**_ON, **_UNSEEN, "SOLVER__MAX_ITER": 2}
    train(tiny_args(tmp_path, **{**options, "MODEL__MEAN_TEACHER__ENABLED": enabled}))
    options["MODEL__MEAN_TEACHER__ENABLED"] = not enabled
    with pytest.raises(InputError, match=r"--resume: .*model_final.pth: found a checkpoint") as e:
        train_net.main(tiny_args(tmp_path, "--resume", **options))
    assert f"MODEL.MEAN_TEACHER.ENABLED is {not enabled}" in str(e.value)


def test_two_processes_have_the_same_teacher(tiny_phantom, tmp_path):
    options = {**_ON, **_UNSEEN, **_HIDDEN, "SOLVER__MAX_ITER": 3, "SOLVER__BASE_LR": 1e-5}
    args = tiny_args(tmp_path / "output", **options)
    file = tmp_path / "states"
    torchrun_two(launch_mean_teacher, args, str(file))
    first, second = json.loads(file.read_text())
    assert first["images"] != second["images"]  # each has its own
    assert first["teacher"] == second["teacher"] and first["student"] == second["student"]
    assert first["teacher"] != first["student"]
    assert first["logged"] == second["logged"]
    assert first["logged"]["mean_teacher/pseudo_labels_per_image"] > 0
