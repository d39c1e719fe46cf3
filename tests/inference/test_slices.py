import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.inference.slices import batched_merge_slices, merge_slices

import numpy as np
import pytest
from slow_boxes import slow_iou

BOX = [10.0, 10, 30, 30]
SHIFTED = [15.0, 10, 35, 30]  # IoU 0.6 with BOX


def slow_merge(boxes, scores, slice_ids, threshold):
    """One box, one slice at a time -> [(x1, y1, z1, x2, y2, z2, score, {slice: best box})]."""
    left = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    merged = []
    while left:
        head = left[0]
        matches = [i for i in left if i != head and slow_iou(boxes[i], boxes[head]) > threshold]
        taken, z = {head}, slice_ids[head]
        taken |= {i for i in matches if slice_ids[i] == z}
        ends = []
        for step in (-1, 1):
            place = z
            while found := [i for i in matches if slice_ids[i] == place + step]:
                taken |= set(found)
                place += step
            ends.append(place)
        x1, y1, x2, y2 = boxes[head]
        best = {}
        for i in sorted(taken, key=lambda i: (-scores[i], i)):
            best.setdefault(slice_ids[i], i)
        merged.append((x1, y1, ends[0], x2, y2, ends[1], scores[head], best))
        left = [i for i in left if i not in taken]
    return merged


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_equals_the_slow_loop(dtype):
    rng = np.random.default_rng(0)
    lengths, num_left_out = [], 0
    for threshold in [0.0, 0.1, 0.3, 0.5] * 10:
        count = rng.integers(1, 70)
        low = rng.integers(0, 12, (count, 2))
        boxes = np.concatenate([low, low + rng.integers(0, 12, (count, 2))], axis=1).astype(float)
        scores = rng.integers(0, 30, count) / 29
        offset = -7 if dtype == np.int64 else 100
        slices = (rng.choice([0, 1, 2, 3, 5, 6, 7, 20, 21, 23], count) + offset).astype(dtype)
        boxes3d, new_scores, tracklets = merge_slices(
            boxes, scores, slices, iou_threshold=threshold, return_tracklets=True
        )
        wanted = slow_merge(boxes, scores, slices.tolist(), threshold)
        assert np.column_stack([boxes3d, new_scores]).tolist() == [list(row[:7]) for row in wanted]
        lengths += (boxes3d[:, 5] - boxes3d[:, 2]).tolist()
        assert len(tracklets) == count
        num_left_out += (tracklets < 0).sum()
        for row, (*_, best) in enumerate(wanted):
            assert {slices[i]: i for i in np.flatnonzero(tracklets == row)} == best
            assert sorted(best) == list(range(int(wanted[row][2]), int(wanted[row][5]) + 1))
    assert num_left_out > 50
    assert max(lengths) == 3 and lengths.count(0) > 20 and sum(n > 0 for n in lengths) > 50


def test_a_hole_in_z_splits_a_lesion_in_two():
    slices = np.array([40, 41, 42, 44, 45])
    scores = np.array([0.5, 0.9, 0.6, 0.7, 0.8])
    boxes = np.array([BOX] * 5) + np.arange(5)[:, None]
    boxes3d, new_scores = merge_slices(boxes, scores, slices, iou_threshold=0.1)
    assert boxes3d.tolist() == [[11, 11, 40, 31, 31, 42], [14, 14, 44, 34, 34, 45]]
    assert new_scores.tolist() == [0.9, 0.8]
    # A box on the slice between joins them, but not one that overlaps too little with the best.
    for box, count in ((SHIFTED, 1), ([32.0, 32, 60, 60], 3)):
        joined, _ = merge_slices(
            np.vstack([boxes, box]), np.append(scores, 0.1), [*slices, 43], iou_threshold=0.1
        )
        assert len(joined) == count
        assert joined[0].tolist() == [11, 11, 40, 31, 31, 45 if count == 1 else 42]


def test_neighbors_match_the_best_box_and_need_not_match_each_other():
    left, right = [0.0, 10, 20, 30], [20.0, 10, 40, 30]  # IoU 1/3 with BOX, 0 with each other
    boxes3d, _ = merge_slices([BOX, left, right], [0.9, 0.5, 0.4], [5, 6, 7], iou_threshold=0.2)
    assert boxes3d.tolist() == [[10, 10, 5, 30, 30, 7]]
    # Nor does it help to match a match alone: the chain runs in z, not in the plane.
    boxes3d, _ = merge_slices([left, BOX, right], [0.9, 0.5, 0.4], [5, 6, 7], iou_threshold=0.2)
    assert boxes3d.tolist() == [[0, 10, 5, 20, 30, 6], [20, 10, 7, 40, 30, 7]]


def test_a_box_that_is_taken_connects_nothing_any_more():
    # The best box takes the one between, which would have joined the two others.
    boxes = [[0.0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10], [6, 0, 16, 10]]
    boxes3d, scores = merge_slices(boxes, [0.9, 0.5, 0.8, 0.7], [2, 2, 1, 3], iou_threshold=0.3)
    assert boxes3d[:, [2, 5]].tolist() == [[2, 2], [1, 1], [3, 3]]
    assert scores.tolist() == [0.9, 0.8, 0.7]


def test_classes_are_merged_on_their_own():
    boxes = np.array([BOX, SHIFTED, BOX, SHIFTED, BOX])
    scores, classes = np.array([0.5, 0.6, 0.7, 0.8, 0.4]), np.array([1, 0, 1, 0, 1])
    boxes3d, new_scores, new_classes, tracklets = batched_merge_slices(
        boxes, scores, [3, 3, 4, 5, 6], classes, iou_threshold=0.1, return_tracklets=True
    )
    assert tracklets.tolist() == [1, 2, 1, 0, 3]
    # Class 0 has slices 3 and 5 alone; class 1 has 3 and 4, and 6 beyond a hole.
    assert new_classes.tolist() == [0, 1, 0, 1] and new_scores.tolist() == [0.8, 0.7, 0.6, 0.4]
    assert boxes3d[:, [2, 5]].tolist() == [[5, 5], [3, 4], [3, 3], [6, 6]]
    assert boxes3d[:, 0].tolist() == [15, 10, 15, 10]


def test_no_boxes_are_no_boxes():
    boxes3d, scores = merge_slices(np.empty((0, 4)), [], [], iou_threshold=0.1)
    assert boxes3d.shape == (0, 6) and scores.shape == (0,)
    nothing = batched_merge_slices(np.empty((0, 4)), [], [], [], iou_threshold=0.1)
    assert [part.shape for part in nothing] == [(0, 6), (0,), (0,)]


BAD = [
    ({"boxes": np.zeros((2, 6))}, r"boxes: found shape \(2, 6\), expected \(N, 4\)$"),
    ({"boxes": [BOX, [0, np.nan, 1, 1]]}, r"boxes\[1\]: found .* expected finite numbers"),
    ({"scores": [0.5, np.nan]}, r"scores\[1\]: found nan, expected a finite number of at least 0"),
    ({"scores": [-0.5, 0.5]}, r"scores\[0\]: found -0.5, expected"),
    ({"slice_ids": [1]}, r"slice_ids: found shape \(1,\), expected \(2,\)"),
    ({"slice_ids": [1.0, 2.0]}, "slice_ids: found type float64, expected integers"),
    ({"classes": ["a", "b"]}, "classes: found type <U1, expected integers"),
    ({"iou_threshold": 1}, r"iou_threshold: found 1, expected a number in \[0, 1\)"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_input_stops_with_one_line(changes, message):
    good = {"boxes": [BOX, SHIFTED], "scores": [0.5, 0.4], "slice_ids": [1, 2], "classes": [0, 0]}
    bad = {"iou_threshold": 0.1, **good, **changes}
    with pytest.raises(ValueError, match=message) as error:
        batched_merge_slices(**bad)
    assert "\n" not in str(error.value)
    if "classes" not in changes:
        bad.pop("classes")
        with pytest.raises(ValueError, match=message):
            merge_slices(**bad)
