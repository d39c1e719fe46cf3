"""Ensembles of models that see a part of the slice."""

from lesion_d2.inference import Ensemble

import pytest
import torch
from seeing_detector import Seeing, make_image, make_inputs
from whole_masks import whole_masks

RECTANGLES = [(6, 6, 12, 15), (30, 3, 48, 51), (78, 54, 90, 60)]


@pytest.mark.parametrize("scale", [1, 2, 2 / 3])
@pytest.mark.parametrize("tile_size", [0, 36])
@pytest.mark.parametrize("corner, border", [((0, 0), 0), ((7, 4), 0), ((5, 0), 9)])
def test_every_view_of_a_crop_comes_back_to_the_whole_slice(scale, tile_size, corner, border):
    """As the crop alone would, at the crop's place."""
    image, (left, top) = make_image((60, 90), RECTANGLES), corner
    alone = make_inputs(image, scale)
    height, width = (round(scale * side) for side in (60, 90))
    size = {"height": top + height + border, "width": left + width + border}
    cut = {"image": image, **size, "crop": (left, top, left + width, top + height)}
    model = Seeing()
    ensemble = Ensemble([model, Seeing()], tile_size=tile_size)
    expected, found = ensemble.views(alone), ensemble.views(cut)
    assert len(found.masks) > 20 and found.instances.image_size == tuple(size.values())

    offset = torch.tensor([left, top, left, top])
    boxes = expected.instances.pred_boxes.tensor + offset
    torch.testing.assert_close(found.instances.pred_boxes.tensor, boxes, atol=1e-4, rtol=0)

    masks = whole_masks(found)
    assert torch.equal(masks[:, top:, left:][:, :height, :width], whole_masks(expected))
    assert masks.sum() == whole_masks(expected).sum() > 0
    for name in ("view_ids", "num_views", "center_weights"):
        assert torch.equal(getattr(found, name), getattr(expected, name))

    half = len(model.seen) // 2  # tiles and mirrors are those of the image
    for seen, again in zip(model.seen[:half], model.seen[half:], strict=True):
        assert torch.equal(seen, again)

    [expected], [found] = ensemble([alone]), ensemble([cut])
    expected, found = expected["instances"], found["instances"]
    torch.testing.assert_close(
        found.pred_boxes.tensor, expected.pred_boxes.tensor + offset, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(found.scores, expected.scores)
    assert found.pred_masks.shape[1:] == tuple(size.values())
    assert torch.equal(
        found.pred_masks[:, top : top + height, left : left + width], expected.pred_masks
    )
