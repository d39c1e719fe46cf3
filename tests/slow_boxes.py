"""Overlaps of boxes, number by number."""

import math
from collections.abc import Sequence


def slow_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """IoU of two boxes x1, y1, x2, y2, or x1, y1, z1, x2, y2, z2; 0 where none has a size."""
    dims = len(a) // 2

    def size(box: Sequence[float]) -> float:
        return math.prod(box[axis + dims] - box[axis] for axis in range(dims))

    shared = math.prod(
        max(0.0, min(a[axis + dims], b[axis + dims]) - max(a[axis], b[axis]))
        for axis in range(dims)
    )
    union = size(a) + size(b) - shared
    return shared / union if union > 0 else 0.0
