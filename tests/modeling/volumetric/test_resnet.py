import copy

from lesion_d2.modeling.volumetric import FrozenBatchNorm3d, build_resnet_fpn_3d_backbone

import pytest
import torch
from detectron2.layers import ShapeSpec
from narrow_config import volumetric_config
from torch import nn


def _backbone(*opts):
    return build_resnet_fpn_3d_backbone(volumetric_config(*opts), ShapeSpec(channels=1))


def _step(backbone, images):
    backbone.train()
    sum(feature.square().sum() for feature in backbone(images).values()).backward()
    return {name: p.grad for name, p in backbone.named_parameters()}


@pytest.mark.parametrize("depth", [18, 50])
def test_checkpointing_changes_neither_gradients_nor_statistics(depth):
    torch.manual_seed(0)
    kept = _backbone("MODEL.RESNETS.DEPTH", depth)
    again = copy.deepcopy(kept)
    again.bottom_up.checkpoint = True
    calls = []
    again.bottom_up.res3[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    images = torch.randn(2, 1, 16, 32, 32)
    expected, found = _step(kept, images), _step(again, images)
    assert len(calls) == 2  # forward, and anew in the backward pass
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    for (name, a), b in zip(kept.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b), name  # the batch counts once
    with torch.no_grad():
        again(images)
    assert len(calls) == 3


def test_checkpointing_is_a_key_of_the_config():
    assert _backbone("MODEL.VOLUMETRIC.GRADIENT_CHECKPOINTING", True).bottom_up.checkpoint
    assert not _backbone().bottom_up.checkpoint


def test_frozen_stages_do_not_change():
    backbone = _backbone("MODEL.BACKBONE.FREEZE_AT", 2)
    bottom_up = backbone.bottom_up
    for module in (bottom_up.stem, bottom_up.res2):
        assert not any(p.requires_grad for p in module.parameters())
        assert not any(isinstance(m, nn.BatchNorm3d) for m in module.modules())
        assert any(isinstance(m, FrozenBatchNorm3d) for m in module.modules())
    assert all(p.requires_grad for p in bottom_up.res3.parameters())
    before = copy.deepcopy(bottom_up.res2.state_dict())
    gradients = _step(backbone, torch.randn(2, 1, 16, 32, 32))
    assert gradients["bottom_up.res3.0.conv1.weight"].abs().sum() > 0
    for name, value in bottom_up.res2.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.VOLUMETRIC.STRIDES", ((1, 2, 2),) * 4), "VOLUMETRIC.STRIDES: found .* res5"),
        (("MODEL.VOLUMETRIC.STRIDES", ((0, 2, 2),) * 5), "VOLUMETRIC.STRIDES: found .* at least 1"),
        (("MODEL.VOLUMETRIC.STRIDES", ((1, 1, 2),) * 5), "equal strides of height and width"),
        (("MODEL.RESNETS.DEPTH", 42), r"RESNETS.DEPTH: found 42, expected one of \[18, 34"),
        (("MODEL.RESNETS.RES5_DILATION", 2), "RES5_DILATION: found 2, expected 1 for volumes"),
        (("MODEL.RESNETS.NORM", "LN"), "found 'LN', expected one of"),
        (("MODEL.RESNETS.NORM", "GN"), "'GN': found 4 channels, expected a multiple of 32"),
    ],
)
def test_what_a_resnet_of_volumes_cannot_be_is_named(opts, message):
    with pytest.raises(ValueError, match=message):
        _backbone(*opts)
