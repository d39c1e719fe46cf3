import math

from lesion_d2.data.volumetric.lesions import lesion_voxels, transform_volume_lesions
from lesion_d2.data.volumetric.warp import VolumeWarp
from lesion_d2.structures.ignore_regions import split_regions
from lesion_d2.structures.rle import encode_mask

import numpy as np
import pytest

SHAPE = (10, 40, 50)


def ball_mask() -> np.ndarray:
    z, y, x = np.indices(SHAPE)
    return ((z - 5) / 2.5) ** 2 + ((y - 18) / 7) ** 2 + ((x - 30) / 7) ** 2 <= 1


def annotate(mask: np.ndarray, low=(5, 5, 0), high=(5, 5, 0), **others) -> dict:
    """A lesion whose box lies so far around its mask, x, y and z."""
    where = np.argwhere(mask)
    first, last = where.min(axis=0)[::-1] - 0.5, where.max(axis=0)[::-1] + 0.5
    return {
        "bbox": [*(first - low), *(last + high)],
        "category_id": 1,
        "lesion_id": 7,
        "segmentation": {int(z): encode_mask(mask[z]) for z in np.unique(where[:, 0])},
        **others,
    }


def shift(start=(0, 0, 0), size=SHAPE) -> VolumeWarp:
    z, y, x = start
    return VolumeWarp(size, np.array([[1, 0, -float(x)], [0, 1, -float(y)]]), 1.0, -float(z))


def boxes_of(instances) -> np.ndarray:
    return instances.gt_boxes.tensor.numpy()


@pytest.mark.parametrize(("low", "high"), [((5, 5, 0), (5, 5, 0)), ((4.6, 5, 0.5), (5.2, -1, 0))])
def test_without_augmentation_boxes_are_the_annotated_ones(low, high):
    lesion = annotate(ball_mask(), low, high)
    found = transform_volume_lesions([lesion], shift(), SHAPE, with_masks=True)
    assert boxes_of(found)[0] == pytest.approx(lesion["bbox"])
    assert found.gt_classes.tolist() == [1] and not found.has("is_region")
    assert np.array_equal(found.gt_masks.tensor[0].numpy(), ball_mask())
    depth, height, width = SHAPE
    flips = VolumeWarp(SHAPE, np.array([[-1, 0, width], [0, -1.0, height]]), -1.0, depth)
    mirrored = transform_volume_lesions([lesion], flips, SHAPE, with_masks=True)
    x1, y1, z1, x2, y2, z2 = lesion["bbox"]
    expected = [width - 1 - x2, height - 1 - y2, depth - 1 - z2]
    expected += [width - 1 - x1, height - 1 - y1, depth - 1 - z1]
    assert boxes_of(mirrored)[0] == pytest.approx(expected)
    assert np.array_equal(mirrored.gt_masks.tensor[0].numpy(), ball_mask()[::-1, ::-1, ::-1])


@pytest.mark.parametrize("degrees", [20, 45, 100])
def test_a_turned_ball_keeps_its_box(degrees):
    a, size = math.radians(degrees), (20, 60, 60)
    linear = 1.2 * np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    offset = np.array([30, 30]) - linear @ [30.5, 18.5]
    warp = VolumeWarp(size, np.column_stack([linear, offset]), 2.0, 0.0)
    (box,) = boxes_of(transform_volume_lesions([annotate(ball_mask())], warp, SHAPE))
    # Radius 7.5 with its voxels' edges, 5 around it, both by 1.2; five slices by 2.
    half = 1.2 * (7.5 + 5)
    expected = [29.5 - half, 29.5 - half, 5.5, 29.5 + half, 29.5 + half, 15.5]
    assert box == pytest.approx(expected, abs=1.0)


def test_what_a_patch_cuts_is_a_lesion_or_a_region():
    region = {"bbox": [2, 2, 1.5, 12, 12, 4.5], "category_id": 0, "lesion_id": None, "iscrowd": 1}
    lesions = [annotate(ball_mask()), region, annotate(ball_mask()[:, :, ::-1], category_id=0)]
    # The first one's box is 17.5..42.5 x 5.5..30.5 x 2.5..7.5, the last one's 6.5..31.5.
    found = transform_volume_lesions(lesions, shift((0, 0, 26)), SHAPE)
    others, regions = split_regions(found)
    assert others.gt_classes.tolist() == [1] and regions.gt_classes.tolist() == [-1]
    assert boxes_of(others)[0] == pytest.approx([-0.5, 5.5, 2.5, 16.5, 30.5, 7.5])
    found = transform_volume_lesions(lesions, shift((5, 0, 0)), SHAPE, with_masks=True)
    assert found.gt_classes.tolist() == [1, 0] and not found.has("is_region")
    assert boxes_of(found)[0] == pytest.approx([17.5, 5.5, -0.5, 42.5, 30.5, 2.5])
    assert np.array_equal(found.gt_masks.tensor[0, :5].numpy(), ball_mask()[5:])
    found = transform_volume_lesions(lesions, shift((7, 0, 0)), SHAPE)
    assert found.gt_classes.tolist() == [-1, -1] and found.is_region == [True, True]
    found = transform_volume_lesions(lesions, shift((0, 0, 0), (3, 40, 50)), SHAPE)
    assert found.gt_classes.tolist() == [-1] and found.image_size == (3, 40, 50)
    assert boxes_of(found)[0] == pytest.approx([2, 2, 1.5, 12, 12, 2.5])
    nothing = transform_volume_lesions(lesions, shift((9, 0, 0)), SHAPE, with_masks=True)
    assert len(nothing) == 0 and nothing.gt_masks.tensor.shape == (0, *SHAPE)


def test_of_a_lesion_larger_than_the_patch_half_of_what_can_be_shown_counts():
    lesion = annotate(ball_mask())  # 25 x 25 x 5 with its box
    inside = shift((3, 12, 24), (4, 12, 12))
    assert transform_volume_lesions([lesion], inside, SHAPE).gt_classes.tolist() == [1]
    corner = shift((3, 25, 36), (4, 12, 12))
    assert transform_volume_lesions([lesion], corner, SHAPE).gt_classes.tolist() == [-1]


def test_a_deformed_box_lies_around_the_deformed_mask():
    rng = np.random.default_rng(0)
    displacement = np.repeat(rng.normal(0, 2, (2, 1, 40, 50)), 10, axis=1).astype(np.float32)
    warp = VolumeWarp(SHAPE, np.eye(2, 3), 1.0, 0.0, displacement)
    found = transform_volume_lesions([annotate(ball_mask())], warp, SHAPE, with_masks=True)
    where = np.argwhere(found.gt_masks.tensor[0].numpy())[:, ::-1]
    margin = np.array([5.5, 5.5, 0.5])
    expected = [*(where.min(axis=0) - margin), *(where.max(axis=0) + margin)]
    assert boxes_of(found)[0] == pytest.approx(expected) and len(where) > 300


def test_lesions_without_masks_are_ellipsoids_in_their_boxes():
    box = [10.2, 8.5, 1.5, 30.7, 20.5, 6.5]
    lesion = {"bbox": box, "category_id": 0, "lesion_id": 1}
    mask, start = lesion_voxels(lesion, SHAPE)
    center = [(a + b) / 2 for a, b in zip(box[:3], box[3:], strict=True)]
    half = [(b - a) / 2 for a, b in zip(box[:3], box[3:], strict=True)]
    for z, y, x in np.ndindex(*SHAPE):
        point = zip((x, y, z), center, half, strict=True)
        inside = sum(((p - c) / h) ** 2 for p, c, h in point) <= 1
        at = (z - start[0], y - start[1], x - start[2])
        within = all(0 <= i < n for i, n in zip(at, mask.shape, strict=True))
        assert bool(within and mask[at]) == inside
    assert mask.sum() == pytest.approx(4 / 3 * math.pi * math.prod(half), rel=0.05)
    found = transform_volume_lesions([lesion], shift(), SHAPE, with_masks=True)
    assert boxes_of(found)[0] == pytest.approx(box)


def test_a_lesion_smaller_than_a_voxel_has_one():
    lesion = {"bbox": [10.6, 8.6, 1.5, 10.9, 8.9, 2.5], "category_id": 0, "lesion_id": 1}
    mask, start = lesion_voxels(lesion, SHAPE)
    assert mask.tolist() == [[[True]]] and start == (2, 9, 11)
    found = transform_volume_lesions([lesion], shift(), SHAPE, with_masks=True)
    assert found.gt_masks.tensor.sum() == 1
    assert boxes_of(found)[0] == pytest.approx(lesion["bbox"])
    # On a patch of half as many voxels the mask has none; the box stays.
    half = VolumeWarp((5, 20, 25), 0.5 * np.eye(2, 3), 0.5, 0.0)
    (box,) = boxes_of(transform_volume_lesions([lesion], half, SHAPE))
    assert box == pytest.approx([5.05, 4.05, 0.5, 5.2, 4.2, 1.0])


def test_regions_are_boxes_and_reach_into_their_corners():
    region = {"bbox": [9.5, 8.5, 1.5, 12.5, 10.5, 2.5], "category_id": 0, "iscrowd": 1}
    mask, start = lesion_voxels(region, SHAPE)
    assert mask.all() and mask.shape == (1, 2, 3) and start == (2, 9, 10)
