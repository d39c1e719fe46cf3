import lesion_d2
from lesion_d2.modeling.volumetric import AnchorGenerator3D, VolumeShape

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, build_anchor_generator


def test_anchors_by_hand():
    generator = AnchorGenerator3D(
        sizes=[[4.0, 8.0]], depths=[[1.0, 2.0]], aspect_ratios=[[0.25, 1.0]], strides=[(1, 4, 2)]
    )
    (anchors,) = generator([torch.zeros(1, 5, 2, 1, 2)])
    # In-plane 8 x 2 and 4 x 4 on a slice, 16 x 4 and 8 x 8 on two, around (x, y, z).
    expected = [
        [x - w / 2, y - h / 2, z - d / 2, x + w / 2, y + h / 2, z + d / 2]
        for z in (0, 1)
        for y in (0,)
        for x in (0, 2)
        for w, h, d in ((8, 2, 1), (4, 4, 1), (16, 4, 2), (8, 8, 2))
    ]
    assert anchors.tensor.tolist() == expected
    assert generator.num_anchors == generator.num_cell_anchors == [4]


def test_every_slice_has_the_anchors_of_detectron2():
    sizes, ratios = [[4.0, 5.0], [8.0, 10.0]], [[0.5, 1.0, 2.0]]
    generator = AnchorGenerator3D(
        sizes=sizes,
        depths=[[3.0, 1.0], [5.0, 7.0]],
        aspect_ratios=ratios,
        strides=[(1, 4, 4), (2, 8, 8)],
        offset=0.5,
    )
    flat = DefaultAnchorGenerator(sizes=sizes, aspect_ratios=ratios, strides=[4, 8], offset=0.5)
    features = [torch.zeros(1, 1, 3, 6, 5), torch.zeros(1, 1, 2, 3, 3)]
    expected = flat([feature[:, :, 0] for feature in features])
    for level, (found, plane) in enumerate(zip(generator(features), expected, strict=True)):
        slices = found.tensor.view(features[level].shape[2], -1, 6)
        for z, boxes in enumerate(slices):
            assert torch.equal(boxes[:, [0, 1, 3, 4]], plane.tensor)
            assert boxes[:, [2, 5]].mean(dim=1).unique().item() == (z + 0.5) * (1, 2)[level]


def test_config_gives_depths_and_strides():
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "AnchorGenerator3D"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[4], [8], [16], [32]]
    shapes = [VolumeShape(stride=4 * 2**i, strides=(2**i, 4 * 2**i, 4 * 2**i)) for i in range(4)]
    generator = build_anchor_generator(cfg, shapes)
    assert generator.box_dim == 6 and generator.num_anchors == [3] * 4
    (anchors, *_) = generator([torch.zeros(1, 1, 1, 1, 1)] * 4)
    assert (anchors.sides()[:, 2] == 1).all()
    for (depth, height, width), level in zip(
        [shape.strides for shape in shapes],
        generator([torch.zeros(1, 1, 2, 2, 2)] * 4),
        strict=True,
    ):
        centers = level.get_centers()[::3]  # x fastest, then y and z
        assert centers[1:5:2].tolist() == [[width, 0, 0], [width, height, 0]]
        assert centers[4].tolist() == [0, 0, depth]

    cfg.MODEL.VOLUMETRIC.ANCHOR_DEPTHS = [[1.0], [2.0, 3.0], [4.0], [8.0]]
    with pytest.raises(ValueError, match="ANCHOR_DEPTHS, level 1: found"):
        build_anchor_generator(cfg, shapes)


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ([], "found 0 levels, expected 1 for all or 2"),
        ([[1.0], [2.0], [4.0]], "found 3 levels, expected 1 for all or 2"),
        ([[1.0], [0.0]], r"level 1: found \[0.0\], expected depths above 0"),
        ([[-1.0]], r"level 0: found \[-1.0\], expected depths above 0"),
    ],
)
def test_depths_that_make_no_anchors_are_refused(depths, message):
    with pytest.raises(ValueError, match=f"ANCHOR_DEPTHS.*{message}"):
        AnchorGenerator3D(
            sizes=[[4.0], [8.0]],
            depths=depths,
            aspect_ratios=[[1.0]],
            strides=[(1, 4, 4), (2, 8, 8)],
        )
