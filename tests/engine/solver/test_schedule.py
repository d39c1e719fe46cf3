import logging
import math
import re
from decimal import Decimal

from lesion_d2 import get_lesion_config
from lesion_d2.engine import resolve_epochs
from lesion_d2.engine.solver.schedule import (
    check_epochs,
    check_learning_rate_factors,
    epochs_to_iterations,
)

import pytest
import torch
from detectron2.solver import build_lr_scheduler


@pytest.fixture
def cfg():
    cfg = get_lesion_config()
    cfg.SOLVER.IMS_PER_BATCH = 8
    return cfg


@pytest.mark.parametrize("epochs", ["0.1", "0.7", "1", "1.1", "2.3", "12.5", "0.001"])
@pytest.mark.parametrize("num_images, batch_size", [(100, 10), (30, 3), (7, 8), (22496, 16)])
def test_iterations_are_exact_in_decimals(epochs, num_images, batch_size):
    shown, iterations = Decimal(0), 0
    while shown < Decimal(epochs) * num_images:  # one batch after the other
        shown, iterations = shown + batch_size, iterations + 1
    assert epochs_to_iterations(float(epochs), num_images, batch_size) == iterations


def test_epochs_replace_iterations_where_they_are_set(cfg, caplog):
    cfg.SOLVER.MAX_EPOCHS = 3.0
    cfg.SOLVER.STEP_EPOCHS = (1, 2.5)
    cfg.TEST.EVAL_EPOCHS = 0.5
    cfg.SOLVER.CHECKPOINT_PERIOD = 77
    with caplog.at_level(logging.INFO, logger="lesion_d2"):
        resolve_epochs(cfg, 100)
    assert math.ceil(300 / 8) == cfg.SOLVER.MAX_ITER
    assert cfg.SOLVER.STEPS == (13, 32)
    assert cfg.TEST.EVAL_PERIOD == 7
    assert cfg.SOLVER.CHECKPOINT_PERIOD == 77
    assert "100 images" in caplog.text and "SOLVER.MAX_ITER = 38" in caplog.text


def test_the_loss_and_the_mining_go_by_epochs_too(cfg):
    cfg.TEST.LOSS_EPOCHS = 0.5
    cfg.HARD_NEGATIVES.EPOCHS = 1.0
    cfg.HARD_NEGATIVES.START_EPOCHS = 2.5
    resolve_epochs(cfg, 100)
    assert cfg.TEST.LOSS_PERIOD == 7
    assert cfg.HARD_NEGATIVES.PERIOD == 13
    assert cfg.HARD_NEGATIVES.START_ITER == 32
    assert cfg.TEST.EVAL_PERIOD == 0


def test_nothing_set_changes_nothing(cfg):
    before = cfg.dump()
    resolve_epochs(cfg, 100)
    assert cfg.dump() == before


def test_steps_at_or_after_the_end_are_left_out_so_that_the_schedule_builds(cfg):
    cfg.SOLVER.MAX_EPOCHS = 2.0  # 25 iterations; the default step is 30000
    cfg.SOLVER.STEPS = (10, 25, 30000)
    resolve_epochs(cfg, 100)
    assert cfg.SOLVER.STEPS == (10,)
    cfg.SOLVER.WARMUP_ITERS = 0
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1.0] * 10 + [0.1] * 15)


@pytest.mark.parametrize(
    "section, key, value",
    [
        ("SOLVER", "MAX_EPOCHS", -1.0),
        ("SOLVER", "STEP_EPOCHS", (1.0, -1.0)),
        ("TEST", "LOSS_EPOCHS", -1.0),
        ("TEST", "EVAL_EPOCHS", float("inf")),
        ("HARD_NEGATIVES", "START_EPOCHS", -1.0),
    ],
)
def test_epochs_that_cannot_be(cfg, section, key, value):
    cfg[section][key] = value
    for check in (check_epochs, lambda cfg: resolve_epochs(cfg, 100)):
        with pytest.raises(ValueError, match=rf"{section}.{key}: found (-1.0|inf)"):
            check(cfg)


@pytest.mark.parametrize("entry", ["fc1", ["fc1"], ["fc1", 0.0], ["fc1", True], [1, 2.0]])
def test_factors_of_learning_rates_are_layers_and_positive_numbers(entry):
    cfg = get_lesion_config()
    cfg.SOLVER.LR_FACTORS = [["fc2", 2.0], entry]
    with pytest.raises(ValueError, match=f"LR_FACTORS: found {re.escape(repr(entry))}, expected a"):
        check_learning_rate_factors(cfg)
