"""Optimizers whose step is one kernel, and what they do with gradients that are scaled."""

import copy

from lesion_d2.engine import Trainer

import pytest
import torch
from tiny_run import tiny_config
from torch import nn

CLIPPED = {
    "SOLVER__CLIP_GRADIENTS__ENABLED": True,
    "SOLVER__CLIP_GRADIENTS__CLIP_TYPE": "value",
    "SOLVER__CLIP_GRADIENTS__CLIP_VALUE": 0.01,
}


def _config(**changes):
    return tiny_config(SOLVER__BASE_LR=0.1, SOLVER__WEIGHT_DECAY=0.01, **changes)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("clipped", [False, True])
def test_fused_steps_are_the_same_with_and_without_scaled_gradients(name, clipped):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 1, 3))
    models = [plain, copy.deepcopy(plain)]
    changes = {"SOLVER__OPTIMIZER": name, **(CLIPPED if clipped else {})}
    if not clipped:
        changes["SOLVER__CLIP_GRADIENTS__ENABLED"] = False
    # torch's fused kernels are there on a CPU, too.
    optimizers = [
        Trainer.build_optimizer(_config(MODEL__DEVICE=device, **changes), model)
        for device, model in zip(("cpu", "cuda"), models, strict=True)
    ]
    assert not optimizers[0].defaults["fused"] and optimizers[1].defaults["fused"]

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        x = torch.rand(2, 2, 8, 8)
        for model, optimizer, scales in zip(models, optimizers, (False, True), strict=True):
            optimizer.zero_grad()
            loss = 10 * model(x).square().mean()
            if not scales:
                loss.backward()
                optimizer.step()
                continue
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_key_switches_it_off():
    cfg = _config(MODEL__DEVICE="cuda", SOLVER__FUSED=False, SOLVER__OPTIMIZER="SGD")
    optimizer = Trainer.build_optimizer(cfg, nn.Conv2d(1, 1, 1))
    assert not optimizer.defaults["fused"] and optimizer.defaults["foreach"]


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("devices", [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_resumed_run_goes_on_as_it_began_under_scaled_gradients(name, devices):
    changes = {"SOLVER__OPTIMIZER": name, "SOLVER__CLIP_GRADIENTS__ENABLED": False}
    torch.manual_seed(0)
    begun = nn.Conv2d(2, 1, 3)
    resumed = copy.deepcopy(begun)
    optimizers = [
        Trainer.build_optimizer(_config(MODEL__DEVICE=device, **changes), model)
        for device, model in zip(devices, (begun, resumed), strict=True)
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for iteration in range(2):
        x = torch.rand(2, 2, 8, 8)
        if iteration == 1:
            resumed.load_state_dict(begun.state_dict())
            optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        for model, optimizer in zip((begun, resumed)[: iteration + 1], optimizers, strict=False):
            optimizer.zero_grad()
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(optimizer)
        scaler.update()
    for one, other in zip(begun.parameters(), resumed.parameters(), strict=True):
        assert one.equal(other)
