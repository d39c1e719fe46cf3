import itertools
import math
import statistics

import lesion_d2  # noqa: F401, it makes detectron2 importable
from lesion_d2.modeling.atss import ATSSMatcher
from lesion_d2.structures import Boxes3D

import pytest
import torch
from detectron2.structures import Boxes
from slow_boxes import slow_iou


def grid_anchors(axes, shapes):
    """Two levels over 16 pixels a side: strides 4 and 8, anchors of each (low, high) shape."""
    levels = []
    for stride in (4, 8):
        rows = []
        for center in itertools.product(range(0, 16, stride), repeat=axes):
            for side in shapes:
                half = side * stride / 4
                rows.append([c - half for c in center] + [c + half for c in center])
        levels.append((Boxes, Boxes3D)[axes - 2](torch.tensor(rows)))
    return levels


def written_out(boxes, anchors, num_candidates, per_position, center_inside):
    """The lesion of each anchor, or None, anchor by anchor."""

    def center(box):
        """Of a list of numbers."""
        axes = len(box) // 2
        return [(box[k] + box[k + axes]) / 2 for k in range(axes)]

    every = [anchor for level in anchors for anchor in level.tensor.tolist()]
    found = [(0.0, None)] * len(every)
    for index, box in enumerate(boxes.tensor.tolist()):
        candidates, start = [], 0
        for level in anchors:
            members = range(start, start + len(level))
            near = sorted(members, key=lambda i: math.dist(center(every[i]), center(box)))
            candidates += near[: num_candidates * per_position]
            start += len(level)
        overlaps = [slow_iou(box, every[i]) for i in candidates]
        threshold = statistics.mean(overlaps) + statistics.stdev(overlaps)
        for i, overlap in zip(candidates, overlaps, strict=True):
            half = len(box) // 2
            point = center(every[i])
            inside = all(box[k] < point[k] < box[k + half] for k in range(half))
            if overlap >= threshold and overlap > found[i][0] and (inside or not center_inside):
                found[i] = (overlap, index)
    return [index for _, index in found]


@pytest.mark.parametrize("center_inside", [True, False])
@pytest.mark.parametrize("axes", [2, 3])
def test_it_matches_as_written_out(axes, center_inside):
    anchors = grid_anchors(axes, shapes=(2, 3))
    generator = torch.Generator().manual_seed(axes)
    low = torch.rand(5, axes, generator=generator) * 10
    high = low + 2 + torch.rand(5, axes, generator=generator) * 7
    boxes = type(anchors[0])(torch.cat([low, high], dim=1))
    matcher = ATSSMatcher(3, center_inside)
    matches, labels = matcher(boxes, anchors, [2, 2])
    expected = written_out(boxes, anchors, 3, 2, center_inside)
    pairs = zip(matches.tolist(), labels.tolist(), strict=True)
    found = [match if label == 1 else None for match, label in pairs]
    assert found == expected
    assert len(set(expected)) >= 3 and len(labels) - expected.count(None) >= 3


def test_nothing_matches_without_a_lesion_or_an_overlap():
    anchors = grid_anchors(3, shapes=(2,))
    for boxes in (torch.zeros(0, 6), torch.tensor([[90.0, 90, 90, 95, 95, 95]])):
        _, labels = ATSSMatcher(4)(Boxes3D(boxes), anchors, [1, 1])
        assert labels.shape == (4**3 + 2**3,) and not labels.any()


def test_one_candidate_is_enough():
    anchors = grid_anchors(3, shapes=(2,))[:1]
    matches, labels = ATSSMatcher(1)(Boxes3D(torch.tensor([[3.0, 3, 3, 6, 6, 6]])), anchors, [1])
    assert labels.sum() == 1 and anchors[0][labels.bool()].get_centers().tolist() == [[4, 4, 4]]
    assert matches.max() == 0
