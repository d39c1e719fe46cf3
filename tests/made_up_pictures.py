"""A small slice to draw on, and what is seen of what was drawn."""

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.visualization import LesionVisualizer

import cv2
import numpy as np
from detectron2.structures import BoxMode

SIZE = 64
SCALE = 4  # pictures of side 256


def make_record(boxes, **fields):
    annotations = [
        {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "row": i + 2}
        for i, box in enumerate(boxes)
    ]
    record = {"image_id": "a", "height": SIZE, "width": SIZE, "annotations": annotations}
    return {**record, **fields}


def new_visualizer(gray=90, **marks):
    return LesionVisualizer(np.full((SIZE, SIZE, 3), gray, np.uint8), side=SIZE * SCALE, **marks)


def colored(image, color, tolerance=40):
    """(H, W) bool: pixels close to a color given in 0..1."""
    return (np.abs(image.astype(int) - 255 * np.asarray(color)) < tolerance).all(axis=2)


def displayed(box):
    """A box in pixels of the picture: its coordinates name pixels, 0 is the center of the first."""
    return [min(round((v + 0.5) * SCALE), SIZE * SCALE) for v in box]


def on_edges(mask, box, width=3):
    """Share of the box's outline that has a marked pixel within ``width`` display pixels."""
    x0, y0, x1, y1 = displayed(box)
    near = cv2.dilate(mask.astype(np.uint8), np.ones((2 * width + 1,) * 2, np.uint8)) > 0
    top_bottom = near[[y0, y1], x0 : x1 + 1]
    left_right = near[y0 : y1 + 1, [x0, x1]]
    return np.concatenate([top_bottom.ravel(), left_right.ravel()]).mean()
