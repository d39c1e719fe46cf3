from lesion_d2.importers.polygons import polygon_mask

import cv2
import numpy as np
from skimage.draw import polygon2mask


def test_polygons_are_filled_as_opencv_does():
    """Inside of whole-numbered outlines; pixels on the outline are told by neither."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        radii = rng.uniform(4, 18, 12)
        points = np.rint(20 + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None])
        points = points.astype(np.int32)[:, None]
        filled, drawn = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
        cv2.fillPoly(filled, [points], 1)
        cv2.polylines(drawn, [points], True, 1)
        assert (polygon_mask(points[:, 0], (40, 40))[drawn == 0] == filled[drawn == 0]).all()


def test_polygons_between_pixels_are_filled_as_scikit_image_does():
    rng = np.random.default_rng(1)
    for _ in range(20):
        points = rng.uniform(-6, 30, (7, 2))  # crosses itself, and the sides of the image
        expected = polygon2mask((24, 20), points[:, ::-1])
        assert (polygon_mask(points, (24, 20)) == expected).all()


def test_lines_and_polygons_outside_of_the_image_are_empty():
    assert not polygon_mask(np.array([[2.0, 2], [9, 9]]), (12, 12)).any()
    assert not polygon_mask(np.array([[20.0, 2], [30, 9], [25, 11]]), (12, 12)).any()
