import math
from fractions import Fraction

import lesion_d2
from lesion_d2.modeling import PositionSensitivePooler, RFCNROIHeads, position_sensitive_pool

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import Boxes


def _pool(maps, box, resolution, stride):
    """Position-sensitive pooling of one region, as R-FCN's code has it: (C, k, k)."""
    firsts = [math.floor(v + 0.5) for v in box[:2]]
    sizes = [math.floor(v + 0.5) + 1 - first for v, first in zip(box[2:], firsts, strict=True)]

    def is_touched(feature, part, axis):
        start = Fraction(firsts[axis]) + Fraction(sizes[axis] * part, resolution)
        stop = start + Fraction(sizes[axis], resolution)
        return (feature + 1) * stride > start and feature * stride < stop

    num_maps = len(maps) // resolution**2
    out = np.zeros((num_maps, resolution, resolution))
    for c, i, j in np.ndindex(out.shape):
        part = maps[(c * resolution + i) * resolution + j]
        rows, columns = (
            [f for f in range(n) if is_touched(f, bin, axis)]
            for n, bin, axis in ((part.shape[0], i, 1), (part.shape[1], j, 0))
        )
        values = [part[y, x] for y in rows for x in columns]
        out[c, i, j] = np.mean(values) if values else 0
    return out


def test_each_image_is_pooled_by_the_same_score_maps_side_by_side():
    torch.manual_seed(0)
    pooler = PositionSensitivePooler(6, 3, stride=4, resolution=3, num_score_maps=2)
    features = torch.randn(2, 3 * 6, 10, 12)
    boxes = [
        torch.tensor([[5.2, 3.0, 30.5, 29.0], [0, 0, 47, 39]]),
        torch.tensor([[9.0, 9, 14, 11], [20, -3, 60, 21.7], [13, 8, 13, 8]]),
    ]
    with torch.no_grad():
        pooled = pooler([features], [Boxes(b) for b in boxes])
    assert pooled.shape == (5, 3 * 2, 3, 3)
    assert pooler.output_shape == ShapeSpec(channels=6, height=3, width=3)

    weight = pooler.score_maps.weight[:, :, 0, 0].detach().numpy()
    regions = [(n, box) for n in range(2) for box in boxes[n]]
    for found, (n, box) in zip(pooled, regions, strict=True):
        for image in range(3):
            part = features[n, 6 * image : 6 * image + 6].numpy()
            maps = np.einsum("ce,ehw->chw", weight, part)
            expected = _pool(maps, box.tolist(), 3, 4)
            np.testing.assert_allclose(found[2 * image : 2 * image + 2], expected, atol=1e-5)


def test_a_region_ends_with_its_last_pixel():
    """By R-FCN's code, whose parts begin at x1 and end at x2 + 1; torchvision's rounds to stride.

    Values: MXNet 1.9.1's contrib.PSROIPooling, the op of 3DCE's code, of these maps and regions.
    """
    maps = torch.arange(36.0).view(1, 1, 6, 6, 1, 1).expand(-1, -1, -1, -1, 4, -1)
    boxes = torch.tensor([[4.0, 4, 11, 11], [2, 9, 20, 14.5], [40, 40, 47, 47], [7.4, 0, 7.6, 3]])
    pooled = position_sensitive_pool(maps, [boxes], resolution=2, stride=8)[:, 0, 0]
    expected = [
        [[0, 1], [6, 7]],
        [[6.5, 7.5], [6.5, 7.5]],
        [[35, 35], [35, 35]],
        [[0, 1], [0, 1]],
    ]
    np.testing.assert_array_equal(pooled.numpy(), expected)


@pytest.mark.parametrize("stride", [4, 8])
def test_a_region_reads_the_features_of_its_own_pixels_and_no_others(stride):
    """A lesion of 14 x 10 pixels, at every place within a feature."""
    for x, y in np.ndindex(stride, stride):
        box = torch.tensor([[8.0 + x, 16.0 + y, 21.0 + x, 25.0 + y]])
        maps = torch.zeros(1, 1, 20, 20, 49, 1, requires_grad=True)
        position_sensitive_pool(maps, [box], 7, stride).sum().backward()
        read = maps.grad[0, 0, ..., 0].sum(dim=-1)
        expected = torch.zeros(20, 20, dtype=torch.bool)
        rows, columns = (
            {v // stride for v in range(a, a + n)} for a, n in ((16 + y, 10), (8 + x, 14))
        )
        expected[min(rows) : max(rows) + 1, min(columns) : max(columns) + 1] = True
        assert ((read > 0) == expected).all()
        assert read.sum() == pytest.approx(49)


def test_no_region_and_half_precision():
    pooler = PositionSensitivePooler(4, 1, stride=8)
    assert pooler.score_maps.out_channels == 490
    features = [torch.randn(1, 4, 8, 8)]
    assert pooler(features, [Boxes(torch.zeros(0, 4))]).shape == (0, 10, 7, 7)
    assert (pooler(features, [Boxes(torch.tensor([[900.0, 900, 990, 990]]))]) == 0).all()
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooler(features, [Boxes(torch.tensor([[0.0, 0, 20, 20]]))])
    assert pooled.dtype == torch.float32


def _config(*opts):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [127.5] * 9
    cfg.MODEL.BACKBONE.NAME = "build_slice_images_backbone"
    cfg.MODEL.ROI_HEADS.NAME = "RFCNROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["images"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 2048
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.merge_from_list(list(opts))
    return cfg


def test_the_head_is_3dces():
    shapes = {"c5": ShapeSpec(channels=16, stride=8), "images": ShapeSpec(channels=48, stride=8)}
    heads = build_roi_heads(_config(), shapes)
    assert isinstance(heads, RFCNROIHeads)
    assert heads.box_pooler.score_maps.weight.shape == (490, 16, 1, 1)
    [fc] = [m for m in heads.box_head.modules() if isinstance(m, torch.nn.Linear)]
    assert fc.weight.shape == (2048, 3 * 10 * 7 * 7)
    assert heads.box_predictor.cls_score.in_features == 2048


@pytest.mark.parametrize("features", [["c5"], ["images", "c5"]])
def test_other_features_are_refused(features):
    shapes = {"c5": ShapeSpec(channels=16, stride=8), "images": ShapeSpec(channels=48, stride=8)}
    with pytest.raises(ValueError, match=r"ROI_HEADS.IN_FEATURES: found .*, expected \['images'\]"):
        build_roi_heads(_config("MODEL.ROI_HEADS.IN_FEATURES", features), shapes)
    with pytest.raises(ValueError, match=r"BACKBONE.NAME: found .*, expected .build_slice_images"):
        build_roi_heads(_config(), {"p2": ShapeSpec(channels=16, stride=8)})
