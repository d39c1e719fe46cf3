import lesion_d2
from lesion_d2.modeling.backbone import (
    VGG,
    build_vgg_backbone,
    build_vgg_fpn_backbone,
    build_vgg_unet_fpn_backbone,
)

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torch import nn


def _config(*opts):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.VGG.DEPTH = 16
    cfg.MODEL.VGG.WIDTH = 8
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.FPN.IN_FEATURES = ["c2", "c3", "c4", "c5"]
    cfg.MODEL.UNET_FPN.DECODER_CHANNELS = (8, 4)
    cfg.MODEL.RETINANET.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.merge_from_list(list(opts))
    return cfg


@pytest.mark.parametrize("depth", [16, 19])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_layers_are_torchvisions(depth, batch_norm):
    with torch.device("meta"):
        ours = VGG(depth, batch_norm=batch_norm)
        theirs = getattr(torchvision.models, ours.torchvision_name)(weights=None)
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    expected = {n: v.shape for n, v in theirs.state_dict().items() if n.startswith("features.")}
    assert shapes == expected


@pytest.mark.parametrize(("channels", "width"), [(1, 64), (3, 16), (7, 12)])
def test_features_have_the_shapes_that_they_promise(channels, width):
    cfg = _config("MODEL.VGG.WIDTH", width)
    backbone = build_vgg_backbone(cfg, ShapeSpec(channels=channels))
    with torch.no_grad():
        features = backbone(torch.randn(1, channels, 70, 101))  # odd sizes: the last pixels go
    assert list(features) == ["c1", "c2", "c3", "c4", "c5"]
    for stage, (name, shape) in enumerate(backbone.output_shape().items(), start=1):
        assert shape.stride == 2**stage and shape.channels == width * min(2 ** (stage - 1), 8)
        size = (70 // shape.stride, 101 // shape.stride)
        assert features[name].shape == (1, shape.channels, *size)


def test_without_the_last_poolings_c5_is_relu5_3_at_stride_8():
    torch.manual_seed(0)
    ours = VGG(16, width=8, pooled_stages=(1, 2, 3))
    shapes = ours.output_shape()
    assert [shape.stride for shape in shapes.values()] == [2, 4, 8, 8, 8]
    assert [shape.channels for shape in shapes.values()] == [8, 16, 32, 64, 64]

    pooled = VGG(16, width=8)
    assert list(pooled.state_dict()) == list(ours.state_dict())  # torchvision's names
    pooled.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 70, 101)
    x, relus = images, 0
    for layer in pooled.features:
        if isinstance(layer, nn.MaxPool2d) and relus >= 10:  # pool4 and pool5
            continue
        x = layer(x)
        relus += isinstance(layer, nn.ReLU)
    assert relus == 13

    features = ours(images)["c5"]
    assert features.shape == (1, 64, 8, 12)
    torch.testing.assert_close(features, x)


def test_frozen_stages_end_where_they_are_not_pooled_too():
    all_pooled = [
        name for name, p in VGG(16, width=8, freeze_at=4).named_parameters() if p.requires_grad
    ]
    vgg = VGG(16, width=8, freeze_at=4, pooled_stages=(1, 2, 3))
    assert [name for name, p in vgg.named_parameters() if p.requires_grad] == all_pooled


def test_frozen_stages_are_not_trained():
    vgg = VGG(16, width=8, batch_norm=True, freeze_at=2)
    trained = [name for name, p in vgg.named_parameters() if p.requires_grad]
    third = next(
        i for i, layer in enumerate(vgg.features) if getattr(layer, "out_channels", 0) == 32
    )
    assert trained[0] == f"features.{third}.weight"
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in vgg.features[:third])
    before = vgg.features[1].running_mean.clone()
    vgg.train()(torch.randn(2, 3, 64, 64))["c5"].sum().backward()
    assert torch.equal(vgg.features[1].running_mean, before)
    assert all(p.requires_grad for p in VGG(16, width=8).parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.VGG.DEPTH", 11), r"MODEL.VGG.DEPTH: found 11, expected one of \[16, 19\]"),
        (("MODEL.VGG.WIDTH", 0), "MODEL.VGG.WIDTH: found 0, expected at least 1"),
        (
            ("MODEL.VGG.POOLED_STAGES", (1, 6)),
            r"POOLED_STAGES: found \(1, 6\), expected stages from 1",
        ),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_vgg_backbone(_config(*options), ShapeSpec(channels=3))


@pytest.mark.parametrize(
    ("inputs", "levels"),
    [
        (["c3", "c4", "c5"], ["p3", "p4", "p5", "p6", "p7"]),
        (["c2", "c3", "c4", "c5"], ["p2", "p3", "p4", "p5", "p6"]),
        (["c2", "c3", "c4", "c5"], ["p2", "p3", "p4", "p5"]),
    ],
)
def test_fpn_has_the_levels_that_retinanet_asks_for(inputs, levels):
    cfg = _config("MODEL.FPN.IN_FEATURES", inputs, "MODEL.RETINANET.IN_FEATURES", levels)
    backbone = build_vgg_fpn_backbone(cfg, ShapeSpec(channels=3))
    features = backbone(torch.randn(1, 3, 128, 64))
    assert list(features) == levels
    for name, shape in backbone.output_shape().items():
        assert features[name].shape == (1, 16, 128 // shape.stride, max(1, 64 // shape.stride))


@pytest.mark.parametrize("attention", [False, True])
def test_unet_fpn_goes_on_to_full_size(attention):
    cfg = _config("MODEL.UNET_FPN.ATTENTION", attention)
    backbone = build_vgg_unet_fpn_backbone(cfg, ShapeSpec(channels=3))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = backbone(images)
        assert backbone.decode(images, features).shape == (2, 4, 64, 96)
    assert set(features) == {"c1", "p2", "p3", "p4", "p5", "p6"}
    assert set(backbone.gates) == ({"p0", "p1", "p2", "p3", "p4"} if attention else set())


def test_detection_levels_without_gates_equal_detectron2s_fpn():
    cfg = _config()
    torch.manual_seed(0)
    ours = build_vgg_unet_fpn_backbone(cfg, ShapeSpec(channels=3))
    theirs = build_vgg_fpn_backbone(cfg, ShapeSpec(channels=3))
    assert not theirs.load_state_dict(ours.state_dict(), strict=False).missing_keys
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = ours(images)
        for name, expected in theirs(images).items():
            assert torch.equal(found[name], expected), name


def test_a_closed_gate_shuts_its_skip_connection_only():
    cfg = _config("MODEL.UNET_FPN.ATTENTION", True)
    torch.manual_seed(0)
    backbone = build_vgg_unet_fpn_backbone(cfg, ShapeSpec(channels=3)).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = backbone(images)
        backbone.gates["p3"].psi[0].bias.fill_(-1e4)
        after = backbone(images)
        lateral_p3 = backbone.lateral_convs[backbone.in_features[::-1].index("c3")]
        lateral_p3.weight.mul_(3)
        without = backbone(images)
    same = {name: torch.equal(before[name], after[name]) for name in before}
    assert same == {"c1": True, "p2": False, "p3": False, "p4": True, "p5": True, "p6": True}
    assert all(torch.equal(after[name], without[name]) for name in after)
