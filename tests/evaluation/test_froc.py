import csv
from pathlib import Path

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.evaluation import froc_curve, match_detections, match_images
from lesion_d2.evaluation.matching import paired_overlaps

import numpy as np
import pytest
from slow_froc import random_case, slow_points

REAL_BOXES = Path(__file__).parents[2].parent / "shared" / "data" / "deeplesion_val_boxes.csv"

RATES = [0.0, 0.1, 0.25, 0.5, 1, 1.5, 2, 4, 8, 16]


# The slow obvious version: one box, one pair, one threshold at a time.


def slow_at(points, rate):
    best = {}
    for _, fps, sensitivity in points:
        best[fps] = max(sensitivity, best.get(fps, 0))
    if not best or rate < min(best):
        return 0.0
    below = max(fps for fps in best if fps <= rate)
    above = [fps for fps in best if fps > rate]
    if not above:
        return best[below]
    share = (rate - below) / (min(above) - below)
    return best[below] + share * (best[min(above)] - best[below])


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize(
    "dims, overlap", [(2, "iou"), (2, "iobb"), (3, "iou"), (3, "iobb"), (3, "p3d")]
)
def test_equals_the_slow_loop(dims, overlap, inclusive):
    rng = np.random.default_rng(dims)
    steps = 0
    for _ in range(80):
        threshold = rng.choice([0.1, 0.25, 0.5, 1.0])
        pred, scores, truth = random_case(rng, dims, overlap)
        curve = froc_curve(
            pred, scores, truth, iou_threshold=threshold, overlap=overlap, inclusive=inclusive
        )
        points = slow_points(pred, scores, truth, threshold, overlap, inclusive)
        expected = {cut: (fps, sensitivity) for cut, fps, sensitivity in points}
        order = np.sort(np.concatenate(scores))[::-1]
        np.testing.assert_array_equal(curve.thresholds, order)
        wanted = np.array([expected[cut] for cut in order]).reshape(-1, 2)
        np.testing.assert_allclose(curve.fps_per_image, wanted[:, 0], rtol=1e-12)
        np.testing.assert_allclose(curve.sensitivity, wanted[:, 1], rtol=1e-12)
        np.testing.assert_allclose(
            curve.at(RATES), [slow_at(points, rate) for rate in RATES], rtol=1e-12, atol=1e-12
        )
        steps += sum(fps > 0 and sensitivity > 0 for _, fps, sensitivity in points)
    assert steps > 100  # the cases are not empty of hits and errors


def test_example_by_hand():
    # Image 0: two lesions, overlapping each other; image 1: one lesion; image 2: none.
    truth = [
        np.array([[0.0, 0, 10, 10], [0, 0, 10, 12]]),
        np.array([[50.0, 50, 60, 60]]),
        np.empty((0, 4)),
    ]
    pred = [
        np.array([[0.0, 0, 10, 10], [0, 0, 10, 11], [30, 30, 40, 40]]),
        np.array([[50.0, 55, 60, 65]]),  # IoU 1/3
        np.array([[1.0, 1, 5, 5]]),
    ]
    scores = [np.array([0.9, 0.8, 0.4]), np.array([0.6]), np.array([0.4])]
    curve = froc_curve(pred, scores, truth)
    assert curve.thresholds.tolist() == [0.9, 0.8, 0.6, 0.4, 0.4]
    # 0.9 finds both lesions, 0.8 repeats them, 0.6 misses, and the two errors at 0.4 are one step.
    np.testing.assert_allclose(curve.fps_per_image, [0, 0, 1 / 3, 1, 1])
    np.testing.assert_allclose(curve.sensitivity, [2 / 3] * 5)
    assert froc_curve(pred, scores, truth, iou_threshold=0.3).sensitivity[-1] == 1
    np.testing.assert_allclose(curve.at([0, 0.5, 16]), [2 / 3] * 3)


def test_at_is_zero_before_the_first_point_and_linear_after():
    lesion, off = [0.0, 0, 10, 10], [20.0, 20, 30, 30]
    pred = [np.array([off, lesion]), np.array([off, off, lesion])]
    scores = [np.array([0.9, 0.8]), np.array([0.7, 0.6, 0.5])]
    curve = froc_curve(pred, scores, [np.array([lesion])] * 2)
    # Points: (0.5, 0) (0.5, 1/2) (1, 1/2) (1.5, 1/2) (1.5, 1)
    np.testing.assert_allclose(
        curve.at([0.25, 0.49, 0.5, 0.75, 1, 1.25, 1.5, 9]), [0, 0, 0.5, 0.5, 0.5, 0.75, 1, 1]
    )


def test_reaching_the_threshold_is_enough():
    half, lesion = [np.array([[0.0, 0, 10, 5]])], [np.array([[0.0, 0, 10, 10]])]
    assert froc_curve(half, [[0.5]], lesion).sensitivity[-1] == 1
    assert froc_curve(half, [[0.5]], lesion, iou_threshold=0.51).sensitivity[-1] == 0


def test_inclusive_counts_whole_pixels():
    # 10 x 5 of 10 x 10 pixels; without the extra pixel 9 x 4 of 9 x 9.
    pred, lesion = [np.array([[0.0, 0, 9, 4]])], [np.array([[0.0, 0, 9, 9]])]
    assert froc_curve(pred, [[0.5]], lesion, inclusive=True).sensitivity[-1] == 1
    assert froc_curve(pred, [[0.5]], lesion).sensitivity[-1] == 0


@pytest.mark.skipif(not REAL_BOXES.is_file(), reason=f"needs {REAL_BOXES}, DeepLesion's boxes")
def test_what_inclusive_boxes_are_worth_on_real_ones():
    """Hits at an IoU of 0.5 of boxes whose sides are off by 2.78 px (standard deviation).

    The figure that stands in the READMEs: of lesions with sides under 20 px, 78.1 % and 82.6 %.
    """
    with REAL_BOXES.open() as file:
        rows = [[float(row[k]) for k in ("x1", "y1", "x2", "y2")] for row in csv.DictReader(file)]
    boxes = np.array(rows)
    small = np.repeat(boxes[(boxes[:, 2:] - boxes[:, :2]).max(axis=1) < 20], 40, axis=0)
    found = small + np.random.default_rng(0).normal(0, 2.78, small.shape)
    found[:, 2:] = np.maximum(
        found[:, 2:], found[:, :2]
    )  # one end too far over is a box of no area
    hits = [(paired_overlaps(found, small, inclusive=i) >= 0.5).mean() for i in (False, True)]
    np.testing.assert_allclose(hits, [0.781, 0.826], atol=0.006)


def on_slices(boxes):
    """A tracklet's boxes {slice: x1, y1, x2, y2} as rows."""
    return np.array([[x1, y1, z, x2, y2, z] for z, (x1, y1, x2, y2) in boxes.items()], dtype=float)


def test_p3d_looks_up_the_tracklets_box_on_the_key_slice():
    lesion = [np.array([[0.0, 0, 7, 10, 10, 7]])]
    there, elsewhere = (0, 0, 10, 9), (4, 4, 14, 14)
    for tracklet, hit in [
        ({6: elsewhere, 7: there, 8: elsewhere}, 1),
        ({7: there}, 1),
        (
            {6: there, 7: elsewhere, 8: there},
            0,
        ),  # one range, and the place that counts is not there
        ({6: there, 8: there}, 0),  # a gap where it counts
        ({8: there, 9: there}, 0),
    ]:
        curve = froc_curve(
            [on_slices(tracklet)],
            [[0.5]],
            lesion,
            overlap="p3d",
            tracklets=[np.zeros(len(tracklet), dtype=int)],
        )
        assert curve.sensitivity.tolist() == [hit] and curve.fps_per_image.tolist() == [1 - hit]


def test_no_detections_no_lesions():
    none, box = np.empty((0, 4)), np.array([[0.0, 0, 10, 10]])
    curve = froc_curve([none, none], [[], []], [box, none])
    assert len(curve.thresholds) == 0
    assert curve.at(RATES).tolist() == [0] * len(RATES)
    curve = froc_curve([box, box], [[0.3], [0.2]], [none, none])
    assert curve.fps_per_image.tolist() == [0.5, 1]
    assert np.isnan(curve.sensitivity).all()
    assert np.isnan(curve.at(RATES)).all()
    assert np.isnan(froc_curve([[]], [[]], [[]]).at(RATES)).all()


def test_boxes_without_area_hit_nothing():
    point = np.array([[3.0, 3, 3, 3]])
    assert froc_curve([point], [[0.5]], [point]).sensitivity.tolist() == [0]
    assert froc_curve([point], [[0.5]], [point], inclusive=True).sensitivity.tolist() == [1]


def test_match_detections_tells_hits_repeats_and_errors():
    truth = np.array([[0.0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]])
    boxes = np.array([[0.0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 59], [20, 20, 25, 25]])
    matches = match_detections(boxes, np.array([0.5, 0.9, 0.5, 0.95]), truth)
    assert matches.lesions.tolist() == [0, 0, 1, -1]
    assert matches.finds.tolist() == [False, True, True, False]
    assert matches.repeats.tolist() == [True, False, False, False]
    assert matches.false_positives.tolist() == [False, False, False, True]
    assert matches.found_scores.tolist() == [0.9, 0.5, -np.inf]


def test_match_names_the_lesion_with_most_overlap():
    truth = np.array([[0.0, 0, 10, 12], [0, 0, 10, 10], [0, 0, 10, 14]])
    matches = match_images(
        [np.empty((0, 4)), np.array([[0.0, 0, 10, 10]])], [[], [0.5]], [truth[:1], truth]
    )
    assert matches.images.tolist() == [1]
    assert matches.lesions.tolist() == [1]
    assert matches.found_scores.tolist() == [-np.inf, 0.5, 0.5, 0.5]


BOX = np.array([[0.0, 0, 10, 10]])
VOLUME = np.array([[0.0, 0, 0, 10, 10, 5]])
KEY = np.array([[0.0, 0, 3, 10, 10, 3]])
P3D = {"overlap": "p3d"}


@pytest.mark.parametrize(
    "args, settings, message",
    [
        (([BOX], [[0.5]], []), {}, "1, 1 and 0 entries"),
        (([], [], []), {}, "found no image, expected one"),
        (([BOX], [[0.5, 0.4]], [BOX]), {}, "image 0: found 1 pred_boxes and 2 pred_scores"),
        (([BOX, BOX[0]], [[0.5]] * 2, [BOX] * 2), {}, r"pred_boxes\[1\]: found shape \(4,\)"),
        (([BOX], [[0.5]], [BOX[:, :3]]), {}, r"gt_boxes\[0\]: found shape \(1, 3\)"),
        (([BOX, VOLUME], [[0.5]] * 2, [BOX] * 2), {}, r"pred_boxes\[1\]: found shape \(1, 6\)"),
        (([BOX], [[[0.5]]], [BOX]), {}, r"pred_scores\[0\]: found shape \(1, 1\)"),
        (([BOX], [[0.5]], [VOLUME]), {}, "found 4 columns in pred_boxes and 6 in gt_boxes"),
        (([BOX, BOX], [[0.5], [np.nan]], [BOX] * 2), {}, r"pred_scores\[1\]: found nan"),
        (([BOX], [[0.5]], [BOX * np.nan]), {}, r"gt_boxes\[0\]: found"),
        (([BOX], [[0.5]], [BOX]), {"iou_threshold": 0}, "iou_threshold: found 0"),
        (([BOX], [[0.5]], [BOX]), {"iou_threshold": 1.5}, "iou_threshold: found 1.5"),
        (([BOX], [[0.5]], [BOX]), {"overlap": "dice"}, "overlap: found 'dice'"),
        (
            ([BOX], [[0.5]], [BOX]),
            {"overlap": "p3d"},
            "found 4 columns, expected 6 for overlap 'p3d'",
        ),
        (
            ([VOLUME], [[0.5]], [KEY]),
            {"overlap": "p3d"},
            r"pred_boxes\[0\]: .* slices 0 to 5, .* a tracklet, one per slice",
        ),
        (([KEY], [[0.5]], [VOLUME]), {"overlap": "p3d"}, r"gt_boxes\[0\]: .* slices 0 to 5"),
        (
            ([BOX], [[0.5]], [BOX]),
            {"tracklets": [[0]]},
            "tracklets: found them with overlap 'iou', expected",
        ),
        (
            ([KEY], [[0.5]], [KEY]),
            P3D | {"tracklets": []},
            "tracklets: found 0 entries, expected 1",
        ),
        (
            ([KEY], [[0.5]], [KEY]),
            P3D | {"tracklets": [[0, 0]]},
            r"tracklets\[0\]: found .* expected 1",
        ),
        (
            ([KEY], [[0.5]], [KEY]),
            P3D | {"tracklets": [[0.0]]},
            r"\(1,\) of type float64, expected 1 int",
        ),
        (
            ([KEY], [[0.5]], [KEY]),
            P3D | {"tracklets": [[1]]},
            "indices from 1 to 1, expected indices of 1",
        ),
        (
            ([KEY, [*KEY, *KEY]], [[0.5]] * 2, [KEY] * 2),
            P3D | {"tracklets": [[0], [0, 0]]},
            r"pred_boxes\[1\]: found two boxes of one tracklet on slice 3, expected one",
        ),
    ],
)
def test_bad_input_is_named(args, settings, message):
    with pytest.raises(ValueError, match=message):
        froc_curve(*args, **settings)
