import lesion_d2  # noqa: F401, makes detectron2 importable
from lesion_d2.modeling.volumetric import Conv3d

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    ("kernel", "stride", "bias"),
    [
        (1, 1, True),
        (1, (1, 2, 2), False),
        (1, (2, 2, 3), True),
        (3, 1, False),
        (7, (1, 2, 2), True),
    ],
)
def test_it_computes_what_pytorch_does(kernel, stride, bias, memory_format, grad):
    torch.manual_seed(0)
    options = {"kernel_size": kernel, "stride": stride, "padding": kernel // 2, "bias": bias}
    ours, theirs = Conv3d(3, 5, **options), nn.Conv3d(3, 5, **options)
    theirs.load_state_dict(ours.state_dict())
    ours.to(memory_format=memory_format)
    images = torch.randn(2, 3, 5, 6, 7)
    x, y = (images.clone().requires_grad_(grad) for _ in range(2))
    with torch.set_grad_enabled(grad):
        found, expected = ours(x.contiguous(memory_format=memory_format)), theirs(y)
    torch.testing.assert_close(found, expected, check_stride=False)
    if grad:
        weights = torch.randn_like(expected)
        (found * weights).sum().backward()
        (expected * weights).sum().backward()
        torch.testing.assert_close(x.grad, y.grad, check_stride=False)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, check_stride=False, rtol=1e-4, atol=1e-5)


def test_groups_and_half_precision_are_pytorchs():
    conv = Conv3d(4, 6, 1, groups=2)
    x = torch.randn(1, 4, 2, 3, 4)
    with torch.no_grad():
        expected = nn.Conv3d.forward(conv, x)
        assert torch.equal(conv(x), expected)
        assert conv.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
        small = Conv3d(4, 6, 3, padding=1).bfloat16()
        assert small(x.bfloat16()).dtype == torch.bfloat16
