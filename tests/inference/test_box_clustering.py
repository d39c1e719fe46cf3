import math

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.inference.box_clustering import (
    OverlapIndex,
    batched_weighted_box_clustering,
    cluster_boxes,
    find_clusters,
    weighted_box_clustering,
)

import numpy as np
import pytest
from slow_boxes import slow_iou

# The slow obvious version: one cluster, one member, one coordinate at a time.


def slow_area(box):
    dims = len(box) // 2
    return math.prod(box[a + dims] - box[a] for a in range(dims))


def slow_owners(boxes, scores, classes, threshold):
    left = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    owners = [-1] * len(boxes)
    while left:
        head = left[0]
        taken = [head] + [
            i
            for i in left[1:]
            if classes[i] == classes[head] and slow_iou(boxes[i], boxes[head]) > threshold
        ]
        for i in taken:
            owners[i] = head
        left = [i for i in left if i not in taken]
    return owners


def slow_clusters(boxes, scores, classes, threshold, views, num_views, centers):
    """Formula (2) -> [(score, class, box)] by falling score."""
    owners = slow_owners(boxes, scores, classes, threshold)
    found = []
    for head in set(owners):
        members = [i for i in range(len(boxes)) if owners[i] == head]
        w = {
            i: (1.0 if i == head else slow_iou(boxes[i], boxes[head]))
            * slow_area(boxes[i])
            * centers[i]
            for i in members
        }
        if sum(w.values()) == 0:
            w = dict.fromkeys(members, 1.0)
        expected = sum(num_views[i] for i in members) / len(members)
        missing = max(0, expected - len({views[i] for i in members}))
        mean = sum(w.values()) / len(members)
        score = sum(scores[i] * w[i] for i in members) / (sum(w.values()) + missing * mean)
        whole = sum(scores[i] * w[i] for i in members)
        box = list(boxes[head])
        if whole > 0:
            box = [
                sum(boxes[i][c] * scores[i] * w[i] for i in members) / whole
                for c in range(len(box))
            ]
        found.append((score, classes[head], box))
    return sorted(found, key=lambda cluster: -cluster[0])


def random_boxes(rng, count, dims, *, grid=False):
    """Boxes that overlap a lot; on a grid many of them are equal, and some have no area."""
    low = rng.integers(-2, 2, (count, dims)) if grid else rng.uniform(-5, 10, (count, dims))
    extents = rng.integers(1, 5, (count, dims)) if grid else rng.uniform(5, 30, (count, dims))
    if grid:
        extents[rng.random(count) < 0.1, 0] = 0
    return np.concatenate([low, low + extents], axis=1).astype(float)


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_clusters_are_those_of_the_slow_loop(dims, grid):
    rng = np.random.default_rng(dims)
    sizes = []
    for threshold in [0.0, 0.1, 0.2, 0.25, 0.5, 0.9] * 8:
        boxes = random_boxes(rng, rng.integers(1, 60), dims, grid=grid)
        if rng.random() < 0.3:
            boxes[0] = [-500] * dims + [500] * dims  # one that is much larger than the others
        scores = rng.integers(0, 6, len(boxes)) / 5 if grid else rng.random(len(boxes))
        owners = cluster_boxes(boxes, scores, iou_threshold=threshold)
        assert owners.tolist() == slow_owners(boxes, scores, [0] * len(boxes), threshold)
        sizes += np.bincount(owners).tolist()
    assert sizes.count(1) > 100 and sum(size > 3 for size in sizes) > 25


@pytest.mark.parametrize("dims", [2, 3])
def test_all_boxes_over_the_threshold_are_found_far_from_the_origin(dims):
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 80, dims) + 1e6
    for threshold in (0.0, 0.3, 0.7):
        index = OverlapIndex(boxes, threshold)
        for i, box in enumerate(boxes):
            wanted = {j for j in range(80) if slow_iou(box, boxes[j]) > threshold}
            assert set(index.matches(i).tolist()) == wanted


@pytest.mark.parametrize("start", [0.0, 1e5])
@pytest.mark.parametrize("shift", [0.0, 3.0, 29.99])
def test_boxes_as_far_apart_as_the_threshold_allows_are_found(start, shift):
    # The same in y; in x the narrow one lies at an end of the wide one, IoU 10 / 39.99.
    wide = [start, 0, start + 39.99, 5]
    narrow = [start + shift, 0, start + shift + 10, 5]
    index = OverlapIndex(np.array([wide, narrow]), 0.25)
    assert sorted(index.matches(0)) == sorted(index.matches(1)) == [0, 1]
    # As wide as each other, IoU 6.01 / (2 * 10 - 6.01).
    index = OverlapIndex(np.array([narrow, narrow + np.array([3.99, 0, 3.99, 0])]), 6 / 14)
    assert sorted(index.matches(0)) == sorted(index.matches(1)) == [0, 1]


def test_overlap_equal_to_the_threshold_is_not_enough():
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 1], [0, 0, 10, 5]])
    for threshold, owners in ((0.0999, [0, 0, 0]), (0.1, [0, 1, 0]), (0.5, [0, 1, 2])):
        found = cluster_boxes(boxes, [0.9, 0.8, 0.7], iou_threshold=threshold)
        assert found.tolist() == owners


@pytest.mark.parametrize("per_box", [False, True])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_equals_formula_2_written_out(dims, grid, centered, per_box):
    rng = np.random.default_rng(dims)
    num_members = num_missing = 0
    for threshold in [0.0, 0.1, 0.2, 0.5] * 6:
        count = rng.integers(1, 60)
        boxes = random_boxes(rng, count, dims, grid=grid)
        # Distinct scores, so that the order of the output is given; some clusters have only 0.
        scores = np.where(rng.random(count) < 0.9, rng.permutation(count) / count, 0)
        classes, views = rng.integers(-1, 3, count), rng.choice([-7, 0, 3, 10**12], count)
        centers = rng.choice([0.0, 0.3, 1.0], count) if centered else None
        num_views = rng.integers(1, 9, count) if per_box else 6
        arguments = {"view_ids": views, "num_views": num_views, "center_weights": centers}
        found = find_clusters(boxes, scores, classes, iou_threshold=threshold, **arguments)
        p = np.ones(count) if centers is None else centers
        per_place = np.broadcast_to(num_views, count)
        wanted = slow_clusters(boxes, scores, classes, threshold, views, per_place, p)
        assert found.scores == pytest.approx([cluster[0] for cluster in wanted], abs=1e-12)
        assert (np.diff(found.scores) <= 0).all()
        # Clusters with the same score may change places.
        ours = zip(found.scores.round(9), found.classes, found.boxes.round(6).tolist(), strict=True)
        theirs = [(round(s, 9), k, np.round(box, 6).tolist()) for s, k, box in wanted]
        assert sorted(ours) == sorted(theirs)
        # What else the clusters tell is true.
        owners = np.array(slow_owners(boxes, scores, classes, threshold))
        assert (classes == found.classes[found.members]).all()
        together = found.members[:, None] == found.members
        assert (together == (owners[:, None] == owners)).all()
        for row, box in enumerate(found.boxes):
            shares = found.weights * (found.members == row)
            assert shares.sum() == pytest.approx(1) and shares.min() >= 0
            assert shares @ boxes == pytest.approx(box)
        num_members += len(boxes) - len(found.boxes)
        num_missing += (np.bincount(found.members) < 6).sum()
    assert num_members > 100 and num_missing > 50


def test_one_class_and_many_are_thin_over_the_clusters():
    rng = np.random.default_rng(0)
    boxes, scores, classes = random_boxes(rng, 40, 2), rng.random(40), rng.integers(0, 2, 40)
    views = np.array(["model 0", "model 1, x"])[rng.integers(0, 2, 40)].tolist()
    arguments = {"iou_threshold": 0.2, "num_views": 3}
    found = find_clusters(boxes, scores, classes, view_ids=views, **arguments)
    batched = batched_weighted_box_clustering(boxes, scores, classes, view_ids=views, **arguments)
    for ours, theirs in zip(batched, (found.boxes, found.scores, found.classes), strict=True):
        assert (ours == theirs).all()
    for number in (0, 1):
        of_class = classes == number
        one = [np.array(views)[of_class], boxes[of_class], scores[of_class]]
        new_boxes, new_scores = weighted_box_clustering(*one[1:], view_ids=one[0], **arguments)
        assert (new_boxes == found.boxes[found.classes == number]).all()
        assert (new_scores == found.scores[found.classes == number]).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_identical_views_change_nothing(dims):
    rng = np.random.default_rng(0)
    low = 100 * np.arange(30)[:, None] + rng.uniform(0, 30, (30, dims))
    boxes = np.concatenate([low, low + rng.uniform(1, 60, (30, dims))], axis=1)
    scores = np.sort(rng.random(30))[::-1]
    views = np.repeat(np.arange(20), 30)
    new_boxes, new_scores = weighted_box_clustering(
        np.tile(boxes, (20, 1)),
        np.tile(scores, 20),
        iou_threshold=0.2,
        view_ids=views,
        num_views=20,
    )
    assert (new_boxes == boxes).all() and (new_scores == scores).all()  # to the last bit


def test_a_missing_view_counts_with_the_mean_weight():
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 8]])
    scores = np.array([0.9, 0.5])
    arguments = {"iou_threshold": 0.2, "view_ids": [4, 9]}
    w = np.array([100, 0.8 * 80])  # f a
    for num_views in (2, 3, 5):
        (box,), (score,) = weighted_box_clustering(boxes, scores, num_views=num_views, **arguments)
        assert score == pytest.approx((scores @ w) / (w.sum() + (num_views - 2) * w.mean()))
        bottom = (10 * 0.9 * 100 + 8 * 0.5 * 64) / (0.9 * 100 + 0.5 * 64)
        assert box == pytest.approx([0, 0, 10, bottom])
    # Two boxes of one view are one view; four views of one place and two of the other are three.
    arguments["view_ids"] = [4, 4]
    for num_views, expected in ((3, 3), ([4, 2], 3), ([1, 1], 1)):
        _, score = weighted_box_clustering(boxes, scores, num_views=num_views, **arguments)
        assert score == pytest.approx((scores @ w) / (w.sum() + (expected - 1) * w.mean()))


@pytest.mark.parametrize("dims", [2, 3])
def test_order_does_not_matter(dims):
    rng = np.random.default_rng(1)
    boxes, scores = random_boxes(rng, 200, dims), rng.random(200)
    views, centers = rng.integers(0, 5, 200), rng.random(200)
    arguments = {"iou_threshold": 0.3, "num_views": 5}
    results = []
    for order in (np.arange(200), rng.permutation(200)):
        rows = {"view_ids": views[order], "center_weights": centers[order]}
        results.append(weighted_box_clustering(boxes[order], scores[order], **rows, **arguments))
    for first, second in zip(*results, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-12)


def test_the_first_of_equal_scores_leads():
    boxes = np.array([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])  # a chain
    scores = np.array([0.5, 0.5, 0.5])
    assert cluster_boxes(boxes, scores, iou_threshold=0.2).tolist() == [0, 0, 2]
    assert cluster_boxes(boxes[[1, 0, 2]], scores, iou_threshold=0.2).tolist() == [0, 0, 0]
    found = find_clusters(
        boxes, scores, [1, 1, 0], iou_threshold=0.2, view_ids=[0, 1, 0], num_views=[2, 2, 1]
    )
    assert found.scores.tolist() == [0.5, 0.5] and found.classes.tolist() == [1, 0]


def test_no_weight_and_no_score_divide_by_nothing():
    arguments = {"iou_threshold": 0.2, "view_ids": [0, 1], "num_views": 2}
    two = np.array([[0.0, 0, 10, 10], [0, 0, 10, 6]])
    points = np.array([[5.0, 5, 5, 5], [5, 5, 5, 5]])  # no area: alone, with half the views
    with np.errstate(all="raise"):
        new_boxes, scores = weighted_box_clustering(points, [0.4, 0.8], **arguments)
        assert new_boxes.tolist() == points.tolist() and scores == pytest.approx([0.4, 0.2])
        new_boxes, scores = weighted_box_clustering(two, [0.0, 0.0], **arguments)
        assert new_boxes.tolist() == two[:1].tolist() and scores.tolist() == [0]
        no_weight = {"center_weights": [0, 0], **arguments}
        new_boxes, scores = weighted_box_clustering(two, [0.75, 0.25], **no_weight)
        assert new_boxes == pytest.approx(np.array([[0, 0, 10, 9]])) and scores == [0.5]
        # The one with a weight has no score: the best box keeps its place.
        half = find_clusters(two, [0.6, 0.0], [0, 0], center_weights=[0, 1], **arguments)
        assert half.boxes.tolist() == two[:1].tolist() and half.scores.tolist() == [0]
        assert half.weights.tolist() == [1, 0]


@pytest.mark.parametrize("columns", [4, 6])
def test_no_boxes_are_no_clusters(columns):
    nothing = {"iou_threshold": 0.2, "view_ids": [], "num_views": 4}
    boxes, scores, classes = batched_weighted_box_clustering(
        np.empty((0, columns)), np.empty(0), np.empty(0), **nothing
    )
    assert boxes.shape == (0, columns) and scores.shape == classes.shape == (0,)
    assert classes.dtype == np.int64
    found = find_clusters(boxes, [], [], iou_threshold=0.2, view_ids=[], num_views=[])
    assert found.members.shape == found.weights.shape == (0,)
    assert weighted_box_clustering(boxes, scores, **nothing)[0].shape == (0, columns)
    assert cluster_boxes(boxes, scores, iou_threshold=0.2).shape == (0,)


BAD = [
    ({"boxes": np.zeros((2, 5))}, r"boxes: found shape \(2, 5\), expected \(N, 4\) or \(N, 6\)"),
    ({"boxes": np.zeros(4)}, r"boxes: found shape \(4,\), expected"),
    ({"boxes": [[0, 0, 1, 1], [0, 0, np.nan, 1]]}, r"boxes\[1\]: found .* expected finite numbers"),
    ({"boxes": [[0, 0, 1, np.inf], [0, 0, 1, 1]]}, r"boxes\[0\]: found .* expected finite numbers"),
    ({"boxes": [[0, 0, 1, 1], [2, 0, 1, 1]]}, r"boxes\[1\]: found .* no end before its start"),
    ({"scores": [0.5]}, r"scores: found shape \(1,\), expected \(2,\)"),
    ({"scores": [0.5, np.nan]}, r"scores\[1\]: found nan, expected a finite number of at least 0"),
    ({"scores": [np.inf, 0.5]}, r"scores\[0\]: found inf, expected a finite"),
    ({"scores": [0.5, -0.1]}, r"scores\[1\]: found -0.1, expected a finite"),
    ({"classes": [0, 1, 2]}, r"classes: found shape \(3,\), expected \(2,\)"),
    ({"classes": [0.5, 1]}, "classes: found type float64, expected integers"),
    ({"iou_threshold": 1.0}, r"iou_threshold: found 1.0, expected a number in \[0, 1\)"),
    ({"iou_threshold": -0.1}, "iou_threshold: found -0.1, expected"),
    ({"iou_threshold": np.nan}, "iou_threshold: found nan, expected"),
    ({"view_ids": [0]}, r"view_ids: found shape \(1,\), expected \(2,\)"),
    ({"view_ids": [0.0, np.nan]}, "view_ids: found type float64, expected integers or strings"),
    ({"num_views": 1}, "num_views: found 1, expected at least 2, the number of"),
    ({"num_views": 0, "view_ids": [3, 3]}, r"num_views\[0\]: found 0.0, expected .* at least 1"),
    ({"num_views": np.nan}, r"num_views\[0\]: found nan, expected"),
    ({"num_views": [2, 0]}, r"num_views\[1\]: found 0.0, expected"),
    ({"num_views": [2, 2, 2]}, r"num_views: found shape \(3,\), expected \(2,\)"),
    ({"center_weights": [1.0]}, r"center_weights: found shape \(1,\), expected \(2,\)"),
    ({"center_weights": [1, -1]}, r"center_weights\[1\]: found -1.0, expected"),
    ({"center_weights": [np.nan, 1]}, r"center_weights\[0\]: found nan, expected"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_input_stops_with_one_line(changes, message):
    good = {"boxes": [[0, 0, 1, 1], [0, 0, 1, 2]], "scores": [0.5, 0.4], "classes": [0, 0]}
    good |= {"iou_threshold": 0.2, "view_ids": [0, 1], "num_views": 2}
    assert len(find_clusters(**good).scores) == 1
    with pytest.raises(ValueError, match=message) as error:
        find_clusters(**{**good, **changes})
    assert "\n" not in str(error.value)
