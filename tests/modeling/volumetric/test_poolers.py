import math

import lesion_d2  # noqa: F401, it makes detectron2 importable
from lesion_d2.layers import roi_align_3d
from lesion_d2.modeling.volumetric import ROIPooler3D
from lesion_d2.structures import Boxes3D

import pytest
import torch
from made_up_patches import tiny_model

STRIDES = [(1, 4, 4), (2, 8, 8), (4, 16, 16)]
# Sides in-plane of 8, 16 and 40, as deep as each other; the first volume has two.
BOXES = [
    Boxes3D(torch.tensor([[20.0, 20, 2, 60, 60, 6], [8.0, 8, 2, 16, 16, 6]])),
    Boxes3D(torch.tensor([[10.0, 10, 2, 42, 18, 6]])),
]


def pyramid():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, 8 // z, 64 // y, 64 // x, generator=generator) for z, y, x in STRIDES]


def test_each_region_comes_from_the_level_of_its_sides_in_plane():
    pooler = ROIPooler3D((3, 7, 7), STRIDES, 2, canonical_box_size=16, canonical_level=3)
    features = pyramid()
    found = pooler(features, BOXES)
    rois = torch.cat([torch.tensor([[0.0], [0], [1]]), Boxes3D.cat(BOXES).tensor], dim=1)
    for i, level in enumerate((2, 0, 1)):
        scale = tuple(1 / stride for stride in STRIDES[level])
        expected = roi_align_3d(features[level], rois[i : i + 1], (3, 7, 7), scale, 2)
        torch.testing.assert_close(found[i : i + 1], expected)


def test_empty_volumes_and_one_level():
    pooler = ROIPooler3D((3, 7, 7), STRIDES, 2)
    none = Boxes3D(torch.zeros(0, 6))
    assert pooler(pyramid(), [none, none]).shape == (0, 3, 3, 7, 7)
    assert pooler(pyramid(), [BOXES[0], none]).shape == (2, 3, 3, 7, 7)
    alone = ROIPooler3D((3, 7, 7), STRIDES[:1], 2)
    torch.testing.assert_close(alone(pyramid()[:1], BOXES), pooler(pyramid(), BOXES))


def test_strides_that_do_not_double_are_refused():
    with pytest.raises(ValueError, match="for level 3, expected 8 in-plane"):
        ROIPooler3D((3, 7, 7), [(1, 4, 4), (2, 16, 16)])


def test_the_canonical_size_may_be_that_of_jaegers_patches():
    """Their code: round(4 + log2(side / patch)), 0 for P2, here of a patch of 128."""
    strides = [(1, 4, 4), (2, 8, 8), (4, 16, 16), (8, 32, 32)]
    pooler = ROIPooler3D((3, 7, 7), strides, canonical_box_size=128 * 2**-2.5)
    sides = [3, 8, 11, 12, 20, 22, 23, 40, 45, 46, 90, 127]
    regions = Boxes3D(torch.tensor([[0.0, 0, 0, 2 * side, side / 2, 9] for side in sides]))
    expected = [min(max(round(4 + math.log2(side / 128)), 0), 3) for side in sides]
    assert pooler.assign_levels([regions]).tolist() == expected
    assert set(expected) == {0, 1, 2, 3}
    of_detectron2 = ROIPooler3D((3, 7, 7), strides).assign_levels([regions])
    assert of_detectron2.tolist() == [1 if side >= 112 else 0 for side in sides]


def test_the_config_has_the_canonical_size_of_both_heads():
    options = ("MODEL.MASK_ON", True, "MODEL.VOLUMETRIC.CANONICAL_SIZE")
    heads = tiny_model("LesionRCNN3D", *options, 22.6).roi_heads
    assert heads.box_pooler.canonical_box_size == heads.mask_pooler.canonical_box_size == 22.6
    with pytest.raises(ValueError, match=r"CANONICAL_SIZE: found 0.0, expected voxels above 0"):
        tiny_model("LesionRCNN3D", *options, 0.0)
