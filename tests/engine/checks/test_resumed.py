import shutil

from lesion_d2.engine import InputError, load_config
from lesion_d2.engine.checks import check_inputs

import pytest
import torch
from tiny_run import tiny_args

import train_net

_NO_TEST = {"DATASETS__TEST": (), "TEST__EVAL_PERIOD": 0}


@pytest.fixture(scope="module")
def trained(tiny_phantom, tmp_path_factory):
    """The folder of a run of one iteration."""
    folder = tmp_path_factory.mktemp("trained") / "output"
    train_net.run(tiny_args(folder, SOLVER__MAX_ITER=1, **_NO_TEST))
    return folder


def _check(folder, *flags, **changes) -> None:
    args = tiny_args(folder, "--resume", *flags, **{**_NO_TEST, **changes})
    check_inputs(load_config(args), args)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"INPUT__CT__NUM_SLICES": 5},
            r"found weights for images of 3 slices .*, expected 5 \(INPUT.CT.NUM_SLICES\)",
        ),
        (
            {"MODEL__RETINANET__NUM_CONVS": 2},
            "found .* of the model's weights missing or of another shape, .*subnet",
        ),
        (
            {
                "MODEL__RETINA_UNET__SEG_LOSS_WEIGHT": 0.0,
                "MODEL__SEG_HEAD__PREDICT_MASKS": False,
            },
            "found 2 weights that the model does not have, such as seg_predictor",
        ),
        *(
            (
                {"SOLVER__OPTIMIZER": name},
                rf"found a checkpoint of a training by AdamW, expected one by {name} \(SOLVER.OPTI",
            )
            for name in ("SGD", "Adam")
        ),
        (
            {"SOLVER__BIAS_LR_FACTOR": 2.0, "SOLVER__WEIGHT_DECAY_BIAS": 0.0},
            r"found an optimizer with groups of \[\d+\] parameters, expected \[\d+, \d+\]",
        ),
    ],
)
def test_a_run_is_not_resumed_as_another_one(trained, changes, message):
    before = sorted(path.name for path in trained.iterdir())
    with pytest.raises(InputError, match=f"--resume: .*model_final.pth: {message}") as error:
        _check(trained, **changes)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in trained.iterdir()) == before


def test_a_run_is_resumed_as_the_same_and_evaluated_with_any_optimizer(trained):
    _check(trained)
    _check(trained, SOLVER__MAX_ITER=9, SOLVER__BASE_LR=0.1, SOLVER__WEIGHT_DECAY=0.1)
    options = {"DATASETS__TEST": ("phantom_val",), "SOLVER__OPTIMIZER": "SGD"}
    _check(trained, "--eval-only", **options)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_an_optimizer_is_known_by_its_state(trained, tmp_path, name):
    train_net.run(tiny_args(tmp_path, SOLVER__MAX_ITER=1, SOLVER__OPTIMIZER=name, **_NO_TEST))
    _check(tmp_path, SOLVER__OPTIMIZER=name)
    with pytest.raises(InputError, match=f"a training by {name}, expected one by AdamW"):
        _check(tmp_path)


def test_weights_alone_are_no_training(trained, tmp_path):
    shutil.copy(trained / "last_checkpoint", tmp_path)
    saved = torch.load(trained / "model_final.pth")
    torch.save({"model": saved["model"]}, tmp_path / "model_final.pth")
    with pytest.raises(InputError, match="found weights alone, expected a checkpoint with the st"):
        _check(tmp_path)
