"""Lesions that are painted into slices: where, and what stays."""

from pathlib import Path

from lesion_d2.data.inserted import HOSTS, find_hosts, insert_lesions
from lesion_d2.data.phantoms.looks import LOOKS
from lesion_d2.data.phantoms.shapes import AIR, FAT, LIVER, LUNG, SKIN_FAT
from lesion_d2.data.slices.ct import read_slice

import cv2
import numpy as np
import pytest
from made_up_stacks import COLUMNS, PIXEL, ROWS, disk, make_stack

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


def test_no_organ_where_the_heart_may_be():
    """Between the lungs, but for what lies clearly to the patient's right."""
    hu = np.full((200, 200), -1000.0)
    hu[np.hypot((COLUMNS - 100) / 1.1, ROWS - 100) < 80] = -100
    hu[disk(60, 100, 42)] = hu[disk(150, 100, 30)] = -850
    hu[disk(65, 100, 30)] = hu[disk(110, 100, 24)] = 80  # the liver's dome, and the heart
    hosts = find_hosts(hu, PIXEL)
    assert (hosts[disk(55, 100, 10)] == LIVER).all()
    assert not (hosts[disk(110, 100, 24)] == LIVER).any()
    hu[hu == -850] = -100  # in the abdomen
    assert (find_hosts(hu, PIXEL)[disk(110, 100, 12)] == LIVER).all()


def test_rims_of_gas_are_no_lung():
    hu = make_stack()[0]
    hu[disk(135, 100, 25)] = -1000
    assert not (find_hosts(hu, PIXEL) == LUNG).any()


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


@pytest.mark.parametrize("other", [-1000, 800])
def test_no_slice_has_a_lesion_on_air_or_bone(other):
    """The key slice does not show that half of the organ ends beside it."""
    num_inserted = 0
    for seed in range(4):
        stack = make_stack(seed, number=5)
        stack[[0, 4], 100:] = other
        lesions = insert_lesions(
            stack,
            (-10.0, -5.0, 0.0, 5.0, 10.0),
            PIXEL,
            np.random.default_rng(seed),
            number=4,
            types=(4,),
            median_diameter=30.0,
        )
        num_inserted += len(lesions)
        for lesion in lesions:
            for index, mask in lesion.masks.items():
                assert index in (1, 2, 3) or mask[100:].sum() <= 0.05 * mask.sum()
    assert num_inserted > 3


def test_what_is_taken_on_one_slice_alone():
    """Beside the key slice, too, not a pixel of it is touched."""
    taken = {0: disk(70, 90, 8)}
    num_inserted = 0
    for seed in range(6):
        before = make_stack(seed)
        stack, rng = before.copy(), np.random.default_rng(seed)
        lesions = insert_lesions(
            stack, (-4, 0, 4), PIXEL, rng, types=(4,), median_diameter=15.0, taken=taken
        )
        num_inserted += len(lesions)
        np.testing.assert_array_equal(stack[0][taken[0]], before[0][taken[0]])
    assert num_inserted > 2


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
    with pytest.raises(ValueError, match="expected one per slice, with one 0"):
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
