from lesion_d2.modeling.attention import (
    AttentionGate,
    ContextualAttention,
    SpatialAttention,
    record_attention,
)

import numpy as np
import pytest
import torch
from torch import nn


def test_gate_against_the_formula_written_out():
    torch.manual_seed(0)
    gate = AttentionGate(6, 4, 5)
    nn.init.normal_(gate.phi.bias)
    skip, coarser = torch.randn(2, 6, 8, 6), torch.randn(2, 4, 4, 3)
    out = gate(skip, coarser)
    theta, phi = gate.theta.weight[:, :, 0, 0], gate.phi.weight[:, :, 0, 0]
    psi = gate.psi[0]
    for n, y, x in [(0, 0, 0), (0, 5, 4), (1, 7, 5), (1, 2, 3)]:
        gating = coarser[n, :, y // 2, x // 2]
        hidden = (theta @ skip[n, :, y, x] + phi @ gating + gate.phi.bias).clamp(min=0)
        value = 1 / (1 + torch.exp(-(psi.weight[0, :, 0, 0] @ hidden + psi.bias[0])))
        torch.testing.assert_close(out[n, :, y, x], value * skip[n, :, y, x])


def test_gate_has_1x1_convolutions_only_and_starts_open():
    torch.manual_seed(0)
    gate = AttentionGate(16, 16)
    convolutions = [m for m in gate.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.kernel_size == (1, 1) for m in convolutions)
    assert gate.theta.out_channels == 8
    assert AttentionGate(1, 1).theta.out_channels == 1
    nothing = gate(torch.ones(1, 16, 4, 4) * 1e-6, torch.zeros(1, 16, 2, 2)) * 1e6
    assert (nothing > 0.85).all() and (nothing < 0.9).all()


def test_maps_are_recorded_while_the_context_lasts():
    torch.manual_seed(0)
    model = nn.ModuleDict({"gates": nn.ModuleDict({"p4": AttentionGate(4, 4)})})
    gate = model["gates"]["p4"]
    skip, coarser = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 3, 4)
    with record_attention(model) as maps:
        assert maps == {}
        out = gate(skip, coarser)
    assert maps.keys() == {"p4"} and maps["p4"].shape == (2, 1, 6, 8)
    torch.testing.assert_close(maps["p4"] * skip, out)
    kept = maps["p4"].clone()
    gate(2 * skip, coarser)
    assert torch.equal(maps["p4"], kept)


def _trained(attention):
    """As after some training: the convolution starts from zero."""
    nn.init.normal_(attention.scores.weight, std=0.5)
    return attention


def _scores(attention, features):
    """Equations (1) and (5) in NumPy: the 1x1 convolution, (N, M, D, H, W)."""
    weight = attention.scores.weight.detach().double().numpy()[:, :, 0, 0]
    return np.einsum("de,nmehw->nmdhw", weight, features.double().numpy())


@pytest.mark.parametrize("temperature", [2.0, 0.7])
def test_contextual_attention_against_its_equations_in_numpy(temperature):
    torch.manual_seed(0)
    attention = _trained(ContextualAttention(6, temperature))
    features = torch.randn(2, 5, 6, 4, 3)
    powers = np.exp(_scores(attention, features) / temperature)
    softmax = powers / powers.sum(axis=1, keepdims=True)  # (2)
    weights = softmax / np.abs(softmax).max(axis=1, keepdims=True)  # (3)
    found = attention.weights(features).detach()
    np.testing.assert_allclose(found, weights, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(  # (4)
        attention(features).detach(), weights * features.numpy(), rtol=1e-5, atol=1e-6
    )
    assert (found.amax(dim=1) == 1).all()


@pytest.mark.parametrize("temperature", [3.0, 0.7])
def test_spatial_attention_against_its_equations_in_numpy(temperature):
    torch.manual_seed(1)
    attention = _trained(SpatialAttention(6, temperature))
    features = torch.randn(2, 3, 6, 5, 4)
    powers = np.exp(_scores(attention, features) / temperature)
    softmax = powers / powers.sum(axis=(3, 4), keepdims=True)  # (6)
    weights = softmax / np.abs(softmax).max(axis=(3, 4), keepdims=True)  # (7)
    found = attention.weights(features).detach()
    np.testing.assert_allclose(found, weights, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(  # (8)
        attention(features).detach(), weights * features.numpy(), rtol=1e-5, atol=1e-6
    )
    assert (found.flatten(3).amax(dim=3) == 1).all()


def test_spatial_attention_leaves_padding_out():
    torch.manual_seed(4)
    attention = _trained(SpatialAttention(6))
    images = [torch.randn(3, 6, 7, 5), torch.randn(3, 6, 4, 9)]
    sizes = [image.shape[2:] for image in images]
    padded = 5 * torch.randn(2, 3, 6, 8, 9)
    for stack, image, (height, width) in zip(padded, images, sizes, strict=True):
        stack[..., :height, :width] = image
    weights = attention.weights(padded, sizes)
    assert weights.max() == 1
    assert not attention.weights(padded).equal(weights)
    for found, image, (height, width) in zip(weights, images, sizes, strict=True):
        alone = attention.weights(image[None])[0]
        torch.testing.assert_close(found[..., :height, :width], alone)


@pytest.mark.parametrize("kind", [ContextualAttention, SpatialAttention])
def test_attention_starts_as_none_and_learns(kind):
    features = torch.randn(2, 3, 4, 5, 5, requires_grad=True)
    attention = kind(4)
    out = attention(features)
    assert out.equal(features)
    (out * torch.randn_like(out)).sum().backward()
    assert attention.scores.weight.grad.abs().amin() > 0
    assert features.grad.abs().amin() > 0


def test_contextual_attention_of_one_image_changes_nothing():
    torch.manual_seed(2)
    features = torch.randn(2, 1, 4, 5, 5)
    assert _trained(ContextualAttention(4))(features).equal(features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [ContextualAttention, SpatialAttention])
def test_attention_is_safe_in_half_precision(kind, dtype):
    """Over 64 x 64 positions a softmax is at most 2^-12 where all are alike, and soon nothing."""
    torch.manual_seed(3)
    attention = _trained(kind(8))
    nn.init.normal_(attention.scores.weight, std=3.0)
    features = torch.randn(1, 3, 8, 64, 64)
    exact = attention.weights(features)
    half = attention.to(dtype).weights(features.to(dtype)).float()
    assert half.isfinite().all()
    assert half.flatten(3).amax() == 1
    # Scores of about 30 are rounded to 2^-6 or 2^-3, which moves a weight by so much of itself.
    step = {torch.float16: 2**-5, torch.bfloat16: 2**-2}[dtype]
    assert ((half - exact).abs() <= step * exact + 1e-4).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_of_0_or_less_is_refused(temperature):
    with pytest.raises(ValueError, match=f"found {temperature}, expected a number above 0"):
        SpatialAttention(4, temperature)
