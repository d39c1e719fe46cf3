import functools

import lesion_d2
from lesion_d2.inference import batched_track_slices, build_linker, track_slices

import numpy as np
import pytest
from detectron2.config import get_cfg
from slow_boxes import slow_iou

# The slow obvious version: SORT's filter with its full matrices, one lesion at a time.

F = np.eye(7)
F[0, 4] = F[1, 5] = F[2, 6] = 1
H = np.eye(4, 7)
Q = np.diag([1, 1, 1, 1, 0.01, 0.01, 0.0001])
R = np.diag([1, 1, 10, 10])


def measure(box):
    width, height = box[2] - box[0], box[3] - box[1]
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, width * height, width / height])


def place(state):
    width = (state[2] * state[3]) ** 0.5
    height = state[2] / width
    return [
        state[0] - width / 2,
        state[1] - height / 2,
        state[0] + width / 2,
        state[1] + height / 2,
    ]


def slow_assign(ious, threshold):
    """Of all ways to pair rows with columns, the one with the highest sum."""
    num_columns = len(ious[0]) if ious else 0

    @functools.cache
    def best(row, left):
        if row == len(ious):
            return 0.0, ()
        options = [(*best(row + 1, left), None)]
        for column in left:
            if ious[row][column] > 0 and ious[row][column] >= threshold:
                total, pairs = best(row + 1, left - {column})
                options.append((total + ious[row][column], pairs, column))
        total, pairs, column = max(options, key=lambda option: option[0])
        return total, pairs if column is None else ((row, column), *pairs)

    return best(0, frozenset(range(num_columns)))[1]


def slow_pass(boxes, slices, threshold, max_gap):
    """(box, next box) -> IoU."""
    lesions, links = [], {}
    for number in range(min(slices), max(slices) + 1):
        for lesion in lesions:
            if lesion["x"][2] + lesion["x"][6] <= 0:
                lesion["x"][6] = 0
            lesion["x"], lesion["P"] = F @ lesion["x"], F @ lesion["P"] @ F.T + Q
            lesion["gap"] += 1
        found = [i for i, z in enumerate(slices) if z == number]
        ious = [[slow_iou(place(lesion["x"]), boxes[i]) for i in found] for lesion in lesions]
        pairs = slow_assign(ious, threshold)
        for row, column in pairs:
            lesion, i = lesions[row], found[column]
            links[lesion["box"], i] = ious[row][column]
            gain = lesion["P"] @ H.T @ np.linalg.inv(H @ lesion["P"] @ H.T + R)
            lesion["x"] = lesion["x"] + gain @ (measure(boxes[i]) - H @ lesion["x"])
            lesion["P"] = (np.eye(7) - gain @ H) @ lesion["P"]
            lesion["box"], lesion["gap"] = i, -1
        for i in set(found) - {found[column] for _, column in pairs}:
            state = np.append(measure(boxes[i]), [0.0, 0, 0])
            spread = np.diag([10.0] * 4 + [1e4] * 3)
            lesions.append({"x": state, "P": spread, "box": i, "gap": -1})
        lesions = [lesion for lesion in lesions if lesion["gap"] < max_gap]
    return links


def slow_track(boxes, scores, slices, threshold, max_gap):
    """Rows of x1, y1, z1, x2, y2, z2, score, and how many links both passes, one, and none made."""
    down = slow_pass(boxes, slices, threshold, max_gap)
    up = slow_pass(boxes, [-z for z in slices], threshold, max_gap)
    up = {(j, i): iou for (i, j), iou in up.items()}
    links = [link for link in down if link in up]
    num_both = len(links)
    others = {link: iou for link, iou in (down | up).items() if link not in links}
    for link in sorted(others, key=lambda link: -others[link]):
        if all(link[0] != i and link[1] != j for i, j in links):
            links.append(link)
    chains = [{i} for i in range(len(boxes))]
    for i, j in links:
        one, other = (next(c for c in chains if k in c) for k in (i, j))
        chains = [c for c in chains if c is not one and c is not other] + [one | other]
    rows = []
    for chain in chains:
        best = max(chain, key=lambda i: scores[i])
        z = [slices[i] for i in chain]
        x1, y1, x2, y2 = boxes[best]
        rows.append([x1, y1, min(z), x2, y2, max(z), scores[best], sorted(chain)])
    counts = num_both, len(links) - num_both, len(others) - len(links) + num_both
    return sorted(rows, key=lambda row: -row[6]), counts


def make_volume(rng):
    """Up to three lesions that drift, with jitter, gaps, and boxes elsewhere."""
    boxes, slices = [], []
    for _ in range(rng.integers(1, 4)):
        center, size = rng.uniform(10, 30, 2), rng.uniform(8, 16, 2)
        drift = rng.uniform(-2.5, 2.5, 2)
        first = rng.integers(0, 6)
        for z in range(first, first + rng.integers(1, 9)):
            middle = center + drift * (z - first) + rng.normal(0, 1, 2)
            half = size * rng.uniform(0.8, 1.2, 2) / 2
            if rng.uniform() < 0.8:
                boxes.append([*(middle - half), *(middle + half)])
                slices.append(int(z))
    for _ in range(rng.integers(2, 8)):
        low = rng.uniform(5, 35, 2)
        boxes.append([*low, *(low + rng.uniform(6, 14, 2))])
        slices.append(int(rng.integers(0, 12)))
    return np.array(boxes), rng.permutation(len(boxes)) / len(boxes), slices


@pytest.mark.parametrize("max_gap", [0, 1, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.4])
def test_equals_the_slow_version(threshold, max_gap):
    rng = np.random.default_rng([max_gap, int(10 * threshold)])
    counts = np.zeros(3, dtype=int)
    lengths = []

    for _ in range(12):
        boxes, scores, slices = make_volume(rng)
        found, new_scores, tracklets = track_slices(
            boxes,
            scores,
            slices,
            iou_threshold=threshold,
            max_gap=max_gap,
            return_tracklets=True,
        )
        wanted, made = slow_track(boxes.tolist(), scores, slices, threshold, max_gap)
        np.testing.assert_array_equal(
            np.column_stack([found, new_scores]), [row[:7] for row in wanted]
        )
        chains = [np.flatnonzero(tracklets == row).tolist() for row in range(len(wanted))]
        assert chains == [row[7] for row in wanted]
        for chain in chains:
            assert len({slices[i] for i in chain}) == len(chain)
        counts += made
        lengths += (found[:, 5] - found[:, 2]).tolist()
    # Links of both passes, of one, and those left out for others.
    assert counts[0] > 20 and counts[1] > 3 and max(lengths) >= 4 and lengths.count(0) > 10
    assert threshold > 0 or counts[2] > 3


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_direction_does_not_matter(shuffled):
    rng = np.random.default_rng(3)
    for _ in range(20):
        boxes, scores, slices = make_volume(rng)
        order = rng.permutation(len(boxes)) if shuffled else np.arange(len(boxes))
        settings = {"iou_threshold": 0.2, "max_gap": 2}
        found, new_scores = track_slices(boxes, scores, slices, **settings)
        reversed_slices = 100 - np.array(slices)[order]
        other, other_scores = track_slices(boxes[order], scores[order], reversed_slices, **settings)
        other[:, [2, 5]] = 100 - other[:, [5, 2]]
        assert found.tolist() == other.tolist() and new_scores.tolist() == other_scores.tolist()


def row_of(x, y=50.0, size=20.0):
    return [x - size / 2, y - size / 2, x + size / 2, y + size / 2]


def z_of(boxes3d):
    return boxes3d[:, [2, 5]].tolist()


def test_lesions_that_cross_keep_their_ways():
    # Two lesions run through each other along x, at different heights.
    paths = {0: lambda z: (30.0 + 6 * z, 50.0), 1: lambda z: (90.0 - 6 * z, 53.0)}
    boxes, slices, scores = [], [], []
    for z in range(11):
        for lesion, path in paths.items():
            boxes.append(row_of(*path(z)))
            slices.append(z)
            scores.append(0.9 - 0.5 * lesion - 0.01 * z)
    found, new_scores = track_slices(boxes, scores, slices, iou_threshold=0.3, max_gap=1)
    assert z_of(found) == [[0, 10], [0, 10]] and new_scores.tolist() == [0.9, 0.4]
    # A box of the first lesion alone is taken for the first lesion beyond the crossing too: without
    # the second's boxes from slice 5 on there is nothing left for it.
    kept = [i for i in range(22) if not (i % 2 and slices[i] >= 5)]
    arrays = (np.array(values)[kept] for values in (boxes, scores, slices))
    found, _ = track_slices(*arrays, iou_threshold=0.3, max_gap=1)
    assert z_of(found) == [[0, 10], [0, 4]]


@pytest.mark.parametrize(("max_gap", "wanted"), [(0, 3), (1, 2), (2, 1), (5, 1)])
def test_a_gap_is_bridged_by_the_prediction(max_gap, wanted):
    # 9 px a slice: over a gap of two, boxes of 20 px do not overlap at all.
    slices = np.array([10, 11, 12, 14, 15, 18, 19])
    boxes = [row_of(9.0 * z) for z in slices]
    scores = np.linspace(0.9, 0.5, len(slices))
    found, new_scores = track_slices(boxes, scores, slices, iou_threshold=0.3, max_gap=max_gap)
    assert len(found) == wanted and found[0, 2] == 10 and new_scores[0] == 0.9
    assert found[0, 5] == (12, 15, 19)[3 - wanted]
    assert found[0, [0, 1, 3, 4]].tolist() == row_of(90.0)


def test_one_slice_and_boxes_without_an_area():
    boxes = [row_of(50.0), row_of(300.0), [5, 5, 5, 9], [5, 5, 5, 9], [7, 7, 7, 7]]
    found, scores = track_slices(
        boxes, [0.5, 0.9, 0.3, 0.2, 0.1], [4, 4, 4, 5, 5], iou_threshold=0.0, max_gap=1
    )
    assert z_of(found) == [[4, 4], [4, 4], [4, 4], [5, 5], [5, 5]]
    assert scores.tolist() == [0.9, 0.5, 0.3, 0.2, 0.1]
    assert found[0].tolist() == [290, 40, 4, 310, 60, 4]


def test_a_shrinking_lesion_does_not_vanish():
    sizes = [60.0, 40, 25, 14, 9, 8, 8]
    boxes = [row_of(50.0, size=size) for size in sizes]
    found, _ = track_slices(boxes, np.ones(7), range(7), iou_threshold=0.1, max_gap=0)
    assert np.isfinite(found).all() and found[:, 5].max() == 6


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_classes_are_tracked_on_their_own(dtype):
    boxes = [row_of(50.0 + i) for i in range(6)]
    slices = np.array([1, 2, 3, 1, 2, 3], dtype=dtype)
    classes, scores = [0, 1, 0, 1, 0, 1], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    found, new_scores, new_classes, tracklets = batched_track_slices(
        boxes, scores, slices, classes, iou_threshold=0.3, max_gap=0, return_tracklets=True
    )
    assert tracklets.tolist() == [0, 1] * 3
    assert z_of(found) == [[1, 3], [1, 3]] and new_classes.tolist() == [0, 1]
    assert new_scores.tolist() == [0.9, 0.8]
    nothing = batched_track_slices(np.empty((0, 4)), [], [], [], iou_threshold=0.3, max_gap=0)
    assert [part.shape for part in nothing] == [(0, 6), (0,), (0,)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_gap": -1}, "max_gap: found -1, expected at least 0 slices"),
        ({"boxes": np.zeros((1, 6))}, r"boxes: found shape \(1, 6\), expected \(N, 4\)$"),
        ({"slice_ids": [1.5]}, "slice_ids: found type float64, expected integers"),
        ({"iou_threshold": 1.0}, r"iou_threshold: found 1.0, expected a number in \[0, 1\)"),
    ],
)
def test_bad_input_stops_with_one_line(changes, message):
    good = {"boxes": [row_of(9.0)], "scores": [0.5], "slice_ids": [1], "iou_threshold": 0.3}
    with pytest.raises(ValueError, match=message):
        track_slices(**{**good, "max_gap": 1, **changes})


def test_the_config_picks_what_links():
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.TEST.TRACKING.IOU_THRESH = 0.25
    boxes, slices = [row_of(50.0), row_of(50.0), row_of(62.0)], np.array([1, 3, 4])
    arrays = (boxes, [0.9, 0.8, 0.7], slices, [0, 0, 0])
    # IoU of the last two: 0.25. Neighbors' boxes alone are merged, and over a gap some are tracked.
    wanted = {
        ("merge", 1): [[1, 1], [3, 4]],
        ("track", 1): [[1, 4]],
        ("track", 0): [[1, 1], [3, 4]],
    }

    for (linking, max_gap), z in wanted.items():
        cfg.TEST.LINKING, cfg.TEST.TRACKING.MAX_GAP = linking, max_gap
        link = build_linker(cfg)
        assert z_of(link(*arrays)[0]) == z
        parameters = {"iou_threshold": 0.25, "max_gap": max_gap}
        if linking == "merge":
            parameters = {"iou_threshold": 0.1}
        assert (link.name, link.parameters) == (linking, parameters)

    cfg.TEST.LINKING = "chain"
    with pytest.raises(
        ValueError, match=r"TEST.LINKING: found 'chain', expected one of merge, tra"
    ):
        build_linker(cfg)
