import lesion_d2
from lesion_d2.modeling import batch_images, reuse_features
from lesion_d2.modeling.backbone import FusedImages, build_densenet_backbone
from lesion_d2.modeling.backbone.unet_fpn import build_top_block

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import FPN
from torch import nn


def _config(*opts):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_fused_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.SLICE_IMAGES.BACKBONE = "build_densenet_backbone"
    cfg.MODEL.DENSENET.STEM_CHANNELS = 8
    cfg.MODEL.DENSENET.GROWTH_RATE = 4
    cfg.MODEL.FPN.IN_FEATURES = ["c2", "c3", "c4"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RETINANET.IN_FEATURES = ["p2", "p3", "p4"]
    cfg.merge_from_list(list(opts))
    return cfg


def _build(num_images, *opts, fusion_std=0.0):
    """With a spread, the fusion is as a trained one: of all images."""
    torch.manual_seed(0)
    fpn = build_backbone(_config(*opts), ShapeSpec(channels=3 * num_images))
    for conv in fpn.bottom_up.fusions.values():
        conv.weight.data.add_(torch.randn_like(conv.weight), alpha=fusion_std)
    return fpn.eval()


def _plain_fpn(fused, cfg):
    """Detectron2's FPN of three channels with the same weights."""
    bottom_up = build_densenet_backbone(cfg, ShapeSpec(channels=3))
    plain = FPN(bottom_up, ["c2", "c3", "c4"], 16, top_block=build_top_block(cfg, bottom_up))
    bottom_up.load_state_dict(fused.bottom_up.backbone.state_dict())
    others = {n: v for n, v in fused.state_dict().items() if not n.startswith("bottom_up.")}
    plain.load_state_dict(others, strict=False)
    return plain.eval()


@pytest.mark.parametrize("top", [0, 1, 2])
@pytest.mark.parametrize("num_images", [1, 3])
@torch.no_grad()
def test_it_begins_as_the_plain_fpn_of_the_key_image(num_images, top):
    levels = ["p2", "p3", "p4", "p5", "p6"][: 3 + top]
    opts = ("MODEL.RETINANET.IN_FEATURES", levels)
    fused = _build(num_images, *opts)
    assert len(fused.bottom_up.fusions) == (0 if num_images == 1 else 3)
    plain = _plain_fpn(fused, _config(*opts))
    stacks = torch.randn(2, 3 * num_images, 64, 96)
    found = fused(stacks)
    key = 3 * (num_images // 2)
    expected = plain(stacks[:, key : key + 3])
    assert list(found) == levels == list(fused.output_shape())
    torch.testing.assert_close(found, expected)
    assert fused.size_divisibility == plain.size_divisibility == 16
    assert fused.output_shape() == plain.output_shape()


@torch.no_grad()
def test_every_level_is_one_convolution_of_all_images_features():
    bottom_up = _build(3, fusion_std=0.2).bottom_up
    stacks = torch.randn(2, 9, 64, 96)
    images = [bottom_up.backbone(stacks[:, 3 * m : 3 * m + 3]) for m in range(3)]
    for name, found in bottom_up(stacks).items():
        conv = bottom_up.fusions[name]
        expected = conv.bias[:, None, None] + sum(
            torch.einsum("dc,nchw->ndhw", weight, image[name])
            for weight, image in zip(conv.weight[:, :, 0, 0].chunk(3, dim=1), images, strict=True)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert bottom_up.output_shape()[name].channels == found.shape[1]


def test_gradients_reach_every_parameter():
    backbone = _build(3).train()
    sum(f.square().sum() for f in backbone(torch.randn(2, 9, 64, 64)).values()).backward()
    assert not [name for name, p in backbone.named_parameters() if not p.grad.abs().sum() > 0]


def _count_images(backbone):
    counted = []
    backbone.bottom_up.backbone.register_forward_pre_hook(
        lambda m, args: counted.append(len(*args))
    )
    return counted


@torch.no_grad()
def test_reused_features_have_the_same_bits():
    backbone, volume = _build(3, fusion_std=0.2), torch.randn(14, 64, 48)
    counted = _count_images(backbone)
    stacks = [
        volume[(z + torch.arange(-4, 5)).clamp(0, len(volume) - 1)][None]
        for z in range(len(volume))
    ]
    plain = [backbone(stack) for stack in stacks]
    assert counted == [1] * 3 * 14
    counted.clear()
    with reuse_features(nn.ModuleList([backbone]), 18):
        reused = [backbone(stack) for stack in stacks]
    # Once each of those around a slice, and of the first slice alone and the last one alone.
    assert len(counted) == 14 + 2
    for a, b in zip(plain, reused, strict=True):
        assert a.keys() == b.keys() and all(value.equal(b[name]) for name, value in a.items())


@torch.no_grad()
def test_images_in_batches():
    backbone = _build(3, fusion_std=0.2)
    counted, stacks = _count_images(backbone), torch.randn(2, 9, 64, 64)
    expected = backbone(stacks)
    with batch_images(nn.ModuleList([backbone])):
        found = backbone(stacks)
    backbone(stacks)
    assert counted == [1] * 6 + [6] + [1] * 6
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.FPN.IN_FEATURES", ["c4", "c5"]), r"FPN.IN_FEATURES: found .*'c5'.* of c2, c3, c4"),
        (("MODEL.FPN.IN_FEATURES", []), r"FPN.IN_FEATURES: found \[\], expected some of c2"),
        *(
            (("MODEL.SLICE_IMAGES.BACKBONE", f"build_{name}_backbone"), r"IMAGES.BACKBONE: found")
            for name in ("fused_fpn", "slice_images")
        ),
    ],
)
def test_inputs_that_are_no_images_of_three_slices_are_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(_config(*opts), ShapeSpec(channels=9))
    with pytest.raises(ValueError, match=r"MODEL.PIXEL_MEAN: found 6 values"):
        build_backbone(_config(), ShapeSpec(channels=6))
    with pytest.raises(ValueError, match="found 6 values"):
        FusedImages(build_densenet_backbone(_config(), ShapeSpec(channels=3)), ["c2"], 2)
