import itertools

import lesion_d2  # noqa: F401, it makes detectron2 importable
from lesion_d2.layers import giou_loss
from lesion_d2.structures import (
    Boxes3D,
    pairwise_giou,
    pairwise_intersection,
    pairwise_iou,
)

import fvcore.nn
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from detectron2.structures import pairwise_iou as detectron2_iou
from detectron2.structures.boxes import pairwise_intersection as detectron2_intersection
from torchvision.ops import generalized_box_iou


def random_boxes(number, axes, seed, whole=False):
    """(number, 2 axes), some of them without area, many with common edges where whole."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(number, axes, generator=generator) * 12
    sides = torch.rand(number, axes, generator=generator) * 10
    sides[::7, 0] = 0
    boxes = torch.cat([low, low + sides], dim=1)
    return boxes.round() if whole else boxes


@pytest.mark.parametrize("whole", [True, False])
def test_2d_equals_detectron2_to_the_bit(whole):
    one, two = Boxes(random_boxes(40, 2, 0, whole)), Boxes(random_boxes(30, 2, 1, whole))
    assert torch.equal(pairwise_intersection(one, two), detectron2_intersection(one, two))
    assert torch.equal(pairwise_iou(one, two), detectron2_iou(one, two))


def test_giou_in_2d_is_that_of_torchvision_and_fvcore():
    one, two = random_boxes(30, 2, 0)[1:7], random_boxes(30, 2, 1)[1:7]
    expected = generalized_box_iou(one, two)
    torch.testing.assert_close(pairwise_giou(Boxes(one), Boxes(two)), expected)
    for reduction in ("none", "sum", "mean"):
        ours = giou_loss(one, two, reduction)
        assert torch.equal(ours, fvcore.nn.giou_loss(one, two, reduction))


def test_iou_of_whole_boxes_counts_voxels():
    one, two = random_boxes(12, 3, 2, whole=True), random_boxes(12, 3, 3, whole=True)

    def voxels(box):
        """The unit cells of a box, by their low corners."""
        axes = [range(int(low), int(high)) for low, high in zip(box[:3], box[3:], strict=True)]
        return set(itertools.product(*axes))

    expected = np.zeros((12, 12))
    for i, j in np.ndindex(12, 12):
        a, b = voxels(one[i]), voxels(two[j])
        expected[i, j] = len(a & b) / max(len(a | b), 1)
    found = pairwise_iou(Boxes3D(one), Boxes3D(two)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert 0 < (expected > 0).mean() < 1


def test_giou_in_3d_takes_off_the_unfilled_part_of_the_hull():
    one = Boxes3D(torch.tensor([[0.0, 0, 0, 2, 2, 2]]))
    two = Boxes3D(torch.tensor([[2.0, 0, 0, 4, 2, 4], [0, 0, 0, 2, 2, 2], [1, 1, 1, 3, 3, 3]]))
    # Apart: 8 + 16 of a hull of 32. The same. 1 of 15, in a hull of 27.
    expected = torch.tensor([[-8 / 32, 1.0, 1 / 15 - 12 / 27]])
    torch.testing.assert_close(pairwise_giou(one, two), expected)
    loss = giou_loss(one.tensor.expand(3, 6), two.tensor)
    torch.testing.assert_close(loss, 1 - expected[0])


def test_giou_of_points_is_a_number():
    points = Boxes3D(torch.tensor([[1.0, 2, 3, 1, 2, 3], [4, 2, 3, 4, 2, 3]]))
    assert pairwise_giou(points, points).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_giou_loss_pulls_boxes_that_are_apart_together():
    box = torch.tensor([[0.0, 0, 0, 2, 2, 2]], requires_grad=True)
    giou_loss(box, torch.tensor([[5.0, 0, 0, 7, 2, 2]]), "sum").backward()
    assert box.grad[0, 3] < 0  # a greater x2 makes the loss less
    assert torch.isfinite(box.grad).all()


def test_giou_loss_of_no_pairs_and_of_unknown_reductions():
    assert giou_loss(torch.zeros(0, 6), torch.zeros(0, 6), "mean") == 0
    with pytest.raises(ValueError, match="reduction: found 'median'"):
        giou_loss(torch.ones(1, 6), torch.ones(1, 6), "median")
