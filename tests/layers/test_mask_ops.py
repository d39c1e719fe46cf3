import math

from lesion_d2.layers import paste_masks_3d

import pytest
import torch
from detectron2.layers import paste_masks_in_image


def _cell(mask, z: int, y: int, x: int) -> float:
    inside = all(0 <= i < n for i, n in zip((z, y, x), mask.shape, strict=True))
    return mask[z, y, x].item() if inside else 0.0


def _at(mask, box: list[float], voxel: tuple[int, int, int]) -> float:
    """The mask at a voxel's center, between the centers of its eight cells; 0 outside the box."""
    positions = []
    for axis, cells in enumerate(mask.shape):
        low, high = box[2 - axis], box[5 - axis]
        if not low <= voxel[axis] <= high:
            return 0.0
        positions.append((voxel[axis] - low) / (high - low) * cells - 0.5)
    value = 0.0
    for corner in range(8):
        share, cell = 1.0, []
        for axis, position in enumerate(positions):
            below = math.floor(position)
            upper = corner >> axis & 1
            share *= position - below if upper else 1 - (position - below)
            cell.append(below + upper)
        value += share * _cell(mask, *cell)
    return value


# Inside, across a border, of one slice, outside, and between two voxels.
_BOXES = [
    [1.5, 2.2, 0.5, 8.5, 6.1, 4.5],
    [-3.0, 4.0, -1.0, 4.0, 12.0, 2.0],
    [2.0, 1.0, 2.9, 6.0, 5.0, 3.1],
    [20.0, 1.0, 1.0, 26.0, 5.0, 3.0],
    [2.1, 1.0, 1.0, 2.4, 5.0, 3.0],
]


def test_masks_are_pasted_as_voxel_by_voxel():
    masks = torch.rand(5, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    found = paste_masks_3d(masks, torch.tensor(_BOXES), (5, 9, 10), threshold=0.4)
    for mask, box, volume in zip(masks, _BOXES, found, strict=True):
        values = [
            [[_at(mask, box, (z, y, x)) for x in range(10)] for y in range(9)] for z in range(5)
        ]
        assert torch.equal(volume, torch.tensor(values) >= 0.4)
    assert found[:3].flatten(1).any(dim=1).all() and not found[3:].any()


def test_on_each_slice_they_are_detectron2s():
    """Its pixel centers are at halves, and it looks a pixel beyond the box."""
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(6, 8, 8, generator=generator)
    low = 10 * torch.rand(6, 2, generator=generator)
    boxes = torch.cat([low, low + 6 + 4 * torch.rand(6, 2, generator=generator)], dim=1)
    flat = paste_masks_in_image(masks, boxes + 0.5, (22, 24), threshold=0.5)
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    low, high = torch.full_like(x1, 0.5), torch.full_like(x1, 2.5)
    thick = torch.stack([x1, y1, low, x2, y2, high], dim=1)
    found = paste_masks_3d(masks[:, None].expand(-1, 6, -1, -1), thick, (4, 22, 24))
    assert found[:, 1].equal(flat) and found[:, 2].equal(flat) and flat.any()
    assert not found[:, 0].any() and not found[:, 3].any()


def test_a_full_mask_is_its_box():
    [found] = paste_masks_3d(
        torch.ones(1, 10, 28, 28), torch.tensor([[2.5, 3.5, 0.5, 8.5, 9.5, 4.5]]), (6, 12, 16)
    )
    expected = torch.zeros(6, 12, 16, dtype=torch.bool)
    expected[1:5, 4:10, 3:9] = True
    assert torch.equal(found, expected)


@pytest.mark.parametrize("number", [0, 2])
def test_no_masks_and_a_volume_of_one_slice(number):
    boxes = torch.tensor([[2.5, 3.5, -0.5, 8.5, 9.5, 0.5]]).repeat(number, 1)
    found = paste_masks_3d(torch.ones(number, 10, 8, 8), boxes, (1, 12, 16))
    assert found.shape == (number, 1, 12, 16) and found.sum() == 36 * number


def test_mixed_precision_changes_nothing():
    masks = torch.rand(5, 4, 6, 6, generator=torch.Generator().manual_seed(2))
    expected = paste_masks_3d(masks, torch.tensor(_BOXES), (5, 9, 10))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(paste_masks_3d(masks, torch.tensor(_BOXES), (5, 9, 10)), expected)
