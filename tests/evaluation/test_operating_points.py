"""Score thresholds of false positive rates, against one threshold tried after the other."""

import json

from lesion_d2.evaluation import (
    FrocCurve,
    LesionEvaluator,
    OperatingPoints,
    froc_curve,
    read_operating_points,
)

import made_up_lesions
import made_up_volume_lesions
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from made_up_lesions import run
from slow_boxes import slow_iou
from slow_froc import random_case, slow_points

RATES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)


def slow_threshold(points, rate):
    """Every score as the threshold; of those within the rate the one that finds most."""
    if not points or max(fps for _, fps, _ in points) < rate:
        return None
    within = [(sensitivity, -cut) for cut, fps, sensitivity in points if fps <= rate]
    return -max(within)[1] if within else None


@pytest.mark.parametrize("dims", [2, 3])
def test_equals_the_slow_search(dims):
    rng = np.random.default_rng(dims)
    found = []
    for _ in range(80):
        pred, scores, truth = random_case(rng, dims, "iou")
        curve = froc_curve(pred, scores, truth)
        points = slow_points(pred, scores, truth, 0.5, "iou", False)
        thresholds = curve.thresholds_at(RATES)
        assert thresholds == [slow_threshold(points, rate) for rate in RATES]
        found += thresholds
    assert 50 < sum(threshold is None for threshold in found) < len(found) - 100


def test_without_detections_no_rate_is_reached():
    curve = froc_curve([np.empty((0, 4))], [np.empty(0)], [np.array([[0.0, 0, 5, 5]])])
    assert isinstance(curve, FrocCurve) and curve.thresholds_at([0.5, 8]) == [None, None]


def _slow_rates(dicts, outputs):
    """Score -> false positives per image, counted detection by detection."""
    rates = {}
    for cut in {score for found in outputs for score in found.scores.tolist()}:
        count = 0
        for record, found in zip(dicts, outputs, strict=True):
            truth = [a["bbox"] for a in record["annotations"]]
            boxes = found.pred_boxes.tensor[found.scores >= cut].tolist()
            count += sum(all(slow_iou(box, lesion) < 0.5 for lesion in truth) for box in boxes)
        rates[cut] = count / len(dicts)
    return rates


def test_an_evaluation_of_images_writes_them(register, tmp_path):
    dicts = register(made_up_lesions.make_dicts(12))
    outputs = [made_up_lesions.predict(record) for record in dicts]
    results = made_up_lesions.run(
        LesionEvaluator(made_up_lesions.NAME, tmp_path, num_bootstrap=0), dicts, outputs
    )
    content = json.loads((tmp_path / "froc.json").read_text())["operating_points"]
    points = read_operating_points(tmp_path / "froc.json")
    assert (points.dataset, points.unit) == (made_up_lesions.NAME, "image")

    rates = _slow_rates(dicts, outputs)
    assert points.last_rate == pytest.approx(max(rates.values()))
    assert list(points.thresholds) == [0.5, 1, 2, 4, 8, 16]

    num_reached = 0
    for point in content["points"]:
        rate, threshold = point["rate"], point["score_threshold"]
        within = [cut for cut, fps in rates.items() if fps <= rate]
        if rate > points.last_rate:
            assert threshold is None and point["sensitivity"] is None
            continue
        assert threshold == min(within) == points.threshold_of(rate)
        # What is interpolated between two points is not less.
        assert 0 < point["sensitivity"] <= results["froc"][f"sens@{rate:g}"] + 1e-9
        num_reached += 1
    assert 2 <= num_reached < 6
    with pytest.raises(ValueError, match=r"found 16 false positives per image, which the curve on"):
        points.threshold_of(16)
    with pytest.raises(ValueError, match=r"found 0.3 .*, expected one of 0.5, 1, .* on made_up"):
        points.threshold_of(0.3)


def test_an_evaluation_of_volumes_writes_them(tmp_path):
    dicts = made_up_volume_lesions.make_dicts(0)
    DatasetCatalog.register(made_up_volume_lesions.NAME, lambda: dicts)
    metadata = MetadataCatalog.get(made_up_volume_lesions.NAME)
    metadata.set(thing_classes=list("abc"))
    try:
        evaluator = made_up_volume_lesions.make_evaluator(tmp_path)
        outputs = [made_up_volume_lesions.detect(record) for record in dicts]
        run(evaluator, dicts, outputs)
    finally:
        DatasetCatalog.remove(made_up_volume_lesions.NAME)
        MetadataCatalog.remove(made_up_volume_lesions.NAME)
    content = json.loads((tmp_path / "volumes.json").read_text())
    points = read_operating_points(tmp_path / "volumes.json")
    assert (points.dataset, points.unit) == (made_up_volume_lesions.NAME, "volume")

    names = list(dict.fromkeys(d["volume"] for d in dicts))
    found = [[d for d in content["detections"] if d["volume"] == name] for name in names]
    truth = made_up_volume_lesions.true_boxes(dicts)
    slow = slow_points(
        [made_up_volume_lesions.thick([d["box3d"] for d in part]) for part in found],
        [[d["score"] for d in part] for part in found],
        [
            made_up_volume_lesions.thick([box for key, (box, _) in truth.items() if key[0] == name])
            for name in names
        ],
        0.1,
        "iou",
        False,
    )
    expected = {rate: slow_threshold(slow, rate) for rate in points.thresholds}
    assert points.thresholds == expected and None not in list(expected.values())[:2]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "found no readable JSON"),
        ('{"rows": []}', "found no 'operating_points', expected .* evaluate again"),
        ("[1]", "found no 'operating_points'"),
        ('{"operating_points": {"dataset": "a", "unit": "slice"}}', "found other content"),
        (
            '{"operating_points": {"dataset": "a", "unit": "image", "points": [{"rate": NaN}]}}',
            "found other content",
        ),
        (
            '{"operating_points": {"dataset": "a", "unit": "image", '
            '"points": [{"rate": 1, "score_threshold": "0.5"}]}}',
            "found other content",
        ),
        (
            '{"operating_points": {"dataset": "a", "unit": "image", "points": [{"rate": 1}]}}',
            "found other content",
        ),
        (
            '{"operating_points": {"dataset": "a", "unit": "image", '
            '"points": [{"rate": -1, "score_threshold": 0.5}]}}',
            "found other content",
        ),
    ],
)
def test_other_files_are_told_in_one_line(tmp_path, text, message):
    file = tmp_path / "froc.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"froc.json: {message}") as error:
        read_operating_points(file)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"gone.json: no such file"):
        read_operating_points(tmp_path / "gone.json")


def test_a_curve_of_no_detection_is_told():
    points = OperatingPoints("a", "volume", {1.0: None}, None)
    with pytest.raises(
        ValueError, match=r"does not reach .it ends without a detection., expected a curve"
    ):
        points.threshold_of(1.0)
