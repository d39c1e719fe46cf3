from lesion_d2.modeling.losses import IGNORE
from lesion_d2.modeling.meta_arch.retina_unet import masks_in_boxes
from lesion_d2.modeling.segmentation import (
    resize_probabilities,
    semantic_labels,
)
from lesion_d2.structures import ImageList3D

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, ImageList, Instances

# Depth, height and width.
_SIZES = [(2, 4, 5), (3, 5, 4)]


class _Masks:
    """What labels need of BitMasks."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __len__(self):
        return len(self.tensor)


def _instances(size, classes, masks):
    instances = Instances(size)
    instances.gt_classes = torch.tensor(classes)
    instances.gt_masks = _Masks(masks)
    return instances


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_labels_of_volumes_voxel_by_voxel(class_agnostic):
    generator = torch.Generator().manual_seed(0)
    images = ImageList3D.from_tensors([torch.zeros(1, *s) for s in _SIZES], (2, 4, 4))
    masks = [torch.rand(3, *s, generator=generator) < 0.3 for s in _SIZES]
    classes = [[1, -1, 0], [0, 2, 1]]
    labels = semantic_labels(
        [_instances(*each) for each in zip(_SIZES, classes, masks, strict=True)],
        images,
        class_agnostic=class_agnostic,
    )

    assert labels.shape == (2, 4, 8, 8) and labels.dtype == torch.int64
    for i, z, y, x in torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist():
        depth, height, width = _SIZES[i]
        expected = 0
        if z >= depth or y >= height or x >= width:
            expected = IGNORE
        else:
            for mask, category in zip(masks[i], classes[i], strict=True):
                if mask[z, y, x]:
                    expected = (1 if class_agnostic else category + 1) if category >= 0 else IGNORE
        assert labels[i, z, y, x] == expected


def test_probabilities_lose_the_padding_and_are_resized():
    probabilities = torch.rand(2, 4, 8, 8)
    cut = resize_probabilities(probabilities, (3, 5, 6), (3, 5, 6))
    assert torch.equal(cut, probabilities[:, :3, :5, :6])
    larger = resize_probabilities(probabilities, (3, 5, 6), (3, 10, 12))
    for z in range(3):  # slices stay: in-plane it is the bilinear one of slices
        flat = resize_probabilities(probabilities[:, z], (5, 6), (10, 12))
        torch.testing.assert_close(larger[:, z], flat)


def test_an_image_of_the_wanted_size_is_not_changed_by_interpolation():
    probabilities = torch.rand(3, 9, 11)
    resized = F.interpolate(probabilities[None], (9, 11), mode="bilinear", align_corners=False)[0]
    assert torch.equal(resize_probabilities(probabilities, (9, 11), (9, 11)), resized)


def test_the_later_of_two_masks_is_the_label_and_padding_has_none():
    first, second = Instances((3, 4)), Instances((2, 2))
    masks = torch.zeros(2, 3, 4, dtype=torch.bool)
    masks[0, 0, :2] = True
    masks[1, 0, 1:3] = True
    first.gt_masks, first.gt_classes = BitMasks(masks), torch.tensor([4, 0])
    second.gt_masks, second.gt_classes = BitMasks(torch.zeros(0, 2, 2)), torch.zeros(0).long()
    images = ImageList(torch.zeros(2, 1, 3, 4), [(3, 4), (2, 2)])
    labels = semantic_labels([first, second], images)
    assert labels[0].tolist() == [[5, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    i = IGNORE
    assert labels[1].tolist() == [[0, 0, i, i], [0, 0, i, i], [i, i, i, i]]


def test_masks_in_boxes_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    class_masks = torch.rand(2, 9, 11, generator=generator) > 0.5
    boxes = torch.tensor([[0.0, 0.0, 11.0, 9.0], [2.4, 1.6, 7.5, 4.4], [5.0, 5.0, 5.0, 5.0]])
    classes = torch.tensor([1, 0, 1])
    masks = masks_in_boxes(class_masks, boxes, classes)
    for n, y, x in torch.cartesian_prod(torch.arange(3), torch.arange(9), torch.arange(11)):
        x1, y1, x2, y2 = boxes[n]
        inside = x1 <= x <= x2 and y1 <= y <= y2
        assert masks[n, y, x] == (inside and class_masks[classes[n], y, x])
