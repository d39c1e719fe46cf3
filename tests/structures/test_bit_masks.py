import lesion_d2  # noqa: F401, it makes detectron2 importable
from lesion_d2.layers import roi_align_3d
from lesion_d2.structures import BitMasks3D, Boxes3D, bit_masks

import pytest
import torch
from detectron2.structures import BitMasks, Instances


def random_masks(number=4):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(number, 5, 9, 8, generator=generator) > 0.93
    masks[1] = False
    return BitMasks3D(masks)


def test_boxes_surround_the_voxels():
    masks = random_masks()
    boxes = masks.get_bounding_boxes()
    assert type(boxes) is Boxes3D
    for mask, box in zip(masks, boxes, strict=True):
        z, y, x = torch.nonzero(mask, as_tuple=True)
        ends = (x, y, z)
        expected = [e.min() - 0.5 for e in ends if len(e)] + [e.max() + 0.5 for e in ends if len(e)]
        assert box.tolist() == (expected or [0.0] * 6)
    assert masks.nonempty().tolist() == [True, False, True, True]


def test_indexing_cat_and_instances_keep_the_class():
    masks = random_masks()
    for part in (masks[2], masks[2:3], masks[torch.tensor([2])]):
        assert type(part) is BitMasks3D and torch.equal(part.tensor, masks.tensor[2:3])
    instances = Instances((5, 9, 8), gt_masks=masks)
    both = Instances.cat([instances, instances])
    assert type(both.gt_masks) is BitMasks3D and len(both) == 8
    assert type(masks.to("cpu")) is BitMasks3D and masks.image_size == (5, 9, 8)
    with pytest.raises(ValueError, match=r"masks: found shape \(5, 9, 8\), expected"):
        BitMasks3D(masks.tensor[0])


def test_whole_boxes_crop_their_voxels():
    masks = random_masks()
    boxes = torch.tensor([[1.5, 2.5, 0.5, 5.5, 7.5, 3.5]]).repeat(4, 1)
    cropped = masks.crop_and_resize(boxes, (3, 5, 4))
    assert torch.equal(cropped, masks.tensor[:, 1:4, 3:8, 2:6]) and cropped.any()


def test_a_bin_of_which_half_is_mask_is_set():
    masks = torch.zeros(3, 2, 2, 2, dtype=torch.bool)
    masks[0, :, :, 1] = masks[1, 0] = masks[2, 0, 1] = True  # four, four and two of eight
    boxes = torch.tensor([[-0.5, -0.5, -0.5, 1.5, 1.5, 1.5]]).repeat(3, 1)
    found = BitMasks3D(masks).crop_and_resize(boxes, (1, 1, 1))
    assert found.flatten().tolist() == [True, True, False]
    assert not BitMasks3D(masks[2:]).crop_and_resize(boxes[2:], (1, 1, 2)).any()


def test_resizing_is_roi_align_of_each_mask(monkeypatch):
    monkeypatch.setattr(bit_masks, "_VALUES", 7 * 5 * 9 * 8)  # seven masks at a time
    masks = random_masks(40)
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(40, 3, generator=generator) * 5 - 1
    boxes = torch.cat([low, low + 1 + torch.rand(40, 3, generator=generator) * 6], dim=1)
    rois = torch.cat([torch.arange(40.0)[:, None], boxes], dim=1)
    means = roi_align_3d(masks.tensor[:, None].float(), rois, (2, 3, 3), (1.0, 1.0, 1.0))[:, 0]
    clear = (means - 0.5).abs() > 1e-4
    found = masks.crop_and_resize(boxes, (2, 3, 3))
    assert (
        torch.equal(found[clear], (means >= 0.5)[clear])
        and found.any()
        and clear.float().mean() > 0.9
    )
    assert masks[:0].crop_and_resize(torch.zeros(0, 6), (2, 3, 3)).shape == (0, 2, 3, 3)


def test_constant_along_z_it_is_detectron2s():
    plane = random_masks(30).tensor[:, 0]
    masks = BitMasks3D(plane[:, None].expand(-1, 4, -1, -1))
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(30, 2, generator=generator) * 4
    high = low + 1 + torch.rand(30, 2, generator=generator) * 4
    z = torch.tensor([[-0.5], [3.5]]).expand(2, 30).unsqueeze(2)
    found = masks.crop_and_resize(torch.cat([low, z[0], high, z[1]], dim=1), (2, 4, 4))
    # Detectron2 counts from the outer edge of the first pixel.
    expected = BitMasks(plane).crop_and_resize(torch.cat([low, high], dim=1) + 0.5, 4)
    assert torch.equal(found, expected[:, None].expand(-1, 2, -1, -1)) and found.any()
