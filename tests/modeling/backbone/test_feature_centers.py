"""Where in the image the features of each backbone lie, which anchors go by."""

import lesion_d2

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn

_RESNET = {
    "RESNETS.DEPTH": 50,
    "RESNETS.WIDTH_PER_GROUP": 4,
    "RESNETS.STEM_OUT_CHANNELS": 8,
    "RESNETS.RES2_OUT_CHANNELS": 16,
    "RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "RETINANET.IN_FEATURES": ["p2", "p3", "p4", "p5"],
}
_VGG = {"FPN.IN_FEATURES": ["c2", "c3", "c4", "c5"], "VGG.WIDTH": 8}
_DENSENET = {
    "SLICE_IMAGES.BACKBONE": "build_densenet_backbone",
    "DENSENET.STEM_CHANNELS": 8,
    "DENSENET.GROWTH_RATE": 4,
    "FPN.IN_FEATURES": ["c2", "c3", "c4"],
    "RETINANET.IN_FEATURES": ["p2", "p3", "p4"],
}
# A VGG's poolings have no padding: (s - 1) / 2. P6 and P7 come by padded convolutions, which move
# nothing. In a DenseNet the transitions' poolings alone have none.
CASES = [
    ("build_resnet_fpn_backbone", _RESNET, {"res2": 0, "res3": 0, "res4": 0, "res5": 0}),
    (
        "build_resnet_fpn_stages_backbone",
        {
            **_RESNET,
            "RESNETS.OUT_FEATURES": ["res2", "res3"],
            "FPN.IN_FEATURES": ["res2", "res3"],
            "RETINANET.IN_FEATURES": ["p2", "p3"],
        },
        {"res2": 0, "res3": 0},
    ),
    (
        "build_vgg_fpn_backbone",
        {**_VGG, "RETINANET.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6", "p7"]},
        {"c2": 1.5, "c3": 3.5, "c4": 7.5, "c5": 15.5, "p6": 15.5, "p7": 15.5},
    ),
    ("build_vgg_backbone", {"VGG.POOLED_STAGES": (1, 2, 3), "VGG.WIDTH": 8}, {"c5": 3.5}),
    ("build_fused_fpn_backbone", _DENSENET, {"c2": 0, "c3": 2, "c4": 6}),
]


def _build(name, keys):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.FPN.OUT_CHANNELS = 4
    cfg.MODEL.UNET_FPN.DECODER_CHANNELS = (4, 4)
    cfg.merge_from_list([v for key, value in keys.items() for v in (f"MODEL.{key}", value)])
    return build_backbone(cfg).double().eval()


def _make_averages(model, monkeypatch):
    """All weights alike, poolings that average: a feature is a weighted mean of its pixels."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                module.weight.fill_(1 / module.weight[0].numel())
                if module.bias is not None:
                    module.bias.zero_()
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.MaxPool2d):
                pool = nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
                setattr(parent, name, pool)
    for axes in (2, 3):
        monkeypatch.setattr(F, f"max_pool{axes}d", getattr(F, f"avg_pool{axes}d"))


def _features(model, image):
    """Of the bottom-up path, and what an FPN has above it."""
    features = model(image)
    bottom_up = getattr(model, "bottom_up", None)
    return {**features, **bottom_up(image)} if bottom_up is not None else features


@pytest.mark.parametrize(("name", "keys", "expected"), CASES, ids=[case[0] for case in CASES])
def test_centers_of_features(monkeypatch, name, keys, expected):
    """Coordinates are those of boxes: whole numbers are pixel centers."""
    model = _build(name, keys)
    _make_averages(model, monkeypatch)
    ramp = torch.arange(1536.0, dtype=torch.double).expand(1, 3, 128, -1)
    with torch.no_grad():
        of_ramp, of_ones = _features(model, ramp), _features(model, torch.ones_like(ramp))
    for level, center in expected.items():
        width = of_ones[level].shape[-1]
        index = width // 2  # far from the borders
        ratio = of_ramp[level][0, 0, 0, index] / of_ones[level][0, 0, 0, index]
        found = ratio.item() - index * (ramp.shape[-1] // width)
        assert found == pytest.approx(center, abs=1e-6), level


@pytest.mark.parametrize(("strides", "axis"), [((1, 2, 2), 2), ((2, 1, 1), 0)], ids=["x", "z"])
def test_centers_of_features_of_volumes(monkeypatch, strides, axis):
    """As anchors of volumes, and as in Detectron2's ResNet, the first one lies at voxel 0."""
    keys = {**_RESNET, "RESNETS.DEPTH": 18, "VOLUMETRIC.STRIDES": (strides,) * 5}
    model = _build("build_resnet_fpn_3d_backbone", keys)
    _make_averages(model, monkeypatch)
    length = 640
    sides, shape = [3, 32, 32] if axis == 2 else [3, 3, 3], [1, 1, 1]
    sides[axis], shape[axis] = length, -1
    ramp = torch.arange(length, dtype=torch.double).view(shape).expand(1, 3, *sides).contiguous()
    with torch.no_grad():
        of_ramp, of_ones = _features(model, ramp), _features(model, torch.ones_like(ramp))
    for level in ("res2", "res3", "res4", "res5"):
        number = of_ones[level].shape[2 + axis]
        index = number // 2
        ratio = (of_ramp[level] / of_ones[level])[0, 0].select(axis, index)
        assert ratio.mean().item() == pytest.approx(index * (length // number), abs=1e-6), level
