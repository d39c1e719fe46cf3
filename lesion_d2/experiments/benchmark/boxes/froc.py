"""Benchmark of the FROC curve against the published algorithm."""

import time

from lesion_d2.evaluation import froc_curve

import numpy as np

from ..inputs import random_boxes
from ..timing import Row, time_calls

# A ratio, because absolute times grow on a loaded machine.
_AT_LEAST = 20


def measure_froc(num_images: int = 5000, per_image: int = 100) -> list[Row]:
    """``froc_curve`` against a loop that visits one detection after the other."""
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, (num_images, per_image))
    lesions = random_boxes(rng, (num_images, 2))
    boxes[:, :2] = lesions + rng.uniform(-3, 3, lesions.shape)
    inputs = list(boxes), list(rng.uniform(0, 1, (num_images, per_image))), list(lesions)
    (ours,) = time_calls([lambda: froc_curve(*inputs)], repeats=9)
    start = time.process_time()
    loop_sensitivity, loop_rate = froc_loop(*inputs)
    loop = time.process_time() - start
    curve = froc_curve(*inputs)
    difference = max(
        np.abs(curve.sensitivity - loop_sensitivity).max(),
        np.abs(curve.fps_per_image - loop_rate).max(),
    )
    note = f"CPU time; wall time {ours.min:.2f} s; {num_images} images x {per_image} detections"
    same = f"loop over descending scores: {loop:.2f} s; curves differ by at most {difference:.1g}"
    ratio = loop / min(ours.cpu_seconds)
    return [
        Row("froc_curve", min(ours.cpu_seconds), "s", None, note),
        Row("published loop / froc_curve", ratio, "x", _AT_LEAST, same, at_least=True),
    ]


def froc_loop(pred_boxes, pred_scores, gt_boxes) -> tuple[np.ndarray, np.ndarray]:
    """The FROC curve by the published algorithm: one detection at a time, by descending score.

    For every detection, its IoU with the image's lesions is computed. It is a false positive if
    no IoU reaches 0.5, and otherwise finds the lesions with that IoU. The two counts so far are the
    curve's next point (the design of 3DCE's published evaluation of DeepLesion).

    Returns:
        Sensitivity and false positives per image, one entry per detection.
    """
    images = np.repeat(np.arange(len(pred_boxes)), [len(boxes) for boxes in pred_boxes])
    boxes, scores = np.concatenate(pred_boxes), np.concatenate(pred_scores)
    found = [np.zeros(len(lesions), bool) for lesions in gt_boxes]
    num_found = num_false = 0
    points = []
    for i in np.argsort(-scores, kind="stable"):
        overlaps = loop_overlaps(boxes[i], gt_boxes[images[i]])
        if len(overlaps) == 0 or overlaps.max() < 0.5:
            num_false += 1
        else:
            for lesion in range(len(overlaps)):
                if overlaps[lesion] >= 0.5 and not found[images[i]][lesion]:
                    found[images[i]][lesion] = True
                    num_found += 1
        points.append((num_found, num_false))
    hits, errors = np.array(points).T
    return hits / sum(map(len, found)), errors / len(pred_boxes)


def loop_overlaps(box: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    """IoU of one box, of 4 or 6 numbers, with the lesions of its image."""
    axes = len(box) // 2
    low = np.maximum(box[:axes], lesions[:, :axes])
    high = np.minimum(box[axes:], lesions[:, axes:])
    shared = np.maximum(high - low, 0).prod(axis=1)
    area = (box[axes:] - box[:axes]).prod()
    return shared / (area + (lesions[:, axes:] - lesions[:, :axes]).prod(axis=1) - shared)
