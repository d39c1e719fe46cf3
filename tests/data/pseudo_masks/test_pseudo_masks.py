from itertools import pairwise

from lesion_d2.data.pseudo_masks import (
    ellipse_mask,
    ellipse_outline,
    grabcut_image,
    grabcut_mask,
    pseudo_mask,
)
from lesion_d2.data.pseudo_masks.grabcut import fill_holes, label_components

import cv2
import numpy as np
import pytest
from matplotlib.path import Path
from scipy import ndimage

# Long and short diameter that meet at right angles in the middle, semi-axes 20 and 10.
UPRIGHT = [30, 40, 70, 40, 50, 30, 50, 50]
# Oblique, crossing away from both middles.
OBLIQUE = [30.3, 41.2, 71.9, 52.4, 44.1, 60.2, 52.7, 35.5]
NOT_CROSSING = {
    "short one on one side": [10, 50, 60, 50, 30, 30, 35, 46],
    "short one past the end": [10, 50, 60, 50, 64, 40, 66, 60],
    "parallel": [10, 50, 60, 50, 20, 60, 40, 60],
    "short one without length": [10, 50, 60, 50, 30, 60, 30, 60],
    "T, touching": [10, 50.3, 60, 50.3, 35, 50.3, 35, 70],
}
DEGENERATE = {
    "a point": [20, 30] * 4,
    "one line": [10, 10, 30, 30, 15, 15, 20, 20],
    "short one is an end point": [10, 10, 30, 10, 30, 10, 30, 10],
    "an end point in the middle of the others": [0, 0, 12, 0, 6, 12, 6, 4],
}


def random_recist(rng, long):
    """A pair that crosses, anywhere and at any angle that annotations have."""
    angle, turn = rng.uniform(0, np.pi), rng.uniform(1.2, 1.9)
    short = long * rng.uniform(0.35, 1)
    a = long * np.array([np.cos(angle), np.sin(angle)])
    b = short * np.array([np.cos(angle + turn), np.sin(angle + turn)])
    center, (u, v) = rng.uniform(80, 120, 2), rng.uniform(0.3, 0.7, 2)
    ends = center + np.array([-u * a, (1 - u) * a, -v * b, (1 - v) * b])
    return ends.ravel()


def quarters_of(recist):
    """Center and pairs of half-axes of a crossing pair, with a solver instead of a formula."""
    p = np.reshape(recist, (4, 2)).astype(float)
    s, _ = np.linalg.solve(np.stack([p[1] - p[0], p[2] - p[3]], axis=1), p[2] - p[0])
    c = p[0] + s * (p[1] - p[0])
    order = [0, 2, 1, 3, 0]
    return c, [(p[i] - c, p[j] - c) for i, j in pairwise(order)]


def shoelace(polygon):
    x, y = polygon.T
    return 0.5 * abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())


def make_case(seed=0, shape=(160, 160), contrast=80.0):
    """An irregular lesion in noise: image (HU), true mask, RECIST by its extreme points, box."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]] - 80.0
    angle = np.arctan2(y, x)
    truth = np.hypot(y, x) < 16 + 4 * np.cos(2 * angle + 1) + 2 * np.cos(3 * angle)
    hu = np.where(truth, contrast, 0.0) + rng.normal(0, 12, shape)
    points = np.argwhere(truth)[:, ::-1].astype(float)
    distance = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    first, second = points[list(np.unravel_index(distance.argmax(), distance.shape))]
    along = (second - first) / distance.max()
    middle = np.abs((points - points.mean(axis=0)) @ along) < 0.7
    across = (points @ [-along[1], along[0]])[middle]
    low, high = points[middle][across.argmin()], points[middle][across.argmax()]
    ends = np.stack([first, second, low, high])
    box = [*(ends.min(axis=0) - 5), *(ends.max(axis=0) + 5)]
    return hu, truth, ends.ravel().tolist(), box


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_outline_of_an_upright_pair_is_an_ellipse():
    outline = ellipse_outline(UPRIGHT)
    assert outline.shape == (64, 2)
    x, y = outline.T
    np.testing.assert_allclose(((x - 50) / 20) ** 2 + ((y - 40) / 10) ** 2, 1)


@pytest.mark.parametrize(
    "recist", [UPRIGHT, OBLIQUE, *NOT_CROSSING.values()], ids=["upright", "oblique", *NOT_CROSSING]
)
def test_the_four_end_points_are_on_the_outline(recist):
    outline = ellipse_outline(recist, points_per_quarter=5)
    assert outline.shape == (20, 2)
    for end in np.reshape(recist, (4, 2)):
        assert np.hypot(*(outline - end).T).min() < 1e-9


def test_outline_of_an_oblique_pair_is_the_quarters_from_the_crossing_point():
    center, quarters = quarters_of(OBLIQUE)
    outline = ellipse_outline(OBLIQUE, points_per_quarter=2)
    halfway = [center + (a + b) / np.sqrt(2) for a, b in quarters]
    np.testing.assert_allclose(outline[1::2], halfway)


def test_area_is_the_analytic_sum_of_the_quarters_for_lesions_over_10_px():
    rng = np.random.default_rng(0)
    for long in rng.uniform(10, 90, 300):
        recist = random_recist(rng, long)
        _, quarters = quarters_of(recist)
        area = sum(np.pi / 4 * abs(np.linalg.det([a, b])) for a, b in quarters)
        assert abs(ellipse_mask(recist, 256, 256).sum() - area) <= max(0.5, 0.02 * area)
        assert area < 25 or abs(ellipse_mask(recist, 256, 256).sum() / area - 1) <= 0.02
        np.testing.assert_allclose(shoelace(ellipse_outline(recist, 400)), area, rtol=1e-4)


def test_mask_is_the_pixels_whose_centers_lie_in_a_quarter():
    rng = np.random.default_rng(1)
    for _ in range(10):
        recist = random_recist(rng, rng.uniform(15, 30))
        center, quarters = quarters_of(recist)
        mask = ellipse_mask(recist, 160, 160)
        middle = np.rint(center).astype(int)
        for j, i in middle + np.stack(np.mgrid[-30:30:3, -30:30:3], axis=-1).reshape(-1, 2):
            depth = np.inf
            for a, b in quarters:
                s, t = np.linalg.solve(np.stack([a, b], axis=1), [j, i] - center)
                if s >= 0 and t >= 0:
                    depth = np.hypot(s, t)
            if abs(depth - 1) > 0.05:
                assert mask[i, j] == (depth < 1)


@pytest.mark.parametrize("recist", NOT_CROSSING.values(), ids=NOT_CROSSING)
def test_pairs_that_do_not_cross_have_the_area_of_their_outline(recist):
    outline = ellipse_outline(recist, 200)
    area = shoelace(outline)
    mask = ellipse_mask(recist, 100, 100)
    assert area > 100
    assert abs(mask.sum() - area) <= 0.02 * area
    centers = np.stack(np.meshgrid(np.arange(100), np.arange(100)), axis=-1).reshape(-1, 2)
    inside = Path(outline).contains_points(centers).reshape(100, 100)
    assert dice(mask, inside) > 0.97
    assert ndimage.label(mask)[1] == 1


@pytest.mark.parametrize("recist", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_pairs_give_a_mask_around_their_points(recist):
    mask = ellipse_mask(recist, 64, 64)
    assert mask.any()
    rows, columns = np.nonzero(mask)
    x, y = recist[0::2], recist[1::2]
    assert min(x) - 3 <= columns.min() and columns.max() <= max(x) + 3
    assert min(y) - 3 <= rows.min() and rows.max() <= max(y) + 3
    image = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    box = [min(x) - 5, min(y) - 5, max(x) + 5, max(y) + 5]
    assert grabcut_mask(image, recist, box).any()


def test_a_lesion_thinner_than_a_pixel_is_its_long_diameter():
    mask = ellipse_mask([10, 10, 20, 10, 15, 9.9, 15, 10.1], 32, 32)
    expected = np.zeros((32, 32), bool)
    expected[10, 10:21] = True
    np.testing.assert_array_equal(mask, expected)


def test_no_lesion_inside_the_image_has_an_empty_mask():
    rng = np.random.default_rng(2)
    for _ in range(500):
        recist = rng.uniform(0, 2, 8) + np.tile(rng.choice([0, 10, 29], 2), 4)
        assert ellipse_mask(recist, 32, 32).any()


def test_what_lies_outside_the_image_is_cut_off():
    whole = ellipse_mask(np.add(UPRIGHT, 50), 200, 200)
    for dx, dy in ((-50, 0), (45, -38), (0, 60), (-300, 0), (0, 500)):
        moved = ellipse_mask(np.add(UPRIGHT, np.tile([dx, dy], 4)), 100, 100)
        expected = np.zeros((100, 100), bool)
        for i, j in np.argwhere(whole):
            y, x = i - 50 + dy, j - 50 + dx
            if 0 <= y < 100 and 0 <= x < 100:
                expected[y, x] = True
        np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize("recist", [[1, 2, 3], [np.nan] * 8, [1] * 7 + [np.inf], [[1] * 8]])
def test_recist_that_is_not_8_finite_numbers_is_an_error(recist):
    with pytest.raises(ValueError, match="expected 8 finite numbers"):
        ellipse_mask(recist, 10, 10)


def test_grabcut_beats_the_ellipse_on_an_irregular_lesion():
    hu, truth, recist, box = make_case()
    mask = grabcut_mask(grabcut_image(hu, (-175, 275)), recist, box)
    ellipse = ellipse_mask(recist, *hu.shape)
    assert dice(mask, truth) > max(0.95, dice(ellipse, truth) + 0.01)


def test_components_and_holes_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 9), (12, 7), (40, 40)):
        for share in (0.3, 0.5, 0.7, 0.9):
            mask = rng.uniform(size=shape) < share
            labels, expected = label_components(mask), ndimage.label(mask)[0]
            pairs = set(zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True))
            assert len(pairs) == len(np.unique(expected)) == len(np.unique(labels))
            assert (0, 0) in pairs or mask.all()
            filled = fill_holes(mask)
            np.testing.assert_array_equal(filled, ndimage.binary_fill_holes(mask))


def test_grabcut_is_deterministic_whatever_happened_before():
    hu, _, recist, box = make_case(contrast=15)
    image = grabcut_image(hu, (-175, 275))
    expected = grabcut_mask(image, recist, box)
    for seed in range(3):
        cv2.setRNGSeed(seed + 100)
        np.testing.assert_array_equal(grabcut_mask(image, recist, box), expected)


def test_grabcut_keeps_the_quadrilateral_and_the_box():
    hu, _, recist, box = make_case(contrast=5)
    mask = grabcut_mask(grabcut_image(hu, (-175, 275)), recist, box)
    rows, columns = np.nonzero(mask)
    assert box[0] <= columns.min() and columns.max() <= box[2]
    assert box[1] <= rows.min() and rows.max() <= box[3]
    quadrilateral = np.zeros(hu.shape, np.uint8)
    ends = np.reshape(recist, (4, 2))[[0, 2, 1, 3]].astype(np.int32)
    cv2.fillConvexPoly(quadrilateral, ends, 1)
    inside = cv2.erode(quadrilateral, np.ones((3, 3), np.uint8)) > 0
    assert mask[inside].all()


def test_grabcut_keeps_no_island_and_no_hole():
    hu, truth, recist, box = make_case()
    hu[83:86, 94:97] = 0  # a dark spot in the lesion, outside the quadrilateral
    hu[int(box[1]) : int(box[1]) + 3, int(box[0]) : int(box[0]) + 3] = 80  # a bright one beside it
    mask = grabcut_mask(grabcut_image(hu, (-175, 275)), recist, box)
    assert ndimage.label(mask)[1] == 1
    assert ndimage.label(~mask)[1] == 1
    assert dice(mask, truth) > 0.95


def test_crop_does_not_depend_on_what_is_far_away():
    hu, _, recist, box = make_case()
    image = grabcut_image(hu, (-175, 275))
    changed = image.copy()
    changed[:30] = 255
    np.testing.assert_array_equal(
        grabcut_mask(image, recist, box), grabcut_mask(changed, recist, box)
    )


def test_a_leak_into_the_surroundings_falls_back_to_the_ellipse():
    y, x = np.mgrid[:64, :64]
    image = np.where(np.hypot(x - 30, y - 30) < 12, 200, 20).astype(np.uint8)
    recist = [27, 30, 33, 30, 30, 27, 30, 33]  # a quarter of the bright disk
    found = pseudo_mask("grabcut", image, recist, [18, 18, 42, 42])
    assert found.fell_back
    np.testing.assert_array_equal(found.mask, ellipse_mask(recist, 64, 64))


@pytest.mark.parametrize(
    "box", [[40, 40, 60, 60], [0, 0, 63, 63], [200, 200, 210, 210], [-90, -90, -80, -80]]
)
def test_grabcut_without_foreground_or_background_falls_back(box):
    image = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    recist = [10, 20, 30, 20, 20, 12, 20, 28]
    found = pseudo_mask("grabcut", image, recist, box)
    assert found.fell_back
    np.testing.assert_array_equal(found.mask, ellipse_mask(recist, 64, 64))


@pytest.mark.parametrize("value", [0, 77])
def test_grabcut_survives_flat_images_tiny_lesions_and_no_undecided_pixel(value):
    image = np.full((40, 40), value, np.uint8)
    for recist, box in (
        ([20, 20, 21, 20, 20.5, 19.6, 20.5, 20.4], [15, 15, 26, 25]),
        ([20.4, 20.4, 20.6, 20.4, 20.5, 20.3, 20.5, 20.6], [15, 15, 26, 26]),
        ([10, 10, 30, 30, 10, 30, 30, 10], [10, 10, 30, 30]),
        ([10, 20, 30, 20, 20, 10, 20, 30], [19, 19, 21, 21]),
        ([-3, 1, 6, 1, 1, -3, 1, 5], [-8, -8, 11, 10]),
    ):
        assert grabcut_mask(image, recist, box).any()


def test_grabcut_wants_a_gray_8_bit_image_and_a_box():
    with pytest.raises(ValueError, match="found a int16 image"):
        grabcut_mask(np.zeros((40, 40), np.int16), UPRIGHT, [0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"expected \(H, W\) uint8"):
        grabcut_mask(np.zeros((40, 40, 3), np.uint8), UPRIGHT, [0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"box: .* expected 4 finite numbers"):
        grabcut_mask(np.zeros((40, 40), np.uint8), UPRIGHT, [0, 0, np.nan, 1])
    with pytest.raises(ValueError, match="found mask method 'otsu'"):
        pseudo_mask("otsu", None, UPRIGHT, [0, 0, 1, 1], (40, 40))


def test_ellipse_by_name_needs_only_a_size():
    found = pseudo_mask("ellipse", None, UPRIGHT, [25, 25, 75, 55], (100, 90))
    assert not found.fell_back
    np.testing.assert_array_equal(found.mask, ellipse_mask(UPRIGHT, 100, 90))


def test_grabcut_image_rounds_and_clips():
    hu = np.array([[-3024, -175, 50, 275, 2000]], np.int16)
    np.testing.assert_array_equal(grabcut_image(hu, (-175, 275)), [[0, 0, 128, 255, 255]])


def test_end_points_far_outside_are_refused_before_memory_is_taken():
    recist = [10.0, 10.0, 20.0, 20.0, 12.0, 18.0, 1e6, 12.0]
    with pytest.raises(ValueError, match=r"found .*1000000.*, expected distances in x and y"):
        ellipse_mask(recist, 48, 64)
    beside = [70.0, 10.0, 76.0, 10.0, 73.0, 8.0, 73.0, 12.0]
    assert not ellipse_mask(beside, 48, 64).any()
