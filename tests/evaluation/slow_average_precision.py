"""Average precision one detection at a time."""

import numpy as np
from slow_boxes import slow_iou


def slow_average_precision(boxes, scores, truth, threshold):
    outcomes = []
    for case in range(len(truth)):
        free = [list(lesion) for lesion in truth[case]]
        for k in sorted(range(len(boxes[case])), key=lambda k, s=scores[case]: -s[k]):
            ious = [slow_iou(boxes[case][k], lesion) for lesion in free]
            hit = bool(ious) and max(ious) >= threshold
            if hit:
                free.pop(ious.index(max(ious)))
            outcomes.append((scores[case][k], hit))
    outcomes.sort(key=lambda outcome: -outcome[0])
    num_lesions = sum(map(len, truth))
    points, hits = [], 0
    for rank, (_, hit) in enumerate(outcomes, start=1):
        hits += hit
        points.append((hits / num_lesions, hits / rank))
    recalls = np.linspace(0, 1, 101)
    return np.mean([max((p for r, p in points if r >= x), default=0) for x in recalls])
