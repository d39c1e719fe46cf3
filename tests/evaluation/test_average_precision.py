import math

from lesion_d2.evaluation import (
    AP_METHODS,
    detection_average_precision,
    ranking_average_precision,
)

import numpy as np
import pytest
from made_up_lesions import coco_average_precision
from slow_average_precision import slow_average_precision


def make_case(seed, dims, num_cases=25):
    """Boxes near most lesions, and others; scores are often equal."""
    rng = np.random.default_rng(seed)
    truth, boxes, scores = [], [], []
    for _ in range(num_cases):
        low = rng.uniform(0, 60, (rng.integers(0, 4), dims))
        lesions = np.concatenate([low, low + rng.uniform(8, 30, low.shape)], axis=1)
        near = np.repeat(lesions, rng.integers(0, 3, len(lesions)), axis=0)
        near = near + rng.uniform(-4, 4, near.shape)
        low = rng.uniform(0, 60, (rng.integers(0, 3), dims))
        found = np.concatenate([near, np.concatenate([low, low + 12], axis=1)])
        truth.append(lesions)
        boxes.append(found)
        scores.append(rng.integers(1, 40, len(found)) / 40)
    return boxes, scores, truth


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_it_is_that_of_coco(seed, threshold):
    case = make_case(seed, 2)
    expected = coco_average_precision(*case, threshold)
    assert 0.1 < expected < 0.95
    found = detection_average_precision(*case, iou_threshold=threshold)
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.1, 0.3])
def test_in_3d_against_a_written_out_version(seed, threshold):
    case = make_case(seed, 3)
    expected = slow_average_precision(*case, threshold)
    assert 0.1 < expected < 0.95
    found = detection_average_precision(*case, iou_threshold=threshold)
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_repeat_is_an_error_and_the_second_best_lesion_is_taken():
    lesions = [np.array([[0, 0, 10, 10], [0, 0, 10, 20]], float)]
    boxes = [np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 9, 9]], float)]
    scores = [np.array([0.9, 0.8, 0.7])]
    # The second box overlaps the first lesion most, which is taken, and takes the other one.
    found = detection_average_precision(boxes, scores, lesions, iou_threshold=0.4)
    assert found == 1
    # Where it is not near enough to that one it is an error, and no box finds it.
    found = detection_average_precision(boxes, scores, lesions, iou_threshold=0.46)
    assert found == pytest.approx(51 / 101)


def test_no_lesions_and_no_detections():
    box, none = np.ones((1, 6)), np.zeros((0, 6))
    for method in AP_METHODS:
        case = [box], [np.ones(1)], [none]
        assert math.isnan(detection_average_precision(*case, method=method))
        assert detection_average_precision([none], [np.zeros(0)], [box], method=method) == 0
    with pytest.raises(ValueError, match="method: found 'voc', expected one of coco, all_points"):
        detection_average_precision(*case, method="voc")


def test_all_points_by_hand():
    """A repeated hit is an error, of either lesion that it repeats; no recall is rounded."""
    lesions = [np.array([[0.0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60]])]
    both, third, nothing = [0.0, 0, 10, 11], [50.0, 50, 60, 60], [90.0, 90, 95, 95]
    boxes = [np.array([both, both, nothing, third])]
    scores = [np.array([0.9, 0.8, 0.7, 0.6])]
    # Found and claimed: 2 of 2, 2 of 4, 2 of 5, 3 of 6.
    found = detection_average_precision(*(boxes, scores, lesions), method="all_points")
    assert found == pytest.approx(2 / 3 + 1 / 3 * 3 / 6)
    # COCO: hit, hit (the other lesion), error, hit; recalls to 0.66 at 1, the others at 3 of 4.
    found = detection_average_precision(boxes, scores, lesions)
    assert found == pytest.approx((67 + 34 * 3 / 4) / 101)
    # Ties are one step: all of them claim 6, whatever their order.
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        found = detection_average_precision(
            [boxes[0][order]], [np.full(4, 0.5)], lesions, method="all_points"
        )
        assert found == pytest.approx(3 / 6)


@pytest.mark.parametrize("method", AP_METHODS)
def test_inclusive_boxes_are_a_pixel_wider(method):
    boxes, scores, truth = make_case(5, 3)
    wider = [[b + np.repeat([0, 1], 3) for b in part] for part in (boxes, truth)]
    wider = [[np.array(b).reshape(-1, 6) for b in part] for part in wider]
    settings = {"iou_threshold": 0.4, "method": method}
    found = detection_average_precision(boxes, scores, truth, inclusive=True, **settings)
    assert found == pytest.approx(
        detection_average_precision(wider[0], scores, wider[1], **settings)
    )
    assert found > detection_average_precision(boxes, scores, truth, **settings)
    assert math.isnan(ranking_average_precision(np.ones(2), np.zeros(2, bool)))


@pytest.mark.parametrize("seed", range(5))
def test_ranking_against_a_written_out_version(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, 30) / 12
    positive = rng.random(30) < 0.4
    expected, before = 0.0, 0.0
    for level in sorted(set(scores), reverse=True):
        above = [p for s, p in zip(scores, positive, strict=True) if s >= level]
        recall = sum(above) / positive.sum()
        expected += (recall - before) * sum(above) / len(above)
        before = recall
    assert 0.2 < expected < 0.9
    assert ranking_average_precision(scores, positive) == pytest.approx(expected, abs=1e-12)
    order = rng.permutation(30)
    shuffled = ranking_average_precision(scores[order], positive[order])
    assert shuffled == pytest.approx(expected, abs=1e-12)


def test_ranking_by_hand():
    scores, positive = np.array([0.9, 0.8, 0.7, 0.0]), np.array([True, False, True, False])
    assert ranking_average_precision(scores, positive) == pytest.approx((1 + 2 / 3) / 2)
    assert ranking_average_precision(np.zeros(4), positive) == 0.5
