import lesion_d2  # noqa: F401, makes detectron2 importable
from lesion_d2.modeling.box_losses import (
    box_regression_loss,
    check_box_loss,
    matched_box_loss,
)
from lesion_d2.modeling.volumetric import Box2BoxTransform3D
from lesion_d2.structures import Boxes3D

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.structures import Boxes


def _boxes(number, axes, generator):
    corner = 30 * torch.rand(number, axes, generator=generator)
    return torch.cat([corner, corner + 2 + 9 * torch.rand(number, axes, generator=generator)], 1)


def _inputs(axes):
    """Anchors of two levels, deltas and boxes of two images, and which anchors are positive."""
    generator = torch.Generator().manual_seed(axes)
    kind = Boxes if axes == 2 else Boxes3D
    anchors = [kind(_boxes(number, axes, generator)) for number in (12, 5)]
    deltas = [0.3 * torch.randn(2, n, 2 * axes, generator=generator) for n in (12, 5)]
    boxes = [_boxes(17, axes, generator) for _ in range(2)]
    positive = torch.rand(2, 17, generator=generator) > 0.6
    return anchors, [d.requires_grad_() for d in deltas], boxes, positive


@pytest.mark.parametrize("name", ["smooth_l1", "giou", "diou", "ciou"])
def test_on_slices_it_is_detectron2s_to_the_bit(name):
    anchors, deltas, boxes, positive = _inputs(2)
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    options = {"box_reg_loss_type": name, "smooth_l1_beta": 0.7}
    found = box_regression_loss(anchors, transform, deltas, boxes, positive, **options)
    expected = _dense_box_regression_loss(anchors, transform, deltas, boxes, positive, **options)
    assert found.equal(expected)
    for a, b in zip(*(torch.autograd.grad(x, deltas) for x in (found, expected)), strict=True):
        assert a.equal(b)


def test_in_volumes_against_a_loop():
    anchors, deltas, boxes, positive = _inputs(3)
    weights, beta = (10.0, 9.0, 8.0, 5.0, 4.0, 3.0), 0.7
    found = box_regression_loss(
        anchors,
        Box2BoxTransform3D(weights),
        deltas,
        boxes,
        positive,
        box_reg_loss_type="smooth_l1",
        smooth_l1_beta=beta,
    )
    all_anchors, all_deltas = torch.cat([a.tensor for a in anchors]), torch.cat(deltas, dim=1)
    expected = 0.0
    for i, r in positive.nonzero().tolist():
        for axis in range(3):
            low, high = all_anchors[r, axis].item(), all_anchors[r, axis + 3].item()
            to_low, to_high = boxes[i][r, axis].item(), boxes[i][r, axis + 3].item()
            shift = ((to_low + to_high) - (low + high)) / 2 / (high - low) * weights[axis]
            ratio = torch.tensor((to_high - to_low) / (high - low)).log() * weights[axis + 3]
            for wanted, column in ((shift, axis), (ratio.item(), axis + 3)):
                error = abs(all_deltas[i, r, column].item() - wanted)
                expected += error - beta / 2 if error >= beta else error**2 / beta / 2
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["smooth_l1", "giou"])
def test_perfect_deltas_cost_nothing_and_neither_does_an_image_without_a_lesion(name):
    anchors, _, boxes, positive = _inputs(3)
    transform = Box2BoxTransform3D((10.0, 10.0, 10.0, 5.0, 5.0, 5.0))
    all_anchors = torch.cat([a.tensor for a in anchors])
    perfect = torch.stack([transform.get_deltas(all_anchors, b) for b in boxes])
    options = {"box_reg_loss_type": name, "smooth_l1_beta": 1.0}
    args = (anchors, transform, [perfect[:, :12], perfect[:, 12:]], boxes)
    loss = box_regression_loss(*args, positive, **options)
    assert abs(loss.item()) < 1e-4 * positive.sum()
    assert box_regression_loss(*args, torch.zeros_like(positive), **options).item() == 0


@pytest.mark.parametrize(("name", "box_dim"), [("diou", 6), ("l2", 4)])
def test_other_losses_are_refused(name, box_dim):
    with pytest.raises(ValueError, match=f"BBOX_REG_LOSS_TYPE: found '{name}', expected one of"):
        check_box_loss(name, box_dim)


@pytest.mark.parametrize("name", ["smooth_l1", "giou", "diou", "ciou"])
@pytest.mark.parametrize("far_off", [-20.0, float("inf")])
def test_rows_that_do_not_count_have_no_gradient_whatever_is_predicted(name, far_off):
    """A box of no height has no ratio of sides: 0 times its gradient would be no number."""
    anchors = torch.tensor([[300.0, 300.0, 316.0, 316.0]]).repeat(2, 1)
    deltas = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, far_off, far_off]]).requires_grad_()
    loss = matched_box_loss(
        Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        anchors,
        deltas,
        anchors + 2,
        box_reg_loss_type=name,
        smooth_l1_beta=0.1,
        counts=torch.tensor([True, False]),
    )
    [gradient] = torch.autograd.grad(loss, deltas)
    assert loss > 0 and gradient[0].any() and (gradient[1] == 0).all()
