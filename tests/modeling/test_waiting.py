"""What a GPU computes without being waited for is what the CPU computes."""

import functools

from lesion_d2.modeling.box_losses import box_regression_loss
from lesion_d2.modeling.losses import anchor_focal_loss, anchor_sigmoid_focal_loss
from lesion_d2.modeling.waiting import HostCopy, indices_of, rows_that_count, to_host, upload

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from two_devices import TwoDevices, on_gpu


def _here_and_there(loss, *inputs):
    """A loss and its gradient of the first input, on a CPU and on the second device."""
    results = []
    for is_there in (False, True):
        first = inputs[0].detach().clone().requires_grad_()
        others = [value.clone() for value in inputs[1:]]
        with TwoDevices() as devices:
            if is_there:
                devices.place(first, *others)
            value = loss(first, *others)
            assert on_gpu(value) == is_there and not devices.own_waits()
        value.backward()
        results.append((value.detach(), first.grad))
    return results


@pytest.mark.parametrize("loss", [anchor_focal_loss, anchor_sigmoid_focal_loss])
def test_the_focal_losses_leave_out_what_does_not_count(loss):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 30, 3, generator=generator)
    num_classes = 2 if loss is anchor_focal_loss else 3
    labels = torch.randint(-2, num_classes + 1, (2, 30), generator=generator)
    (here, gradient), (there, other) = _here_and_there(loss, logits, labels)
    torch.testing.assert_close(here, there)
    torch.testing.assert_close(gradient, other)
    assert (gradient[labels < 0] == 0).all() and (gradient[labels >= 0] != 0).all()


@pytest.mark.parametrize("kind", ["smooth_l1", "giou"])
@pytest.mark.parametrize("at_most", [None, 5, 9])
def test_the_box_losses_of_positive_anchors(kind, at_most):
    generator = torch.Generator().manual_seed(1)
    corners = 20 * torch.rand(12, 2, generator=generator)
    anchors = torch.cat([corners, corners + 8], dim=1)
    targets = anchors[None] + torch.rand(2, 12, 4, generator=generator)
    targets[0, 3:] = 0.0  # boxes of anchors that nothing is matched with
    is_positive = torch.zeros(2, 12, dtype=torch.bool)
    is_positive[0, 1] = is_positive[1, [0, 4, 5, 11]] = True
    deltas = torch.randn(2, 12, 4, generator=generator)

    def loss(deltas, anchors, targets, is_positive):
        transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
        transform.get_deltas = functools.partial(_deltas, transform)
        return box_regression_loss(
            *([Boxes(anchors)], transform, [deltas], list(targets), is_positive),
            box_reg_loss_type=kind,
            smooth_l1_beta=0.1,
            at_most=at_most,
        )

    (here, gradient), (there, other) = _here_and_there(loss, deltas, anchors, targets, is_positive)
    torch.testing.assert_close(here, there)
    torch.testing.assert_close(gradient, other)
    assert here > 0 and (gradient[~is_positive] == 0).all()


def _deltas(transform, sources, targets):
    """As Detectron2's, without its assertion."""
    sides, target_sides = (x[:, 2:] - x[:, :2] for x in (sources, targets))
    shifts = (targets[:, :2] + target_sides / 2 - sources[:, :2] - sides / 2) / sides
    return torch.cat([shifts, (target_sides / sides).log()], dim=1)


def test_rows_that_count_are_known_by_their_mask():
    counts = torch.tensor([[True, False, True], [False, True, False]])
    values = torch.arange(6.0).view(2, 3)
    assert rows_that_count(counts, values)[1][0].tolist() == [0, 2, 4]
    with TwoDevices() as devices:
        devices.place(counts, values)
        mask, [rows] = rows_that_count(counts, values, at_most=4)
        [where] = indices_of(counts[0], 2)
        assert not devices.own_waits()
        assert rows[mask].tolist() == [0, 2, 4] and where.tolist() == [0, 2]


def test_a_gpu_is_waited_for_once_and_gives_back_what_it_had():
    boxes, classes = torch.rand(3, 4), torch.tensor([2, 0, 1])
    scores, host = torch.rand(3, dtype=torch.float16), torch.rand(2)
    with TwoDevices() as devices:
        devices.place(boxes, classes, scores)
        found = to_host(boxes, host, classes, scores)
        assert not any(map(on_gpu, found)) and devices.waits.total() == 1
        for one, other in zip(found, (boxes, host, classes, scores), strict=True):
            assert one.dtype == other.dtype and one.tolist() == other.tolist()
        assert to_host(host)[0] is host
        instances = Instances((4, 4), pred_boxes=Boxes(found[0]), scores=found[3])
        devices.waits.clear()
        there = upload(instances, torch.device("cuda"))
        assert on_gpu(there.scores) and on_gpu(there.pred_boxes.tensor) and not devices.waits
        assert len(there) == 3 and not devices.mixed


def test_a_copy_has_arrived_once_something_was_waited_for():
    with TwoDevices() as devices:
        copy = HostCopy(torch.arange(3, device="cuda"))
        assert not copy.has_arrived()
        torch.zeros(1, device="cuda").item()
        assert copy.has_arrived() and copy.read().tolist() == [0, 1, 2]
        assert devices.waits.total() == 1
        assert HostCopy(torch.ones(1)).has_arrived()
