import math

import lesion_d2
from lesion_d2.modeling import PositionSensitivePooler, RFCNROIHeads

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import Boxes


def _pool(maps, box, resolution, stride):
    """Position-sensitive pooling of one region, as R-FCN describes it: (C, k, k)."""
    x1, y1, x2, y2 = (math.floor(v / stride + 0.5) for v in box)
    width, height = max(x2 - x1, 1) / resolution, max(y2 - y1, 1) / resolution
    num_maps = len(maps) // resolution**2
    out = np.zeros((num_maps, resolution, resolution))
    for c, i, j in np.ndindex(out.shape):
        tops, lefts = y1 + (i + np.arange(2)) * height, x1 + (j + np.arange(2)) * width
        rows, columns = (
            slice(np.clip(math.floor(a), 0, n), np.clip(math.ceil(b), 0, n))
            for (a, b), n in zip((tops, lefts), maps.shape[1:], strict=True)
        )
        part = maps[(c * resolution + i) * resolution + j, rows, columns]
        out[c, i, j] = part.mean() if part.size else 0
    return out


def test_each_image_is_pooled_by_the_same_score_maps_side_by_side():
    torch.manual_seed(0)
    pooler = PositionSensitivePooler(6, 3, stride=4, resolution=3, num_score_maps=2)
    features = torch.randn(2, 3 * 6, 10, 12)
    boxes = [
        torch.tensor([[5.0, 3.0, 30.0, 29.0], [0, 0, 47, 39]]),
        torch.tensor([[9.0, 9, 14, 11]]),
    ]
    with torch.no_grad():
        pooled = pooler([features], [Boxes(b) for b in boxes])
    assert pooled.shape == (3, 3 * 2, 3, 3)
    assert pooler.output_shape == ShapeSpec(channels=6, height=3, width=3)
    weight = pooler.score_maps.weight[:, :, 0, 0].detach().numpy()
    regions = [(0, boxes[0][0]), (0, boxes[0][1]), (1, boxes[1][0])]
    for found, (n, box) in zip(pooled, regions, strict=True):
        for image in range(3):
            part = features[n, 6 * image : 6 * image + 6].numpy()
            maps = np.einsum("ce,ehw->chw", weight, part)
            expected = _pool(maps, box.tolist(), 3, 4)
            np.testing.assert_allclose(found[2 * image : 2 * image + 2], expected, atol=1e-5)


def test_regions_at_the_last_row_and_column_see_them():
    """torchvision's op alone leaves them out."""
    pooler = PositionSensitivePooler(1, 1, stride=8, resolution=2, num_score_maps=1)
    torch.nn.init.ones_(pooler.score_maps.weight)
    box = torch.tensor([[54.0, 54.0, 63.0, 63.0]])
    assert (pooler([torch.full((1, 1, 8, 8), 3.0)], [Boxes(box)]) == 3).all()


def test_no_region_and_half_precision():
    pooler = PositionSensitivePooler(4, 1, stride=8)
    assert pooler.score_maps.out_channels == 490
    features = [torch.randn(1, 4, 8, 8)]
    assert pooler(features, [Boxes(torch.zeros(0, 4))]).shape == (0, 10, 7, 7)
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
