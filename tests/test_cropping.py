from lesion_d2.cropping import put_back, shown_size

import torch
from detectron2.structures import Boxes, Instances

CROPPED = {"height": 40, "width": 50, "crop": (6, 3, 26, 33)}


def test_what_an_image_shows():
    assert shown_size({}, (12, 17)) == (12, 17)
    assert shown_size({"height": 40, "width": 50}, (12, 17)) == (40, 50)
    assert shown_size({"height": 40}, (12, 17)) == (40, 17)
    assert shown_size(CROPPED, (12, 17)) == (30, 20)


def test_boxes_move_and_masks_are_padded():
    masks = torch.rand(2, 30, 20) > 0.5
    found = Instances((30, 20), pred_boxes=Boxes(torch.tensor([[0.0, 1, 5, 7], [2.5, 3, 19, 29]])))
    found.pred_masks, found.scores = masks, torch.tensor([0.5, 0.25])
    placed = put_back(found, CROPPED)
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
    placed = put_back(nothing, CROPPED)
    assert placed.image_size == (40, 50) and placed.pred_masks.shape == (0, 40, 50)
    assert put_back(nothing, {"height": 40, "width": 50}) is nothing
