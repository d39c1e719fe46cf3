from lesion_d2.structures.cropping import (
    crop_box,
    crop_size,
    image_to_slice,
    paste_to_slice,
    slice_to_image,
)

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

CROPPED = {"height": 40, "width": 50, "crop": (6, 3, 26, 33)}


def test_what_an_image_shows():
    assert crop_size({}, (12, 17)) == (12, 17)
    assert crop_size({"height": 40, "width": 50}, (12, 17)) == (40, 50)
    assert crop_size({"height": 40}, (12, 17)) == (40, 17)
    assert crop_size(CROPPED, (12, 17)) == (30, 20)
    assert crop_box({"height": 40, "width": 50}, (12, 17)) == (0, 0, 50, 40)
    assert crop_box(CROPPED, (12, 17)) == (6, 3, 26, 33)


@pytest.mark.parametrize("extent", [(10, 4, 58, 36), (0, 0, 60, 40)])
def test_points_move_as_the_images_do(extent):
    x0, y0, x1, y1 = extent
    points = np.random.default_rng(0).uniform(0, 60, (20, 2))
    cut = T.CropTransform(x0, y0, x1 - x0, y1 - y0).apply_coords(points + 0.5)
    expected = T.ResizeTransform(y1 - y0, x1 - x0, 64, 90).apply_coords(cut) - 0.5
    found = slice_to_image(points, extent, (64, 90))
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(image_to_slice(found, extent, (64, 90)), points)
    assert slice_to_image(np.zeros((0, 2)), extent, (64, 90)).shape == (0, 2)


def test_boxes_move_and_masks_are_padded():
    masks = torch.rand(2, 30, 20) > 0.5
    found = Instances((30, 20), pred_boxes=Boxes(torch.tensor([[0.0, 1, 5, 7], [2.5, 3, 19, 29]])))
    found.pred_masks, found.scores = masks, torch.tensor([0.5, 0.25])
    placed = paste_to_slice(found, CROPPED)
    assert placed.image_size == (40, 50)
    assert placed.pred_boxes.tensor.tolist() == [[6, 4, 11, 10], [8.5, 6, 25, 32]]
    assert torch.equal(placed.scores, found.scores)
    assert torch.equal(placed.pred_masks[:, 3:33, 6:26], masks)
    assert placed.pred_masks.sum() == masks.sum() and placed.pred_masks.dtype == torch.bool
    # What it was made from is left as it was.
    assert found.pred_boxes.tensor[0].tolist() == [0, 1, 5, 7] and found.image_size == (30, 20)


def test_nothing_found_and_nothing_cut():
    nothing = Instances((30, 20), pred_boxes=Boxes(torch.zeros(0, 4)))
    nothing.pred_masks = torch.zeros(0, 30, 20, dtype=torch.bool)
    placed = paste_to_slice(nothing, CROPPED)
    assert placed.image_size == (40, 50) and placed.pred_masks.shape == (0, 40, 50)
    assert paste_to_slice(nothing, {"height": 40, "width": 50}) is nothing
