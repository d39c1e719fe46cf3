import lesion_d2
from lesion_d2.modeling.backbone import ResNetWithStem, build_resnet_unet_fpn_backbone
from lesion_d2.modeling.backbone.vgg import build_vgg_unet_fpn_backbone

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, build_resnet_backbone


def _config(*opts):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.UNET_FPN.DECODER_CHANNELS = (8, 4)
    cfg.MODEL.RETINANET.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.merge_from_list(list(opts))
    return cfg


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_features_have_the_sizes_of_their_levels(depth, channels):
    wide = 64 if depth < 50 else 256
    cfg = _config("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", wide)
    backbone = build_resnet_unet_fpn_backbone(cfg, ShapeSpec(channels=channels))
    images = torch.randn(2, channels, 64, 96)
    with torch.no_grad():
        features = backbone(images)
        p0 = backbone.decode(images, features)
    assert set(features) == {"c1", "p2", "p3", "p4", "p5"}
    for name, shape in backbone.output_shape().items():
        assert features[name].shape == (2, 16, 64 // shape.stride, 96 // shape.stride), name
    assert p0.shape == (2, 4, 64, 96)


def test_p6_only_where_it_is_used():
    without = build_resnet_unet_fpn_backbone(_config(), ShapeSpec(channels=3))
    assert "p6" not in without.output_shape()
    cfg = _config("MODEL.RETINANET.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"])
    backbone = build_resnet_unet_fpn_backbone(cfg, ShapeSpec(channels=3))
    assert backbone(torch.randn(1, 3, 64, 64))["p6"].shape == (1, 16, 1, 1)


def test_detection_levels_equal_detectron2s_fpn():
    cfg = _config()
    backbone = build_resnet_unet_fpn_backbone(cfg, ShapeSpec(channels=3)).eval()
    fpn = FPN(build_resnet_backbone(cfg, ShapeSpec(channels=3)), cfg.MODEL.FPN.IN_FEATURES, 16)
    unused = fpn.eval().load_state_dict(backbone.state_dict(), strict=False)
    assert not unused.missing_keys  # the parameters have Detectron2's names
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = backbone(images), fpn(images)
    for name, features in theirs.items():
        assert torch.equal(ours[name], features), name


def test_stem_features_are_those_before_the_pooling():
    cfg = _config()
    resnet = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    with_stem = ResNetWithStem(resnet).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = with_stem(images)
        pooled = torch.nn.functional.max_pool2d(features["c1"], 3, 2, 1)
        assert torch.equal(pooled, resnet.stem(images))
        assert torch.equal(features["res5"], resnet(images)["res5"])
    assert features["c1"].shape == (1, 64, 32, 32)


def test_a_decoder_without_p2_is_refused():
    cfg = _config("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"])
    with pytest.raises(
        ValueError, match=r"MODEL.FPN.IN_FEATURES: found \['res3', 'res4', 'res5'\]"
    ):
        build_resnet_unet_fpn_backbone(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize("channels", [1, 7])
def test_a_resnet_begins_from_c0_and_p0_is_written_out(channels):
    """Jaeger et al., in their code: C0 feeds C1, and is P0's skip connection."""
    options = ("MODEL.UNET_FPN.C0_CHANNELS", 6, "MODEL.UNET_FPN.UPSAMPLING", "bilinear")
    backbone = build_resnet_unet_fpn_backbone(
        _config(*options), ShapeSpec(channels=channels)
    ).eval()
    images = torch.randn(1, channels, 64, 96)
    with torch.no_grad():
        features = backbone(images)
        p0 = backbone.decode(images, features)
        c0 = images
        for conv in backbone.bottom_up.c0:
            c0 = F.relu(F.conv2d(c0, conv.weight, conv.bias, padding=1))
        torch.testing.assert_close(features["c0"], c0)
        torch.testing.assert_close(features["c1"], F.relu(backbone.bottom_up.stem.conv1(c0)))

        def double(x):
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

        p1 = backbone.lateral_p1(features["c1"]) + double(backbone.reduce_p2(features["p2"]))
        expected = backbone.output_p0(backbone.lateral_p0(c0) + double(backbone.reduce_p1(p1)))
    assert c0.shape == (1, 6, 64, 96) and (c0 > 0).any()
    torch.testing.assert_close(p0, expected)
    fpn = FPN(backbone.bottom_up, ["res2", "res3", "res4", "res5"], 16).eval()
    fpn.load_state_dict(backbone.state_dict(), strict=False)
    with torch.no_grad():
        for name, level in fpn(images).items():
            if name in features:  # the FPN's own levels go on by the nearest pixel
                assert torch.equal(features[name], level), name


def test_what_a_u_fpn_cannot_do_is_named():
    with pytest.raises(ValueError, match="UPSAMPLING: found 'cubic', expected 'nearest' or 'bil"):
        build_resnet_unet_fpn_backbone(
            _config("MODEL.UNET_FPN.UPSAMPLING", "cubic"), ShapeSpec(channels=3)
        )
    cfg = _config("MODEL.UNET_FPN.C0_CHANNELS", 8, "MODEL.FPN.IN_FEATURES", ["c2", "c3", "c4"])
    with pytest.raises(ValueError, match=r"C0_CHANNELS: found 8, expected 0 for .* over a VGG"):
        build_vgg_unet_fpn_backbone(cfg, ShapeSpec(channels=3))


def test_p2_at_which_no_head_looks_is_left_to_the_decoder():
    backbone = build_resnet_unet_fpn_backbone(_config(), ShapeSpec(channels=3)).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    features = backbone(images)
    p0 = backbone.decode(images, features)
    p0.square().sum().backward()
    trained = [parameter for parameter in backbone.parameters() if parameter.grad is not None]
    assert backbone.fpn_output2.weight in set(trained)

    gradients = [parameter.grad for parameter in trained]
    backbone.zero_grad()
    backbone.leave_out_p2()
    calls = []
    for conv in (backbone.fpn_lateral2, backbone.fpn_output2):
        conv.register_forward_hook(lambda module, *_: calls.append(module))
    others = backbone(images)
    assert calls == [] and "p2" not in others

    for level in ("p3", "p4", "p5"):
        torch.testing.assert_close(others[level], features[level], rtol=0, atol=0)
    # The two convolutions as one are the same function of the same parameters.
    found = backbone.decode(images, others)
    torch.testing.assert_close(found, p0)

    found.square().sum().backward()
    for parameter, gradient in zip(trained, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("norm", ["FPN.NORM", "UNET_FPN.DECODER_NORM"])
def test_with_a_norm_between_p2s_convolutions_stay_two(norm):
    cfg = _config(f"MODEL.{norm}", "BN", "MODEL.UNET_FPN.ATTENTION", True)
    backbone = build_resnet_unet_fpn_backbone(cfg, ShapeSpec(channels=3)).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        p0 = backbone.decode(images, backbone(images))
        backbone.leave_out_p2()
        assert torch.equal(backbone.decode(images, backbone(images)), p0)
