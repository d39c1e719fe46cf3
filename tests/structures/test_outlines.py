"""Outlines hold the centers of a mask's pixels, and of no others."""

from lesion_d2.structures.outlines import box_outline, mask_outlines

import numpy as np
import pytest
from matplotlib.path import Path
from scipy import ndimage


def filled(outlines: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centers lie in a polygon, by another program."""
    y, x = np.indices(shape)
    points = np.column_stack([x.ravel(), y.ravel()])
    inside = np.zeros(len(points), bool)
    for outline in outlines:
        inside |= Path(outline).contains_points(points)
    return inside.reshape(shape)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 0.6, 0.95, 1.0])
def test_outlines_fill_to_the_mask(share):
    rng = np.random.default_rng(int(100 * share))
    mask = ndimage.binary_fill_holes(rng.random((23, 31)) < share)
    outlines = mask_outlines(mask)
    assert all(np.array_equal(outline[0], outline[-1]) for outline in outlines)
    assert np.array_equal(filled(outlines, mask.shape), mask)


def test_a_hole_has_no_outline_of_its_own():
    mask = np.zeros((12, 14), bool)
    mask[2:10, 3:12] = True
    mask[4:7, 5:8] = False
    (outline,) = mask_outlines(mask)
    assert filled([outline], mask.shape).sum() == 8 * 9 and len(outline) == 9
    np.testing.assert_array_equal(
        [outline.min(axis=0), outline.max(axis=0)], [[2.5, 1.5], [11.5, 9.5]]
    )


def test_an_outline_fits_into_dicom():
    comb = np.zeros((400, 400), bool)
    comb[:, ::2] = comb[199] = True  # 200 teeth, up and down
    comb[::3] |= comb[::3] & (np.random.default_rng(0).random(400) < 0.5)
    noise = np.random.default_rng(0).random((300, 300)) < 0.7
    for mask in (comb, noise):
        assert max(map(len, mask_outlines(mask))) <= 5001


def test_the_outline_of_a_box_holds_the_points_inside():
    outline = box_outline((1.0, 2.0, 4.0, 6.0))
    assert Path(outline).contains_points([(1.1, 2.1), (3.9, 5.9), (0.9, 3), (2, 6.1)]).tolist() == [
        True,
        True,
        False,
        False,
    ]
