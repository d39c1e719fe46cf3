from lesion_d2.modeling.volumetric import Conv3d, FrozenBatchNorm3d, get_norm_3d
from lesion_d2.modeling.volumetric.norms import freeze_norms

import pytest
import torch
from torch import nn


def test_each_name_normalizes():
    x = 3 * torch.randn(2, 32, 3, 4, 5) + 1
    for name, over in (("BN", (0, 2, 3, 4)), ("IN", (2, 3, 4))):
        y = get_norm_3d(name, 32)(x)
        assert y.mean(dim=over).abs().max() < 1e-5, name
        assert (y.var(dim=over, correction=0) - 1).abs().max() < 1e-3, name
    grouped = get_norm_3d("GN", 64)(torch.cat([x, x], dim=1).repeat_interleave(1, dim=1))
    assert grouped.unflatten(1, (32, 2)).mean(dim=(2, 3, 4, 5)).abs().max() < 1e-5
    assert get_norm_3d("", 32) is None


@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_frozen_norm_is_its_formula(requires_grad):
    norm = FrozenBatchNorm3d(3)
    for key in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, key).copy_(torch.rand(3) + 0.5)
    x = torch.randn(2, 3, 2, 3, 4, requires_grad=requires_grad)
    y = norm(x)
    for c in range(3):
        scaled = (x[:, c] - norm.running_mean[c]) / (norm.running_var[c] + norm.eps).sqrt()
        torch.testing.assert_close(y[:, c], scaled * norm.weight[c] + norm.bias[c])


def test_freezing_keeps_what_a_module_computes():
    model = nn.Sequential(Conv3d(1, 4, 3, norm=get_norm_3d("BN", 4)), nn.ReLU())
    x = torch.randn(2, 1, 4, 5, 6)
    model(x)  # statistics other than 0 and 1
    model.eval()
    expected = model(x)
    freeze_norms(model)
    assert isinstance(model[0].norm, FrozenBatchNorm3d)
    torch.testing.assert_close(model.train()(x), expected)


def test_an_activation_comes_after_the_norm():
    conv = Conv3d(1, 4, 3, norm=get_norm_3d("BN", 4), activation=nn.ReLU())
    y = conv(torch.randn(2, 1, 4, 5, 6))
    assert y.min() == 0 and y.max() > 1
    assert y.shape == (2, 4, 2, 3, 4)
