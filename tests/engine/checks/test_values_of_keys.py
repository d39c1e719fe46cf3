"""Values of keys that no run can go by, one line each with the key."""

from fnmatch import filter as matching

from lesion_d2.config import get_lesion_config
from lesion_d2.engine import InputError, fit_device, load_config
from lesion_d2.engine.checks.model import check_model
from lesion_d2.engine.checks.values import RULES, check_values, flat

import pytest
import torch
from tiny_run import tiny_args, tiny_config


@pytest.mark.parametrize("device", ["nope", "", "gpu", "cuda:", "cuda:-1", "cpu:0", "cuda:0\n"])
def test_a_device_that_is_none_is_not_the_cpu(device):
    cfg = tiny_config()
    with pytest.raises(InputError, match=r"^MODEL.DEVICE: found .*, expected 'cpu', 'cuda' or"):
        load_config(tiny_args("output", MODEL__DEVICE=repr(device)))
    cfg.MODEL.DEVICE = device
    with pytest.raises(InputError, match=r"^MODEL.DEVICE: found"):
        fit_device(cfg)


def test_a_gpu_of_a_number_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert load_config(tiny_args("output", MODEL__DEVICE="cuda:1")).MODEL.DEVICE == "cuda:1"
    with pytest.raises(InputError, match="found 'cuda:2', expected one of the 2 GPUs"):
        load_config(tiny_args("output", MODEL__DEVICE="cuda:2"))


def test_a_gpu_that_is_named_becomes_the_current_one(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for is_there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_there=is_there: is_there)
        for device in ("cpu", "cuda", "cuda:1"):
            fit_device(tiny_config(MODEL__DEVICE=device))
    assert current == ["cuda:1"]


def test_a_seed_that_no_tool_can_take():
    message = "^SEED: found 4294967296, expected below 2\\^32"
    with pytest.raises(InputError, match=message):
        load_config(tiny_args("output", SEED=2**32))
    assert load_config(tiny_args("output", SEED=2**32 - 1)).SEED == 2**32 - 1


@pytest.mark.parametrize(
    "key, value",
    [
        ("SOLVER.BASE_LR", -0.1),
        ("SOLVER.BASE_LR", float("inf")),
        ("SOLVER.CHECKPOINT_PERIOD", 0),
        ("SOLVER.GAMMA", -0.1),
        ("SOLVER.IMS_PER_BATCH", 0),
        ("SOLVER.MAX_ITER", -1),
        ("SOLVER.MOMENTUM", -0.5),
        ("SOLVER.STEPS", (3, 2)),
        ("SOLVER.STEPS", (-1,)),
        ("SOLVER.WARMUP_FACTOR", float("inf")),
        ("SOLVER.WARMUP_ITERS", -1),
        ("SOLVER.WEIGHT_DECAY", -1e-4),
        ("SOLVER.WEIGHT_DECAY_BIAS", -1e-4),
        ("SOLVER.WEIGHT_DECAY_BIAS", "x"),
        ("TEST.EVAL_PERIOD", -1),
    ],
)
def test_a_schedule_that_cannot_be(key, value):
    cfg = _with(key, value)
    with pytest.raises(InputError, match=f"^{key}: found .*, expected") as error:
        check_values(cfg)
    assert "\n" not in str(error.value)
    check_values(cfg, of_training=False)


def _with(key, value):
    cfg = tiny_config()
    section, _, name = key.rpartition(".")
    node = cfg
    for part in section.split("."):
        node = node[part]
    node[name] = value
    return cfg


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", 2.0, "0 to 1, or -1 for no weights"),
        ("MODEL.RETINANET.FOCAL_LOSS_GAMMA", -1.0, "0 or more"),
        ("MODEL.RETINANET.NMS_THRESH_TEST", 3.0, "0 to 1"),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", 3.0, "0 to 1"),
        ("MODEL.RPN.NMS_THRESH", 3.0, "0 to 1"),
        ("MODEL.RETINANET.SCORE_THRESH_TEST", 50.0, "at most 1"),
        ("MODEL.RPN.POSITIVE_FRACTION", 1.5, "0 to 1"),
        ("MODEL.MEAN_TEACHER.START_ITER", -1, "0 or more"),
        ("TEST.NUM_BOOTSTRAP", -1, "0 or more"),
        ("SOLVER.CHECKPOINT_FORMAT", "zip", "pth or safetensors"),
        *(
            (f"MODEL.{part}.IOU_THRESHOLDS", value, "rising IoUs above 0, at most 1")
            for part in ("RETINANET", "RPN", "ROI_HEADS")
            for value in ([0.5, 0.4], [-0.1, 0.5], [50.0], [])
        ),
    ],
)
def test_a_value_that_no_run_can_go_by_is_named_with_what_is_expected(key, value, expected):
    with pytest.raises(InputError) as error:
        check_values(_with(key, value))
    assert str(error.value) == f"{key}: found {value!r}, expected {expected}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.WEIGHT_DECAY_BIAS", None),
        ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", -1.0),
        ("MODEL.RETINANET.SCORE_THRESH_TEST", -1.0),  # as in Detectron2, all scores
        ("MODEL.RPN.NMS_THRESH", 1.0),
        ("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.5]),
        ("MODEL.RETINANET.IOU_THRESHOLDS", [0.5, 0.5]),
        ("SOLVER.STEPS", ()),
        ("TEST.VOLUME_TILE_SIZE", (0, 0, 0)),
    ],
)
def test_values_with_a_meaning_are_accepted(key, value):
    check_values(_with(key, value))


def test_each_pattern_of_the_table_is_of_a_key():
    known = list(dict(flat(get_lesion_config())))
    for rule in RULES:
        patterns, separator, _ = rule.partition(": ")
        assert separator and all(matching(known, pattern) for pattern in patterns.split())


@pytest.mark.parametrize(
    "key, value",
    [
        ("ANCHOR_GENERATOR__ASPECT_RATIOS", [[0.0]]),
        ("RETINANET__NUM_CLASSES", 10**30),
        ("RETINANET__NUM_CONVS", 10**30),
        ("RETINANET__PRIOR_PROB", 0.0),
    ],
)
def test_a_model_of_impossible_numbers_is_not_built(key, value):
    with pytest.raises(InputError, match=r"^MODEL: found RetinaUNet on .* not to be built"):
        check_model(tiny_config(**{f"MODEL__{key}": value}))


def test_an_error_of_detectron2_without_a_text_names_its_line():
    cfg = tiny_config(MODEL__RETINANET__IOU_LABELS=[0, 1])  # of three ranges
    message = r"not to be built: AssertionError assert len\(labels\) == len\(thresholds\) - 1"
    with pytest.raises(InputError, match=message):
        check_model(cfg)
