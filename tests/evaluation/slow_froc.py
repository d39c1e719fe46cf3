"""FROC curves one box and one lesion at a time."""

import lesion_d2  # noqa: F401  (makes detectron2 importable)

import numpy as np


def slow_overlap(box, truth, overlap, inclusive):
    dims = len(box) // 2
    axes = [0, 1] if overlap == "p3d" else list(range(dims))
    if overlap == "p3d" and box[2] != truth[2]:
        return 0.0
    extra = 1 if inclusive else 0
    shared = area = truth_area = 1.0
    for a in axes:
        low, high = max(box[a], truth[a]), min(box[a + dims], truth[a + dims])
        shared *= max(high - low + extra, 0)
        area *= box[a + dims] - box[a] + extra
        truth_area *= truth[a + dims] - truth[a] + extra
    whole = area if overlap == "iobb" else area + truth_area - shared
    return shared / whole if whole > 0 else 0.0


def slow_points(boxes, scores, truths, threshold, overlap, inclusive):
    """Distinct scores -> (false positives per image, sensitivity)."""
    points = []
    num_lesions = sum(len(t) for t in truths)
    for cut in sorted({s for image in scores for s in image}, reverse=True):
        false_positives, found = 0, set()
        for i, (image_boxes, image_scores) in enumerate(zip(boxes, scores, strict=True)):
            for box, score in zip(image_boxes, image_scores, strict=True):
                if score < cut:
                    continue
                reached = [
                    (i, j)
                    for j, truth in enumerate(truths[i])
                    if slow_overlap(box, truth, overlap, inclusive) >= threshold
                ]
                false_positives += not reached
                found.update(reached)
        points.append((cut, false_positives / len(boxes), len(found) / num_lesions))
    return points


def random_case(rng, dims, overlap):
    """A few images with boxes on a coarse grid, so that overlaps and scores are often equal."""

    def boxes(count):
        low = rng.integers(0, 6, (count, dims))
        return np.concatenate([low, low + rng.integers(0, 5, (count, dims))], axis=1).astype(float)

    pred, scores, truth = [], [], []
    for _ in range(rng.integers(1, 6)):
        count = rng.integers(0, 7)
        pred.append(boxes(count))
        scores.append(rng.integers(1, 8, count) / 8)
        lesions = boxes(rng.integers(0, 4))
        if overlap == "p3d":
            lesions[:, 5] = lesions[:, 2]
        copied = rng.random(count) < (0.6 if len(lesions) else 0)
        pred[-1][copied] = lesions[rng.integers(0, max(len(lesions), 1), copied.sum())]
        pred[-1][copied, -1] += rng.integers(0, 2, copied.sum())
        if overlap == "p3d":
            pred[-1][:, 5] = pred[-1][:, 2]
        truth.append(lesions)
    if not any(len(lesions) for lesions in truth):
        truth[0] = np.array([[0, 0, 3, 3]] if dims == 2 else [[0, 0, 2, 3, 3, 2]], dtype=float)
    return pred, scores, truth
