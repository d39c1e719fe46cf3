"""Outlines of lesions, by their diameters or their boxes."""

from lesion_d2.data.transforms.augmentation import AffineTransform
from lesion_d2.data.transforms.lesion_transforms import lesion_outline, transform_lesions

import numpy as np
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from made_up_annotations import OBLIQUE, SIZE, mined_annotation, recist_annotation


def test_outline_fills_the_box():
    outline = lesion_outline(OBLIQUE)
    np.testing.assert_allclose([*outline.min(axis=0), *outline.max(axis=0)], OBLIQUE["bbox"])


def test_outline_without_diameters_is_the_boxs_ellipse():
    x1, y1, x2, y2 = box = [31.7, 50.1, 54.3, 66.9]
    outline = lesion_outline({"bbox": box, "bbox_mode": BoxMode.XYXY_ABS})
    assert [*outline.min(axis=0), *outline.max(axis=0)] == box
    x, y = ((outline - ((x1 + x2) / 2, (y1 + y2) / 2)) / ((x2 - x1) / 2, (y2 - y1) / 2)).T
    np.testing.assert_allclose(np.hypot(x, y), 1)
    # A circle keeps its size in any rotation; its box's corners would reach 1.41 times as far.
    c = np.sqrt(0.5)
    turn = AffineTransform(np.array([[c, -c, 60.0], [c, c, -20.0]]), *SIZE)
    turned = transform_lesions([mined_annotation([30.0, 50.0, 50.0, 70.0])], None, turn, SIZE)
    x1, y1, x2, y2 = turned.gt_boxes.tensor[0].tolist()
    assert 19.9 < x2 - x1 <= 20.001 and 19.9 < y2 - y1 <= 20.001


def test_end_points_on_one_line_keep_their_box():
    level = recist_annotation([40.0, 30.0, 70.0, 30.0, 50.0, 30.0, 58.0, 30.0])
    flipped = transform_lesions([level], None, T.HFlipTransform(SIZE[1]), SIZE)
    np.testing.assert_allclose(flipped.gt_boxes.tensor, [[52, 25, 92, 35]], atol=1e-4)
