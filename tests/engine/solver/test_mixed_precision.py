import logging

from lesion_d2.engine.solver.mixed_precision import GPUAMPTrainer, step_trainer

import pytest
import torch
from detectron2.engine import SimpleTrainer
from tiny_run import tiny_config
from torch import nn


def _parts():
    model = nn.Linear(1, 1)
    return model, [], torch.optim.SGD(model.parameters(), lr=0.1)


def _scaled(scale: float) -> GPUAMPTrainer:
    return GPUAMPTrainer(*_parts(), grad_scaler=torch.amp.GradScaler("cpu", init_scale=scale))


@pytest.mark.parametrize(
    ("enabled", "device", "name"),
    [
        (False, "cuda", "SimpleTrainer"),
        (True, "cpu", "CPUAMPTrainer"),
        (True, "cuda:1", "GPUAMPTrainer"),
    ],
)
def test_what_computes_a_step(enabled, device, name):
    cfg = tiny_config(SOLVER__AMP__ENABLED=enabled, MODEL__DEVICE=device)
    assert step_trainer(cfg).__name__ == name


def test_a_run_that_began_in_float32_goes_on_in_mixed_precision_and_says_so(caplog):
    plain, resumed = SimpleTrainer(*_parts()), _scaled(64.0)
    plain.optimizer.param_groups[0]["lr"] = 0.3
    with caplog.at_level(logging.WARNING):
        resumed.load_state_dict(plain.state_dict())
    assert "SOLVER.AMP.ENABLED: found True" in caplog.text
    assert resumed.grad_scaler.get_scale() == 64 and resumed.optimizer.param_groups[0]["lr"] == 0.3
    caplog.clear()
    resumed.load_state_dict(_scaled(16.0).state_dict())
    assert resumed.grad_scaler.get_scale() == 16 and not caplog.text
