import lesion_d2  # noqa: F401, it makes detectron2 importable
from lesion_d2.layers import roi_align_3d
from lesion_d2.modeling.volumetric import ROIPooler3D
from lesion_d2.structures import Boxes3D

import pytest
import torch

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
