"""Benchmark of weighted box clustering against a plain loop."""

import time

from lesion_d2.inference import weighted_box_clustering

import numpy as np

from ..inputs import random_boxes
from ..timing import Row, time_calls
from .froc import loop_overlaps

IOU_THRESHOLD = 0.2
_AT_LEAST = 3.7  # times as fast as the loop


def measure_clustering(
    num_images: int = 100, num_views: int = 20, per_view: int = 300
) -> list[Row]:
    """``weighted_box_clustering`` of views that agree, and of views that do not."""
    rng = np.random.default_rng(0)
    views = np.repeat(np.arange(num_views), per_view)
    objects = random_boxes(rng, (num_images, per_view))
    agreeing = np.tile(objects, (1, num_views, 1))
    agreeing += rng.uniform(-3, 3, agreeing.shape)  # by less than the boxes' width
    scattered = random_boxes(rng, (num_images, len(views)))
    scores = rng.uniform(0, 1, (num_images, len(views)))

    def cluster(images: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Boxes and scores of each image, from all its views."""
        arguments = {"iou_threshold": IOU_THRESHOLD, "view_ids": views, "num_views": num_views}
        return [
            weighted_box_clustering(boxes, image_scores, **arguments)
            for boxes, image_scores in zip(images, scores[: len(images)], strict=True)
        ]

    times = time_calls([lambda: cluster(agreeing), lambda: cluster(scattered)], repeats=3)
    seconds = [min(measured.cpu_seconds) for measured in times]
    start = time.process_time()
    loop_boxes, loop_scores = cluster_loop(agreeing[0], scores[0], views, num_views)
    loop = (time.process_time() - start) * num_images
    boxes, new_scores = cluster(agreeing[:1])[0]
    difference = max(np.abs(boxes - loop_boxes).max(), np.abs(new_scores - loop_scores).max())
    size = f"{num_images} images x {num_views} views x {per_view} boxes"
    note = f"CPU time; wall time {times[0].min:.2f} s; {size}"
    return [
        Row("clustering", seconds[0], "s", None, note),
        Row("clustering, random boxes", seconds[1], "s", None, size),
        Row(
            "plain loop / clustering",
            loop / seconds[0],
            "x",
            _AT_LEAST,
            f"one cluster at a time: {loop:.2f} s, from one image; "
            f"boxes and scores differ by at most {difference:.1g}",
            at_least=True,
        ),
    ]


def cluster_loop(
    boxes: np.ndarray, scores: np.ndarray, views: np.ndarray, num_views: int
) -> tuple[np.ndarray, np.ndarray]:
    """Formula (2) of Jaeger et al., section 3.2, one cluster after the other.

    The highest-scoring box is compared with all remaining boxes, and the weighted average of the
    matches is computed, until no box remains.

    Returns:
        (M, 4) or (M, 6) boxes and (M,) scores, descending.
    """
    axes = boxes.shape[1] // 2
    left = np.argsort(-scores, kind="stable")
    clusters = []
    while len(left):
        overlaps = loop_overlaps(boxes[left[0]], boxes[left])
        chosen = overlaps > IOU_THRESHOLD
        members = left[chosen]
        w = overlaps[chosen] * (boxes[members, axes:] - boxes[members, :axes]).prod(axis=1)
        sw = scores[members] * w
        missing = num_views - len(set(views[members].tolist()))
        score = sw.sum() / (w.sum() + missing * w.mean())
        clusters.append((score, (boxes[members] * sw[:, None]).sum(axis=0) / sw.sum()))
        left = left[~chosen]
    clusters.sort(key=lambda cluster: -cluster[0])
    return np.array([box for _, box in clusters]), np.array([score for score, _ in clusters])
