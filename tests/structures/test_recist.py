"""RECIST diameters against slow ones that walk along every line."""

from lesion_d2.structures.recist import long_diameter, measure_recist, recist_box, recist_lengths

import numpy as np
import pytest


def random_mask(seed: int, size: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2 + rng.uniform(-2, 2)
    angle = np.arctan2(y, x)
    radius = rng.uniform(2.5, 12) * np.sqrt(
        1 + 0.6 * np.cos(2 * angle + seed) + 0.2 * np.cos(3 * angle + 2 * seed)
    )
    return np.hypot(x, y) < radius


def slow_edge_points(mask: np.ndarray) -> np.ndarray:
    """Midpoints of all sides that a pixel of the mask shares with the background."""
    points = []
    for y, x in np.argwhere(mask):
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            inside = 0 <= y + dy < mask.shape[0] and 0 <= x + dx < mask.shape[1]
            if not (inside and mask[y + dy, x + dx]):
                points.append((x + dx / 2, y + dy / 2))
    return np.array(points)


def slow_short_diameter(mask: np.ndarray, points: np.ndarray, along: np.ndarray) -> float:
    """Longest chord inside the mask and perpendicular to a unit vector, by walking along lines."""
    across = np.array([-along[1], along[0]])
    best = 0.0
    for u in np.arange((points @ along).min(), (points @ along).max(), 0.1):
        run = 0.0
        for v in np.arange((points @ across).min() - 1, (points @ across).max() + 1, 0.1):
            x, y = np.floor(u * along + v * across + 0.5).astype(int)
            inside = 0 <= x < mask.shape[1] and 0 <= y < mask.shape[0] and mask[y, x]
            run = run + 0.1 if inside else 0.0
            best = max(best, run)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_recist_is_the_brute_force_one(seed):
    mask = random_mask(seed)
    points = slow_edge_points(mask)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    first, second, third, fourth = measure_recist(mask).reshape(4, 2)
    assert np.linalg.norm(second - first) == pytest.approx(distances.max(), abs=1e-9)
    along = (second - first) / distances.max()
    assert (fourth - third) @ along == pytest.approx(0, abs=1e-9)
    short = np.linalg.norm(fourth - third)
    assert short == pytest.approx(slow_short_diameter(mask, points, along), abs=0.6)


def test_recist_of_a_single_pixel_and_of_none():
    mask = np.zeros((5, 6), bool)
    mask[0, 5] = True  # in the corner
    recist = measure_recist(mask).reshape(4, 2)
    assert (np.abs(recist - (5, 0)) <= 0.75).all()
    with pytest.raises(ValueError, match="mask is empty"):
        measure_recist(np.zeros((4, 4), bool))


def test_short_diameter_stays_inside_a_concave_mask():
    mask = np.zeros((30, 40), bool)
    mask[5:9, 2:38] = True  # a comb: two teeth with a gap, long side up
    mask[9:20, 2:6] = mask[9:14, 30:38] = True
    first, second = measure_recist(mask)[4:].reshape(2, 2)
    for t in np.linspace(0.02, 0.98, 50):
        x, y = np.floor(first + t * (second - first) + 0.5).astype(int)
        assert mask[y, x]


@pytest.mark.parametrize("seed", range(4))
def test_pixels_that_are_no_squares_measure_as_small_squares_do(seed):
    mask = random_mask(seed)
    fine = np.repeat(np.repeat(mask, 2, axis=0), 3, axis=1)  # in pixels of 0.25 mm
    spacing = (0.75, 0.5)
    first, second, third, fourth = measure_recist(mask, spacing).reshape(4, 2) * spacing
    length = np.linalg.norm(second - first)
    points = slow_edge_points(mask) * spacing
    assert length == pytest.approx(np.linalg.norm(points[:, None] - points, axis=-1).max())
    assert length == long_diameter(mask, spacing)
    assert (second - first) @ (fourth - third) == pytest.approx(0, abs=1e-9)
    # The corners of pixels differ between the two, by half of a side.
    long, short = (np.linalg.norm(p[1] - p[0]) / 4 for p in measure_recist(fine).reshape(2, 2, 2))
    assert length == pytest.approx(long, abs=0.5)
    assert np.linalg.norm(fourth - third) == pytest.approx(short, abs=1.0)
    # Circles of mm: the long diameter is not that of the pixels' grid.
    y, x = np.mgrid[:40, :40] - 20.0
    ellipse = (x * spacing[0]) ** 2 + (y * spacing[1] / 1.2) ** 2 < 49
    first, second = measure_recist(ellipse, spacing)[:4].reshape(2, 2)
    assert abs(second[1] - first[1]) > 25 and abs(second[0] - first[0]) < 5


def test_lengths_and_box_of_diameters():
    recist = [10, 20, 13, 24, 12, 21, 11, 21]
    assert recist_lengths(recist).tolist() == [5, 1]
    assert recist_lengths(recist, (2, 0.5)).tolist() == [np.hypot(6, 2), 2]
    assert recist_box(recist).tolist() == [5, 15, 18, 29]
    assert recist_box(recist, 0).tolist() == [10, 20, 13, 24]
