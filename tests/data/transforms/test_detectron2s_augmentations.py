"""Detectron2's own augmentations on int16 slices: what docs/extending.md says of each."""

from lesion_d2.data.transforms.lesion_transforms import transform_lesions
from lesion_d2.data.transforms.slice_input import AIR, SliceInput, transform_slices

import numpy as np
import pytest
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

_SIZE = (40, 60)
_BOX = np.array([[20.0, 12.0, 36.0, 28.0]])  # in Detectron2's coordinates, as the image's is


def _slices(channels: int = 5) -> np.ndarray:
    """Soft tissue of 40 HU with a square of 900 HU, the first channel 10 HU lower."""
    image = np.full((*_SIZE, channels), 40, np.int16)
    image[12:28, 20:36] = 900
    image[..., 0] -= 10
    return image


def _augmented(augmentation: T.Augmentation) -> tuple[np.ndarray, np.ndarray, T.Transform]:
    np.random.seed(3)
    slices = SliceInput(_slices(), boxes=_BOX.copy())
    transform = augmentation(slices)
    return slices.image, slices.boxes, transform


def _extent(bright: np.ndarray) -> list[int]:
    rows, columns = bright.any(axis=1).nonzero()[0], bright.any(axis=0).nonzero()[0]
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize(
    "augmentation",
    [
        T.RandomFlip(1.0),
        T.RandomFlip(1.0, horizontal=False, vertical=True),
        T.RandomCrop("absolute", (38, 55)),
        T.FixedSizeCrop((50, 70), pad_value=AIR),
        T.RandomRotation([7.0, 7.0]),
        T.RandomRotation([-30.0, -30.0], expand=False),
        T.Resize((60, 90)),
        T.ResizeShortestEdge(64, 1000),
        T.ResizeScale(1.5, 1.5, 60, 60),
        T.RandomResize([(50, 60)]),
        T.RandomExtent((1.2, 1.2), (0.1, 0.1)),
        T.RandomApply(T.ResizeShortestEdge(50, 1000), 1.0),
    ],
    ids=lambda augmentation: str(augmentation)[:40],
)
def test_geometry_of_images_and_boxes_is_one_and_outside_is_air(augmentation):
    image, boxes, transform = _augmented(augmentation)
    assert image.dtype == np.int16 and image.shape[2] == 5
    assert image.min() >= AIR and image.max() <= 900  # no value comes of nothing
    np.testing.assert_allclose(boxes, transform.apply_box(_BOX.copy()))
    assert np.abs(_extent(image[..., 2] > 470) - boxes[0]).max() <= 1.01
    inside = image[..., 2] > 500
    assert (image[inside].min(axis=0) > 480).all()  # all channels alike
    np.testing.assert_allclose(image[inside, 1] - image[inside, 0], 10, atol=1)


@pytest.mark.parametrize(
    "augmentation", [T.RandomRotation([20.0, 20.0]), T.RandomExtent((1.4, 1.4), (0.0, 0.0))]
)
def test_what_lies_outside_of_the_image_is_air(augmentation):
    image, _, _ = _augmented(augmentation)
    corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == AIR).all()
    middle = [side // 2 for side in image.shape[:2]]
    assert image[(*middle, 2)] in (40, 900)


def test_masks_end_at_the_padding():
    size = (50, 70)
    transform = T.FixedSizeCrop(size, pad_value=AIR)(SliceInput(_slices()))
    lesion = {"bbox": _BOX[0] - 0.5, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    mask = _slices()[..., 2] > 470
    [found] = transform_lesions([lesion], [mask], transform, size).gt_masks.tensor.numpy()
    assert found.shape == size and np.array_equal(found[: _SIZE[0], : _SIZE[1]], mask)
    assert found.sum() == mask.sum() == 16 * 16


def test_transforms_of_ones_own_see_hu_as_they_are():
    seen = []
    color = T.ColorTransform(lambda hu: seen.append(hu) or hu + np.int16(5))
    pair = T.TransformList([T.HFlipTransform(60), color])
    image = transform_slices(pair, _slices())
    np.testing.assert_array_equal(seen[0], _slices()[:, ::-1])
    np.testing.assert_array_equal(image, _slices()[:, ::-1] + 5)


def test_high_values_stay_in_int16():
    image = np.full((8, 8, 1), 32767, np.int16)
    image[::2] = -32768
    image = transform_slices(T.ResizeTransform(8, 8, 13, 13), image)
    assert image.dtype == np.int16 and image.max() == 32767 and image.min() == -32768
