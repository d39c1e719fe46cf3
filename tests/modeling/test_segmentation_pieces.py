from lesion_d2.modeling.losses import IGNORE
from lesion_d2.modeling.segmentation import (
    resize_probabilities,
    semantic_labels,
)
from lesion_d2.structures import ImageList3D

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Instances

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
