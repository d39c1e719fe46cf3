import math

from lesion_d2.data.volumetric.reading import ResampledVolume, array_record
from lesion_d2.data.volumetric.warp import VolumeWarp

import numpy as np
import pytest
from made_up_volumes import SHAPE, apply, made_up_voxels


def turned(degrees: float, scale: float = 1.0, size=(12, 40, 40)) -> VolumeWarp:
    """A warp of volumes of SHAPE about their center, onto that of a patch."""
    a = math.radians(degrees)
    linear = scale * np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    offset = np.array([size[2] / 2, size[1] / 2]) - linear @ [SHAPE[2] / 2, SHAPE[1] / 2]
    return VolumeWarp(size, np.column_stack([linear, offset]), 1.3, 0.4)


def test_a_shift_by_whole_voxels_cuts_a_block():
    volume = made_up_voxels()
    warp = VolumeWarp((5, 6, 7), np.array([[1, 0, -4.0], [0, 1, -3]]), 1.0, -2.0)
    assert np.array_equal(apply(warp, volume), volume[2:7, 3:9, 4:11])
    assert warp.source_ranges(volume.shape) == [(0, 9), (1, 11), (2, 13)]
    beyond = VolumeWarp((5, 6, 40), np.array([[1, 0, 3.0], [0, 1, 2]]), 1.0, 1.0)
    found = apply(beyond, volume)
    assert np.array_equal(found[1:, 2:, 3:33], volume[:4, :4])
    assert (found[0] == -2000).all() and (found[:, :2] == -2000).all()
    assert (found[:, :, :3] == -2000).all() and (found[:, :, 33:] == -2000).all()
    away = VolumeWarp((5, 6, 7), np.array([[1, 0, 99.0], [0, 1, 0]]), 1.0, 0.0)
    assert away.source_ranges(volume.shape) is None


def test_mirrors_and_quarter_turns_move_voxels():
    volume = made_up_voxels()
    depth, height, width = SHAPE
    flipped = VolumeWarp(SHAPE, np.array([[-1, 0, width], [0, -1.0, height]]), -1.0, depth)
    assert np.array_equal(apply(flipped, volume), volume[::-1, ::-1, ::-1])
    turn = VolumeWarp((depth, width, height), np.array([[0, -1, height], [1.0, 0, 0]]), 1.0, 0.0)
    assert np.array_equal(apply(turn, volume), np.rot90(volume, -1, axes=(1, 2)))


def test_a_ramp_stays_a_ramp():
    # Linear interpolation of what is linear is exact but for rounding: OpenCV knows places to
    # 1/32 pixel, values are whole numbers.
    z, y, x = np.indices(SHAPE)
    warp = turned(33, 1.2)
    found = apply(warp, (100 * z + 20 * y + 10 * x).astype(np.int16))
    k, j, i = np.indices(warp.size) + 0.5
    inverse = np.linalg.inv(warp.matrix[:, :2])
    at = np.stack([i, j], axis=-1) - warp.matrix[:, 2]
    at_x, at_y = np.moveaxis(at @ inverse.T - 0.5, -1, 0)
    at_z = ((k - warp.z_offset) / warp.z_scale - 0.5).clip(0, SHAPE[0] - 1)
    inside = (at_x > 0) & (at_x < SHAPE[2] - 1) & (at_y > 0) & (at_y < SHAPE[1] - 1)
    expected = 100 * at_z + 20 * at_y + 10 * at_x
    assert inside.sum() > 4000 and np.abs(found - expected)[inside].max() < 2.5
    beyond = (at_x < -1) | (at_x > SHAPE[2]) | (at_y < -1) | (at_y > SHAPE[1])
    assert beyond.sum() > 1000 and (found[beyond] == -2000).all()

    displacement = np.zeros((2, *warp.size), np.float32)
    displacement[0], displacement[1] = 0.1 * (k - 6), 1.5
    moved = VolumeWarp(warp.size, warp.matrix, warp.z_scale, warp.z_offset, displacement)
    at = np.stack([i + displacement[0], j + displacement[1]], axis=-1) - warp.matrix[:, 2]
    at_x, at_y = np.moveaxis(at @ inverse.T - 0.5, -1, 0)
    inside = (at_x > 0) & (at_x < SHAPE[2] - 1) & (at_y > 0) & (at_y < SHAPE[1] - 1)
    found = apply(moved, (100 * z + 20 * y + 10 * x).astype(np.int16))
    expected = 100 * at_z + 20 * at_y + 10 * at_x
    assert inside.sum() > 4000 and np.abs(found - expected)[inside].max() < 2.5
    assert moved.reach == 1.5


@pytest.mark.parametrize("elastic", [False, True])
def test_the_outermost_voxels_go_on_to_their_edges_as_in_inference(elastic):
    volume = made_up_voxels((1, 3, 4))
    volume[0, 0, 0], volume[0, 0, 3] = 400, -800
    record = array_record(volume, (1.0, 1.0, 1.0))
    resampled = ResampledVolume(record, (0.25, 0.25, 1.0), (-1000.0, 500.0))
    displacement = np.zeros((2, 1, 14, 20), np.float32) if elastic else None
    # The patch begins two voxels before the volume, and ends as many behind it.
    warp = VolumeWarp((1, 14, 20), np.array([[4, 0, 2.0], [0, 4, 1]]), 1.0, 0.0, displacement)
    found, expected = apply(warp, volume, -1000), resampled.read((0, -1, -2), warp.size)
    assert np.abs(found.astype(int) - expected).max() <= 1  # places are eighths of a voxel
    assert (found[0, 1:3, 2:4] == 400).all() and (found[0, 1:3, 16:18] == -800).all()
    assert (found[0, [0, -1]] == -1000).all() and (found[0, :, [0, 1, -2, -1]] == -1000).all()


@pytest.mark.parametrize("elastic", [False, True])
def test_a_window_is_a_part_of_the_patch(elastic):
    z, y, x = np.indices(SHAPE)
    volume, warp = (100 * z + 20 * y + 10 * x).astype(np.int16), turned(20, 0.9)
    if elastic:
        displacement = np.random.default_rng(0).normal(0, 2, (2, *warp.size)).astype(np.float32)
        warp = VolumeWarp(warp.size, warp.matrix, warp.z_scale, warp.z_offset, displacement)
    window = warp.window((2, 11, 6), (8, 20, 25))
    found, whole = apply(window, volume, 0), apply(warp, volume, 0)[2:10, 11:31, 6:31]
    # OpenCV rounds places to 1/32 pixel, counted from another corner.
    assert found.any() and np.abs(found - whole).mean() < 1 and np.abs(found - whole).max() < 50


def test_masks_are_warped_as_images():
    mask = np.zeros(SHAPE, bool)
    mask[3:6, 8:17, 10:20] = True
    warp = turned(45, 1.1)
    image = apply(warp, np.where(mask, 1000, 0).astype(np.int16), 0)
    found = warp.apply_mask(mask[3:6, 8:17, 10:20], (3, 8, 10), SHAPE)
    differs = found != (image >= 502)
    assert found.sum() > 300 and differs.sum() <= 0.01 * found.sum()
    assert found.sum() == pytest.approx(mask.sum() * 1.1**2 * 1.3, rel=0.1)


@pytest.mark.parametrize("corners", [False, True])
def test_boxes_are_the_extent_of_what_they_hold(corners):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    if corners:
        points = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    box = np.array([3.0, 5.0, 1.5, 17.0, 9.0, 4.5])
    points = (box[:3] + box[3:]) / 2 + points * (box[3:] - box[:3]) / 2
    warp = turned(70, 1.3)
    moved = (points[:, :2] + 0.5) @ warp.matrix[:, :2].T + warp.matrix[:, 2] - 0.5
    z = (points[:, 2] + 0.5) * warp.z_scale + warp.z_offset - 0.5
    moved = np.column_stack([moved, z])
    expected = [*moved.min(axis=0), *moved.max(axis=0)]
    assert warp.apply_boxes(box[None], corners=corners)[0] == pytest.approx(expected, abs=0.02)


def test_margins_turn_with_what_they_surround():
    low, high = np.array([5.0, 2.0, 0.0]), np.array([4.0, 3.0, -1.0])
    flipped = VolumeWarp(SHAPE, np.array([[-2.0, 0, 0], [0, 1, 0]]), -1.0, 0.0)
    before, past = flipped.apply_margins(low, high)
    assert before == pytest.approx([8, 2, -1]) and past == pytest.approx([10, 3, 0])
    quarter = VolumeWarp(SHAPE, np.array([[0, -1.0, 0], [1, 0, 0]]), 1.0, 0.0)
    before, past = quarter.apply_margins(low, high)  # x comes from y, whose low end is now high
    assert before == pytest.approx([3, 5, 0]) and past == pytest.approx([2, 4, -1])
    before, past = turned(37).apply_margins(np.full(3, 5.0), np.full(3, 5.0))
    assert before[:2] == pytest.approx([5, 5]) and past[:2] == pytest.approx([5, 5])
