"""Clipped gradients: against Detectron2's own, and against the formula written out."""

from lesion_d2.engine import InputError, Trainer
from lesion_d2.engine.checks.inputs import check_training
from lesion_d2.engine.solver.clipping import clip_each_norm, with_clipping

import numpy as np
import pytest
import torch
from detectron2.solver.build import maybe_add_gradient_clipping
from tiny_run import tiny_config
from torch import nn

KEY = "SOLVER__CLIP_GRADIENTS__"


def config(clip_type, limit=1.0, **changes):
    changes = {"ENABLED": True, "CLIP_TYPE": clip_type, "CLIP_VALUE": limit, **changes}
    return tiny_config(**{f"{KEY}{key}": value for key, value in changes.items()})


def parameters_with_gradients(scales=(1e-9, 1e-3, 0.2, 1.0, 3.0, 40.0, 1e6, 1e12)):
    generator = torch.Generator().manual_seed(0)
    made = []
    for number, scale in enumerate(scales):
        parameter = nn.Parameter(torch.zeros(number % 3 + 1, 5))
        parameter.grad = scale * torch.randn(number % 3 + 1, 5, generator=generator)
        made.append(parameter)
    return [*made, nn.Parameter(torch.ones(2))]  # the last one has no gradient


@pytest.mark.parametrize("order", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("clip_type", ["norm", "value"])
def test_steps_are_those_of_detectron2_bit_by_bit(clip_type, order):
    cfg = config(clip_type, 0.7)
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = order
    stepped = []
    for wrap in (with_clipping, maybe_add_gradient_clipping):
        parameters = parameters_with_gradients()
        if clip_type == "value":  # Detectron2's fails where one has no gradient
            parameters.pop()
        wrap(cfg, torch.optim.SGD)(parameters, lr=0.5, momentum=0.9).step()
        stepped.append(parameters)
    for ours, theirs in zip(*stepped, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("limit", [0.5, 5.0, 1e9])
def test_all_gradients_together_have_a_norm_up_to_the_limit(limit):
    parameters = parameters_with_gradients(scales=(1e-3, 0.2, 3.0, 40.0))
    before = [p.grad.double().numpy() for p in parameters[:-1]]
    norm = np.sqrt(sum((values**2).sum() for values in before))
    cfg = config("full_model_norm", limit)
    with_clipping(cfg, torch.optim.SGD)(parameters, lr=1.0).step()
    for values, parameter in zip(before, parameters, strict=False):
        expected = values * min(1.0, limit / norm)
        np.testing.assert_allclose(parameter.grad.numpy(), expected, rtol=1e-5)
        if norm < limit:
            np.testing.assert_array_equal(parameter.grad.numpy(), values)  # not touched


def test_values_are_clipped_where_a_parameter_has_no_gradient():
    parameters = parameters_with_gradients()
    with_clipping(config("value", 0.7), torch.optim.SGD)(parameters, lr=0.5).step()
    assert max(float(p.grad.abs().max()) for p in parameters[:-1]) == pytest.approx(0.7)
    assert torch.equal(parameters[-1], torch.ones(2))


def test_gradients_of_two_types_are_clipped():
    parameters = [nn.Parameter(torch.zeros(3, dtype=t)) for t in (torch.float32, torch.float64)]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 100.0)
    clip_each_norm(parameters, 1.0)
    assert [float(p.grad.norm()) for p in parameters] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("clip_type", ["norm", "full_model_norm"])
def test_scaled_gradients_are_clipped_without_their_scale(clip_type):
    layer = nn.Linear(4, 1, bias=False)
    optimizer = Trainer.build_optimizer(config(clip_type, 0.25), layer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(100 * layer(torch.ones(1, 4)).sum()).backward()
    scaler.step(optimizer)
    assert float(layer.weight.grad.norm()) == pytest.approx(0.25)


def test_without_clipping_the_class_is_the_optimizers():
    assert with_clipping(config("norm", ENABLED=False), torch.optim.SGD) is torch.optim.SGD


def test_another_type_is_told_before_a_training():
    message = r"SOLVER\.CLIP_GRADIENTS\.CLIP_TYPE: found 'full', expected one of 'value', 'norm', "
    with pytest.raises(InputError, match=message):
        check_training(config("full"), 1)
