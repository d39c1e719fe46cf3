"""Lesions that are painted into slices: where, and what stays."""

from pathlib import Path

from lesion_d2.data.ct import read_slice
from lesion_d2.data.inserted import HOSTS, find_hosts, insert_lesions
from lesion_d2.data.phantom_looks import LOOKS
from lesion_d2.data.phantom_shapes import AIR, FAT, LIVER, LUNG, SKIN_FAT

import cv2
import numpy as np
import pytest
from made_up_slices import COLUMNS, PIXEL, ROWS, disk, make_stack

LIVER_SLICES = Path(__file__).parents[3].parent / "shared" / "data" / "liver_slices" / "images"


def test_hosts_of_a_made_up_slice():
    hosts = find_hosts(make_stack()[0], PIXEL)
    assert (hosts[disk(70, 100, 24)] == LIVER).all()
    assert (hosts[disk(135, 100, 20)] == LUNG).all()
    away = np.hypot(COLUMNS - 100, ROWS - 100)
    assert (hosts[(away > 80) & (away < 86)] == SKIN_FAT).mean() > 0.95
    assert (hosts[away > 92] == AIR).all()
    within = (away < 60) & ~disk(70, 100, 36) & ~disk(135, 100, 31)
    assert (hosts[within] == FAT).mean() > 0.95


def test_a_slice_of_air_has_no_host():
    air = np.full((64, 64), -1000, np.int16)
    assert (find_hosts(air, PIXEL) == AIR).all()
    stack = np.stack([air] * 3)
    assert insert_lesions(stack, (-2, 0, 2), PIXEL, np.random.default_rng(0)) == []
    assert (stack == -1000).all()


@pytest.mark.parametrize("seed", range(6))
def test_what_is_painted_and_what_stays(seed):
    before = make_stack(seed)
    stack, hosts = before.copy(), find_hosts(before[1], PIXEL)
    taken = disk(70, 85, 14)
    lesions = insert_lesions(
        stack,
        (-2.0, 0.0, 2.0),
        PIXEL,
        np.random.default_rng(seed),
        number=3,
        taken=dict.fromkeys(range(3), taken),
    )
    assert lesions and stack.dtype == np.int16
    near = np.zeros_like(taken)
    for lesion in lesions:
        mask = lesion.masks[1]
        assert lesion.coarse_type in LOOKS and mask.any()
        assert np.abs(stack[1].astype(float) - before[1])[mask].mean() > 10
        middle = tuple(np.argwhere(mask).mean(axis=0).round().astype(int))
        assert hosts[middle] == HOSTS[lesion.coarse_type]
        assert not taken[middle] and not (near & mask).any()
        near |= cv2.dilate(np.uint8(mask), np.ones((13, 13), np.uint8)) > 0
    np.testing.assert_array_equal(stack[1][~near], before[1][~near])


def test_the_noise_stays_within_a_lesion():
    """An even lesion has the noise of the slice, no more and no less."""
    ratios = []
    for seed in range(12):
        before = make_stack(seed)
        stack = before.copy()
        rng = np.random.default_rng(seed)
        found = insert_lesions(stack, (-2, 0, 2), PIXEL, rng, median_diameter=30.0, mottle_hu=0.0)
        for lesion in found:
            middle = cv2.erode(np.uint8(lesion.masks[1]), np.ones((7, 7), np.uint8)) > 0
            if lesion.coarse_type == 4 and middle.sum() > 40:
                rest = stack[1] - cv2.GaussianBlur(stack[1].astype(np.float32), (0, 0), 1.1)
                was = before[1] - cv2.GaussianBlur(before[1].astype(np.float32), (0, 0), 1.1)
                ratios.append(rest[middle].std() / was[middle].std())
    assert len(ratios) >= 2
    assert 0.9 < np.median(ratios) < 1.1


def test_lesions_end_along_z():
    stack = make_stack(number=5)
    heights = (-60.0, -2.0, 0.0, 2.0, 60.0)
    (lesion,) = insert_lesions(stack, heights, PIXEL, np.random.default_rng(1))
    areas = {index: mask.sum() for index, mask in lesion.masks.items()}
    assert set(areas) <= {1, 2, 3} and areas[2] > 0
    assert abs(areas[1] - areas[3]) < areas[2]


def test_the_same_seed_gives_the_same_lesions():
    stacks = [make_stack(), make_stack()]
    for stack in stacks:
        assert insert_lesions(stack, (-2, 0, 2), PIXEL, np.random.default_rng(5), number=2)
    np.testing.assert_array_equal(*stacks)


@pytest.mark.parametrize("heights", [(-2, 1, 2), (0, 2)])
def test_heights_that_do_not_fit(heights):
    with pytest.raises(ValueError, match="expected one for each, and one 0"):
        insert_lesions(make_stack(), heights, PIXEL, np.random.default_rng(0))


@pytest.mark.skipif(not LIVER_SLICES.is_dir(), reason="the real slices are not here")
def test_organs_and_lesions_of_real_slices():
    """Livers are found, and what is inserted lies in the body."""
    organ = []
    for number, file in enumerate(sorted(LIVER_SLICES.glob("*.png"))[::6]):
        stack = np.stack([read_slice(file)] * 3)
        hosts = find_hosts(stack[1], 0.75)
        organ.append((hosts == LIVER).sum() * 0.75**2 / 100)
        rng = np.random.default_rng(number)
        for lesion in insert_lesions(stack, (-2, 0, 2), 0.75, rng, number=3):
            assert hosts[lesion.masks[1]].astype(bool).mean() > 0.5
    assert 60 < np.median(organ) < 350  # cm^2
