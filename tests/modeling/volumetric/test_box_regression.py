import math

import lesion_d2  # noqa: F401, it makes detectron2 importable
from lesion_d2.modeling.volumetric import Box2BoxTransform3D

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform

WEIGHTS = (10.0, 10.0, 10.0, 5.0, 5.0, 5.0)


def random_boxes(number, seed):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(number, 3, generator=generator) * 50
    return torch.cat([low, low + 1 + torch.rand(number, 3, generator=generator) * 30], dim=1)


def test_deltas_by_hand():
    source = torch.tensor([[0.0, 0, 0, 10, 20, 4]])
    target = torch.tensor([[5.0, 0, 1, 15, 40, 3]])
    # Centers (5, 10, 2) and (10, 20, 2); sides 10, 20, 4 and 10, 40, 2.
    expected = [[5.0, 5.0, 0.0, 0.0, 5 * math.log(2), 5 * math.log(0.5)]]
    found = Box2BoxTransform3D(WEIGHTS).get_deltas(source, target)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_two_of_the_axes_are_detectron2s_transform():
    source, target = random_boxes(20, 0), random_boxes(20, 1)
    flat = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    corners = [0, 1, 3, 4]  # of x and y, in boxes and in deltas
    expected = flat.get_deltas(source[:, corners], target[:, corners])
    found = Box2BoxTransform3D(WEIGHTS).get_deltas(source, target)
    torch.testing.assert_close(found[:, corners], expected)
    expected = flat.apply_deltas(expected, source[:, corners])
    moved = Box2BoxTransform3D(WEIGHTS).apply_deltas(found, source)
    torch.testing.assert_close(moved[:, corners], expected)


def test_round_trip_of_several_classes():
    transform = Box2BoxTransform3D(WEIGHTS)
    source, targets = random_boxes(20, 0), [random_boxes(20, seed) for seed in (1, 2)]
    deltas = torch.cat([transform.get_deltas(source, target) for target in targets], dim=1)
    found = transform.apply_deltas(deltas, source)
    torch.testing.assert_close(found, torch.cat(targets, dim=1), rtol=1e-5, atol=1e-4)
    assert transform.apply_deltas(torch.zeros(0, 6), torch.zeros(0, 6)).shape == (0, 6)


def test_sides_do_not_grow_without_bound():
    box = torch.tensor([[0.0, 0, 0, 16, 16, 16]])
    moved = Box2BoxTransform3D(WEIGHTS).apply_deltas(torch.full((1, 6), 1e6), box)
    torch.testing.assert_close(
        moved[:, 3:] - moved[:, :3], torch.full((1, 3), 1000.0), rtol=1e-3, atol=0.1
    )


def test_deltas_of_half_precision_give_boxes_of_single_precision():
    box = torch.tensor([[1000.3, 500.1, 200.7, 1010.4, 520.6, 203.2]])
    deltas = torch.tensor([[0.11, -0.07, 0.3, 0.2, 0.1, -0.4]]).half()
    transform = Box2BoxTransform3D(WEIGHTS)
    found = transform.apply_deltas(deltas, box)
    assert found.dtype == torch.float32
    assert torch.equal(found, transform.apply_deltas(deltas.float(), box))
    assert (found - box).abs().max() < 1  # float16 knows 1000 to a half


def test_four_weights_are_refused():
    with pytest.raises(ValueError, match="expected six for dx, dy, dz, dw, dh, dd"):
        Box2BoxTransform3D((1.0, 1.0, 1.0, 1.0))
