from lesion_d2.modeling.attention import AttentionGate, record_attention

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
