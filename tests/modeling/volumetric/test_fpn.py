from lesion_d2.modeling.backbone import build_resnet_unet_fpn_backbone
from lesion_d2.modeling.segmentation import build_segmentation_predictor
from lesion_d2.modeling.volumetric import (
    UNetFPN3D,
    VolumeShape,
    build_resnet_fpn_3d_backbone,
    build_resnet_unet_fpn_3d_backbone,
)

import pytest
import torch
from detectron2.layers import ShapeSpec
from narrow_config import LEVELS, volumetric_config
from torch import nn

IN_PLANE = ((1, 2, 2),) * 5


def _shape(channels=1):
    return ShapeSpec(channels=channels)


@pytest.mark.parametrize(
    ("strides", "expected"),
    [
        # Jaeger et al., in their code
        (
            ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
            ((1, 4, 4), (2, 8, 8), (4, 16, 16), (8, 32, 32)),
        ),
        (((2, 2, 2),) * 5, ((4, 4, 4), (8, 8, 8), (16, 16, 16), (32, 32, 32))),
        # fine levels, as small lesions want them; P2 is the level of res2 still
        (
            ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 3, 3)),
            ((1, 2, 2), (1, 4, 4), (2, 8, 8), (2, 24, 24)),
        ),
    ],
)
def test_levels_have_the_strides_of_the_config(strides, expected):
    cfg = volumetric_config("MODEL.VOLUMETRIC.STRIDES", strides)
    size = [2 * s for s in expected[-1]]
    images = torch.randn(1, 1, *size)

    for build in (build_resnet_fpn_3d_backbone, build_resnet_unet_fpn_3d_backbone):
        backbone = build(cfg, _shape()).eval()
        shapes = backbone.output_shape()
        assert list(shapes) == ["p2", "p3", "p4", "p5"]
        assert tuple(s.strides for s in shapes.values()) == expected
        assert tuple(s.stride for s in shapes.values()) == tuple(s[2] for s in expected)
        assert backbone.size_divisibility_3d == expected[-1]
        assert backbone.size_divisibility == expected[-1][2]
        with torch.no_grad():
            features = backbone(images)
        for name, shape in shapes.items():
            sides = tuple(n // s for n, s in zip(size, shape.strides, strict=True))
            assert features[name].shape == (1, 6, *sides), name
    assert set(features) == {"c1", "p2", "p3", "p4", "p5"}

    with torch.no_grad():
        assert backbone.decode(images, features).shape == (1, 3, *size)
    assert backbone.decoder_shape == VolumeShape(channels=3, stride=1, strides=(1, 1, 1))


def _put_in_the_middle(model3d, model2d):
    """Weights of slices: those of the middle slice of a volume's, 0 elsewhere."""
    weights = model2d.state_dict()
    for name, target in model3d.state_dict().items():
        source = weights.pop(name)
        if target.dim() == source.dim():
            target.copy_(source)
        else:
            target.zero_()
            target[:, :, target.shape[2] // 2] = source
    assert not weights


@pytest.mark.parametrize(
    "opts",
    [
        ("MODEL.RESNETS.DEPTH", 50),
        ("MODEL.UNET_FPN.C0_CHANNELS", 3, "MODEL.UNET_FPN.UPSAMPLING", "bilinear"),
        ("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.UNET_FPN.DECODER_NORM", "BN"),
    ],
)
def test_slice_by_slice_it_is_the_u_fpn_of_slices(opts):
    """Detectron2's ResNet and FPN with our decoder, on a volume of equal slices."""
    torch.manual_seed(0)
    width = ("MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    cfg = volumetric_config("MODEL.VOLUMETRIC.STRIDES", IN_PLANE, *width, *opts)
    flat = build_resnet_unet_fpn_backbone(cfg, _shape(2))
    deep = build_resnet_unet_fpn_3d_backbone(cfg, _shape(2))
    assert isinstance(deep, UNetFPN3D)
    _put_in_the_middle(deep, flat)
    flat.double(), deep.double()  # norms of small maps enlarge what rounding does
    images = torch.randn(2, 2, 64, 96, dtype=torch.float64)
    volumes = images[:, :, None].expand(-1, -1, 3, -1, -1).contiguous()
    with torch.no_grad():
        expected, found = flat(images), deep(volumes)
        expected["p0"] = flat.decode(images, expected)
        found["p0"] = deep.decode(volumes, found)
    assert set(found) == set(expected)
    for name, feature in found.items():
        wanted = expected[name][:, :, None].expand_as(feature)
        torch.testing.assert_close(feature, wanted, rtol=1e-6, atol=1e-8)


def test_slices_see_each_other():
    torch.manual_seed(0)
    backbone = build_resnet_unet_fpn_3d_backbone(volumetric_config(), _shape()).eval()
    images = torch.randn(1, 1, 16, 32, 32)
    changed = images.clone()
    changed[:, :, 7] += 1
    with torch.no_grad():
        first, second = backbone(images), backbone(changed)
    difference = (first["p2"] - second["p2"]).abs().amax(dim=(0, 1, 3, 4))
    assert (difference > 0)[4:11].all()


def test_an_fpn_does_without_the_stems_features_and_gives_the_same_levels():
    torch.manual_seed(0)
    cfg = volumetric_config()
    unet = build_resnet_unet_fpn_3d_backbone(cfg, _shape()).eval()
    fpn = build_resnet_fpn_3d_backbone(cfg, _shape()).eval()
    assert not fpn.load_state_dict(unet.state_dict(), strict=False).missing_keys
    images = torch.randn(1, 1, 8, 32, 32)
    with torch.no_grad():
        expected, found = unet(images), fpn(images)
        assert set(fpn.bottom_up(images)) == set(LEVELS)
    assert set(found) == {"p2", "p3", "p4", "p5"}
    for name, feature in found.items():
        assert torch.equal(feature, expected[name]), name


def test_outputs_that_no_head_looks_at_are_dropped():
    backbone = build_resnet_unet_fpn_3d_backbone(volumetric_config(), _shape()).eval()
    images = torch.randn(1, 1, 8, 32, 32)
    with torch.no_grad():
        expected = backbone.decode(images, backbone(images))
        backbone.drop_outputs(keep=["p2"])
        features = backbone(images)
        found = backbone.decode(images, features)
    assert set(features) == {"c1", "p2"} and list(backbone.output_shape()) == ["p2"]
    assert torch.equal(found, expected)
    assert not any("fpn_output3" in name for name in backbone.state_dict())


def test_attention_gates_are_refused():
    cfg = volumetric_config("MODEL.UNET_FPN.ATTENTION", True)
    with pytest.raises(ValueError, match=r"UNET_FPN.ATTENTION: found True, expected False"):
        build_resnet_unet_fpn_3d_backbone(cfg, _shape())


def test_a_u_fpn_of_volumes_gets_a_convolution_of_volumes():
    backbone = build_resnet_unet_fpn_3d_backbone(volumetric_config(), _shape())
    predictor = build_segmentation_predictor(backbone, 2)
    assert isinstance(predictor, nn.Conv3d)
    prior = predictor(torch.zeros(1, 3, 2, 4, 4)).softmax(dim=1)
    # Two classes beside the background, whose logit is that of a foreground of 1 % and one class.
    assert prior[0, :, 0, 0, 0].tolist() == pytest.approx([99 / 101, 1 / 101, 1 / 101])
