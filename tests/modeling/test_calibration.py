from lesion_d2.modeling.calibration import boxes_around_masks, calibrate_scores, mask_agreement

import pytest
import torch


def _slow(boxes, classes, masks):
    """The extent of the mask pixels in each enlarged box, pixel by pixel."""
    extents = []
    for (x1, y1, x2, y2), c in zip(boxes.tolist(), classes.tolist(), strict=True):
        more_x, more_y = (x2 - x1) / 4, (y2 - y1) / 4
        inside = [
            (x, y)
            for y, x in torch.nonzero(masks[c]).tolist()
            if x1 - more_x <= x <= x2 + more_x and y1 - more_y <= y <= y2 + more_y
        ]
        xs, ys = [x for x, _ in inside], [y for _, y in inside]
        extents.append(
            [min(xs) - 0.5, min(ys) - 0.5, max(xs) + 0.5, max(ys) + 0.5] if inside else None
        )
    return extents


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3])
def test_extents_against_a_loop_over_pixels(share):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(2, 23, 31, generator=generator) < share
    corner = torch.rand(60, 2, generator=generator) * torch.tensor([40.0, 30.0]) - 6
    size = torch.rand(60, 2, generator=generator) * 20
    size[:5] = 0
    boxes = torch.cat([corner, corner + size], dim=1)
    classes = torch.randint(2, (60,), generator=generator)
    around, found = boxes_around_masks(boxes, classes, masks)
    expected = _slow(boxes, classes, masks)
    assert found.tolist() == [e is not None for e in expected]
    for box, extent in zip(around, expected, strict=True):
        if extent is not None:
            assert box.tolist() == extent


def _hand_made():
    """A mask of 8 x 6 pixels; boxes: around it, the same with a margin, half aside, elsewhere."""
    masks = torch.zeros(2, 40, 40, dtype=torch.bool)
    masks[1, 10:16, 20:28] = True
    exact = [19.5, 9.5, 27.5, 15.5]
    wide = [17.5, 7.5, 29.5, 17.5]
    aside = [23.5, 9.5, 31.5, 15.5]
    boxes = torch.tensor([exact, wide, aside, [2.0, 2.0, 8.0, 8.0], exact])
    return boxes, torch.tensor([1, 1, 1, 1, 0]), masks


def test_agreement_of_a_hand_made_case():
    boxes, classes, masks = _hand_made()
    # ``aside`` is 8 wide and sees 2 more pixels on each side: columns 22 to 27 of the mask.
    aside = 4 * 6 / (8 * 6 + 6 * 6 - 4 * 6)
    expected = torch.tensor([1, 48 / 120, aside, 0, 0])
    torch.testing.assert_close(mask_agreement(boxes, classes, masks), expected)
    with_margin = mask_agreement(boxes, classes, masks, margin=2.0)
    torch.testing.assert_close(with_margin[:2], torch.tensor([48 / 120, 1.0]))
    assert with_margin[3:].tolist() == [0, 0]


def test_what_lies_outside_the_image_does_not_count():
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[0, :4, 24:] = True
    boxes = torch.tensor([[23.5, -9.0, 36.0, 3.5], [21.5, -6.0, 40.0, 5.5]])
    classes = torch.zeros(2, dtype=torch.int64)
    assert mask_agreement(boxes, classes, masks)[0] == 1
    assert mask_agreement(boxes, classes, masks, margin=2.0)[1] == 1


@pytest.mark.parametrize(
    ("strength", "factors"),
    [(0.0, [1, 1, 1, 1]), (0.5, [1, 0.7, 0.5, 0.75]), (1.0, [1, 0.4, 0, 0.5])],
)
def test_scores_at_strengths(strength, factors):
    scores = torch.tensor([0.9, 0.8, 0.6, 0.3])
    agreement = torch.tensor([1.0, 0.4, 0.0, 0.5])
    expected = scores * torch.tensor(factors)
    torch.testing.assert_close(calibrate_scores(scores, agreement, strength), expected)


def test_no_boxes_have_no_agreement():
    none = torch.zeros(0, 4)
    agreement = mask_agreement(none, torch.zeros(0).long(), torch.ones(1, 5, 5, dtype=torch.bool))
    assert agreement.shape == (0,)
