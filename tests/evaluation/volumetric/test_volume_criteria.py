"""Criteria of evaluations in 3-D: P3D, IoU and IoBB."""

import json
import logging
import math

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.evaluation import (
    VolumeEvaluator,
    detection_average_precision,
    froc_curve,
    parse_criteria,
    volume_metrics_of,
)
from lesion_d2.inference import Linker

import numpy as np
import pytest
from made_up_lesions import run
from made_up_volume_lesions import (
    NAME,
    detect,
    make_dicts,
    make_instances,
    make_volume,
    mark_key_slices,
    same,
    truth_as_detections,
)

CRITERIA = ("p3d@0.5", "iou@0.3", "iobb@0.3")
RATES = (0.125, 0.5, 2.0, 8.0)


def slow_overlap(found, lesion, overlap, extra=0):
    """A detection and a lesion, which is (box in 3-D, box on the key slice, its number)."""
    whole, (x1, y1, x2, y2), key = lesion
    if overlap == "p3d":
        if str(key) not in found["key_slices"]:
            return 0.0
        own = found["key_slices"][str(key)]
        a, b = [(own[0], own[2]), (own[1], own[3])], [(x1, x2), (y1, y2)]
    else:
        a, b = (
            [(box[0], box[3]), (box[1], box[4]), (box[2], box[5] + 1 - extra)]
            for box in (found["box3d"], whole)
        )
    shared = size_a = size_b = 1.0
    for (low_a, high_a), (low_b, high_b) in zip(a, b, strict=True):
        shared *= max(0.0, min(high_a, high_b) - max(low_a, low_b) + extra)
        size_a *= high_a - low_a + extra
        size_b *= high_b - low_b + extra
    return shared / (size_a if overlap == "iobb" else size_a + size_b - shared)


def slow_truth(dicts):
    """volume -> [(box in 3-D, key box, key slice, class)]."""
    truth = {d["volume"]: {} for d in dicts}
    for d in dicts:
        for a in d["annotations"]:
            entry = truth[d["volume"]].setdefault(
                a["lesion_id"], [[], None, None, a["category_id"]]
            )
            x1, y1, x2, y2 = a["bbox"]
            entry[0].append([x1, y1, d["slice_index"], x2, y2, d["slice_index"]])
            if "is_key" in a:
                entry[1:3] = a["bbox"], d["slice_index"]
    for lesions in truth.values():
        for entry in lesions.values():
            entry[0] = [*np.min(entry[0], axis=0)[:3], *np.max(entry[0], axis=0)[3:]]
    return {volume: list(lesions.values()) for volume, lesions in truth.items()}


def slow_precision(truth, detections, overlap, threshold, extra=0):
    """COCO's average precision over all volumes, one detection at a time."""
    free = {volume: list(lesions) for volume, lesions in truth.items()}
    hits, points, num_lesions = 0, [], sum(map(len, truth.values()))
    for rank, d in enumerate(sorted(detections, key=lambda d: -d["score"]), start=1):
        left = free[d["volume"]]
        overlaps = [slow_overlap(d, lesion[:3], overlap, extra) for lesion in left]
        if overlaps and max(overlaps) >= threshold:
            left.pop(overlaps.index(max(overlaps)))
            hits += 1
        points.append((hits / num_lesions, hits / rank))
    recalls = np.linspace(0, 1, 101)
    return 100 * np.mean([max((p for r, p in points if r >= x), default=0) for x in recalls])


def slow_area(truth, detections, overlap, threshold, extra=0):
    """Average precision as Lesion-Harvester's published evaluation has it, in words of our own."""
    num_lesions = sum(map(len, truth.values()))
    found, errors, points = set(), 0, []
    for d in sorted(detections, key=lambda d: -d["score"]):
        reached = [
            (d["volume"], k)
            for k, lesion in enumerate(truth[d["volume"]])
            if slow_overlap(d, lesion[:3], overlap, extra) >= threshold
        ]
        errors += not reached
        for lesion in reached:
            errors += lesion in found
            found.add(lesion)
        points.append((len(found) / num_lesions, len(found) / (len(found) + errors)))
    area = 0.0
    for i, (recall, _) in enumerate(points):
        width = recall - (points[i - 1][0] if i else 0.0)
        area += width * max(precision for _, precision in points[i:])
    return 100 * area


def slow_sensitivities(truth, detections, overlap, threshold, extra=0):
    """FROC at RATES."""
    points = {}
    num_lesions = sum(map(len, truth.values()))
    for cut in sorted({d["score"] for d in detections}, reverse=True):
        errors, found = 0, set()
        for d in detections:
            if d["score"] >= cut:
                lesions = truth[d["volume"]]
                reached = [
                    (d["volume"], k)
                    for k, lesion in enumerate(lesions)
                    if slow_overlap(d, lesion[:3], overlap, extra) >= threshold
                ]
                errors += not reached
                found.update(reached)
        points[errors / len(truth)] = 100 * len(found) / num_lesions
    rates = sorted(points)
    values = np.interp(RATES, rates, [points[rate] for rate in rates], left=0)
    return np.append(values, values.mean())


@pytest.mark.parametrize("method", ["coco", "all_points"])
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_all_criteria_against_written_out_loops(register, tmp_path, seed, inclusive, method):
    dicts = register(mark_key_slices(make_dicts(seed, num_classes=1), seed), classes=("lesion",))
    link = Linker("merge", {"iou_threshold": 0.1})
    if seed:
        link = Linker("track", {"iou_threshold": 0.2, "max_gap": 1})
    rules = {"criteria": CRITERIA, "rates": RATES, "inclusive": inclusive, "ap_method": method}
    evaluator = VolumeEvaluator(NAME, tmp_path, link=link, **rules)
    outputs = [detect(d, seed, num_classes=1) for d in dicts]
    rng = np.random.default_rng(seed)
    for instances in outputs:  # no equal scores, whose order would be a matter of taste
        instances.scores += 0.01 * rng.uniform(size=len(instances.scores))
    results = run(evaluator, dicts, outputs)
    content = json.loads((tmp_path / "volumes.json").read_text(), parse_constant=pytest.fail)
    truth, found = slow_truth(dicts), content["detections"]
    assert list(results) == ["volume", "volume_iou", "volume_iobb"]

    precisions = []
    for task, text in zip(results, CRITERIA, strict=True):
        overlap, threshold = text.split("@")
        values = list(results[task].values())
        args = truth, found, overlap, float(threshold), int(inclusive)
        precisions.append({"coco": slow_precision, "all_points": slow_area}[method](*args))
        assert results[task]["AP"] == pytest.approx(precisions[-1])
        wanted = slow_sensitivities(*args)
        np.testing.assert_allclose(values[1 : len(RATES) + 2], wanted)
    assert len(set(precisions)) > 1 and min(precisions) > 2 and max(precisions) < 98
    same(content["other_results"]["volume_iobb"], results["volume_iobb"])

    settings = content["settings"]
    assert settings["criteria"]["volume_iou"] == "iou@0.3"
    assert (settings["inclusive"], settings["average_precision"]) == (inclusive, method)

    # The order of the criteria moves numbers from task to task, and that is all.
    moved = VolumeEvaluator(NAME, link=link, **{**rules, "criteria": CRITERIA[::-1]})
    again = run(moved, dicts, outputs)
    assert again["volume_p3d"].items() <= results["volume"].items()


@pytest.mark.parametrize("method", ["coco", "all_points"])
@pytest.mark.parametrize("overlap", ["p3d", "iobb"])
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_average_precision_of_random_boxes(overlap, threshold, method):
    rng = np.random.default_rng(7)
    truth, detections, pred, scores, lesions, tracklets = {}, [], [], [], [], []
    for volume in range(30):
        low = rng.integers(0, 25, (rng.integers(1, 4), 3))
        whole = np.concatenate([low, low + rng.integers(3, 16, low.shape)], axis=1)
        keys = rng.integers(whole[:, 2], whole[:, 5] + 1)
        near = np.repeat(whole, 2, axis=0) + rng.integers(-3, 2, (2 * len(whole), 6))
        near[:, 3:] = np.maximum(near[:, 3:], near[:, :3] + 1)
        pred.append(near.astype(float))
        slices = [
            {
                z: [*np.minimum(box[:2] + rng.integers(-2, 3, 2), box[3:5]), *box[3:5]]
                for z in range(box[2], box[5] + 1)
            }
            for box in near
        ]
        if overlap == "p3d":
            rows = [(x1, y1, z, x2, y2, z) for s in slices for z, (x1, y1, x2, y2) in s.items()]
            pred[-1] = np.array(rows, dtype=float)
            tracklets.append(np.repeat(np.arange(len(near)), list(map(len, slices))))
        scores.append(rng.uniform(size=len(near)))
        flat = whole[:, [0, 1, 2, 3, 4, 2]].astype(float)
        flat[:, [2, 5]] = keys[:, None]
        thick = whole + np.array([0, 0, -0.5, 0, 0, 0.5])
        lesions.append(flat if overlap == "p3d" else thick)
        truth[volume] = [
            (box.tolist(), box[[0, 1, 3, 4]].tolist(), key, 0)
            for box, key in zip(whole, keys, strict=True)
        ]
        detections += [
            {"volume": volume, "box3d": box.tolist(), "score": score}
            | {"key_slices": {str(z): found for z, found in boxes.items()}}
            for box, score, boxes in zip(near, scores[-1], slices, strict=True)
        ]
    if overlap != "p3d":
        pred = [boxes + np.array([0, 0, -0.5, 0, 0, 0.5]) for boxes in pred]
    found = detection_average_precision(
        pred,
        scores,
        lesions,
        iou_threshold=threshold,
        overlap=overlap,
        tracklets=tracklets or None,
        method=method,
    )
    slow = slow_precision if method == "coco" else slow_area
    wanted = slow(truth, detections, overlap, threshold)
    assert 100 * found == pytest.approx(wanted) and 5 < wanted < 95


def test_p3d_by_hand(register, caplog):
    dicts = register(make_volume(1, 1, [(0, 10, 10, 40, 40, 11, 15)]), classes=("lesion",))
    dicts[3]["annotations"][0]["is_key"] = True  # slice 13
    link = Linker("merge", {"iou_threshold": 0.1})
    evaluator = VolumeEvaluator(NAME, link=link, criteria=("p3d@0.5", "iou@0.1"))
    for first, last, hit in ((13, 13, 100), (11, 12, 0), (14, 19, 0), (10, 19, 100)):
        outputs = [
            make_instances([[10, 10, 40, 30]], [0.9])
            if first <= number <= last
            else make_instances([], [])
            for number in range(10, 20)
        ]
        with caplog.at_level(logging.INFO):
            results = run(evaluator, dicts, outputs)
        assert results["volume"]["AP"] == results["volume"]["sens@0.5"] == pytest.approx(hit)
        assert results["volume_iou"]["AP10"] == pytest.approx(100)
        assert math.isnan(results["volume"]["patient_AP"])
        assert "patient_AP" not in results["volume_iou"]
    assert "p3d@0.5" in caplog.text and "iou@0.1" in caplog.text


@pytest.mark.parametrize("classes", [("lesion",), ("a", "b", "c")])
def test_metrics_are_known_beforehand(register, classes):
    dicts = register(mark_key_slices(make_dicts(1, num_classes=len(classes))), classes=classes)
    link = Linker("merge", {"iou_threshold": 0.1})
    for criteria in (CRITERIA, ("iou@0.1",), ("iobb@0.3", "iou@0.1")):
        evaluator = VolumeEvaluator(NAME, link=link, criteria=criteria, rates=RATES)
        results = run(evaluator, dicts, [truth_as_detections(d) for d in dicts])
        found = [f"{task}/{name}" for task, values in results.items() for name in values]
        assert sorted(volume_metrics_of(criteria, RATES, classes)) == sorted(found)


def test_lesions_without_or_with_two_key_slices_stop(register):
    lesions = [(0, 10, 10, 40, 40, 12, 14), (0, 60, 60, 90, 90, 15, 18)]
    dicts = register(make_volume(1, 1, lesions), classes=("lesion",))
    dicts[3]["annotations"][0]["is_key"] = True
    link = Linker("merge", {"iou_threshold": 0.1})
    VolumeEvaluator(NAME, link=link, criteria=("iou@0.3",))
    wanted = "000001_01_01: found no key slice of the lesion on slices 15 to 18, expected .*p3d@0.5"
    with pytest.raises(ValueError, match=wanted):
        VolumeEvaluator(NAME, link=link, criteria=("iou@0.3", "p3d@0.5"))
    dicts[4]["annotations"][0]["is_key"] = True
    with pytest.raises(ValueError, match="014, lesion 0: found key slices 13 and 14, expected"):
        VolumeEvaluator(NAME, link=link)


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ((), "found no criterion, expected at least one"),
        (("iou",), "found 'iou', expected overlap@threshold with one of iou, iobb, p3d"),
        (("iou@0.5", "dice@0.5"), "found 'dice@0.5', expected"),
        (("iou@0",), r"found 'iou@0', expected .* a threshold in \(0, 1\]"),
        (("iou@nan",), "found 'iou@nan', expected"),
        (
            ("p3d@0.5", "iou@0.1", "iou@0.3"),
            "found iou@0.1 and iou@0.3 after the first criterion, expected",
        ),
    ],
)
def test_bad_criteria_are_one_line(criteria, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_criteria(criteria)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("jitter", "shrinking", "seen_share", "is_lower"),
    [(0.1, 0.9, 1.0, True), (0.08, 0.97, 0.9, False)],
)
def test_the_best_box_on_all_slices_is_no_p3d(jitter, shrinking, seen_share, is_lower):
    """What a tracklet has on the key slice, not its best box, which was our P3D once.

    Stretched over the tracklet's slices, the best box misses lesions of other sizes and places on
    their key slices, and hits others where there is no box at all: points of sensitivity and AP,
    either way.
    """
    rng = np.random.default_rng(0)
    link = Linker("track", {"iou_threshold": 0.3, "max_gap": 1})
    linked, stretched, lesions, scores, tracklets = [], [], [], [], []
    for _ in range(300):
        low, size = rng.uniform(0, 400, 2), rng.uniform(15, 60, 2)
        drift, growth = rng.normal(0, 1.0, 2), rng.uniform(2 * shrinking - 1, 1.0)
        key, reach = 10, int(rng.integers(1, 5))
        boxes, z = [], np.arange(key - reach, key + reach + 1)
        for number in z:
            middle, half = low + drift * (number - key), size * growth ** abs(number - key) / 2
            boxes.append(np.concatenate([middle - half, middle + half]))
        lesions.append(np.insert(boxes[reach], (2, 4), key)[None])
        seen = rng.random(len(z)) < seen_share
        found = np.array(boxes)[seen] + rng.normal(0, jitter, (seen.sum(), 4)) * np.tile(size, 2)
        wrong = rng.uniform(0, 400, (6, 2))
        found = np.concatenate([found, np.concatenate([wrong, wrong + 30], axis=1)])
        numbers = np.concatenate([z[seen], rng.integers(6, 15, 6)])
        confidence = rng.uniform(0.2, 1.0, len(found)) * (
            1 - 0.3 * (np.arange(len(found)) >= seen.sum())
        )
        boxes3d, score, _, owners = link(
            found, confidence, numbers, np.zeros(len(found), dtype=int)
        )
        linked.append(np.column_stack([found[:, :2], numbers, found[:, 2:], numbers]))
        covers = (boxes3d[:, 2] <= key) & (key <= boxes3d[:, 5])
        flat = boxes3d.copy()
        flat[:, [2, 5]] = np.where(covers, key, -1)[:, None]
        stretched.append(flat)
        scores.append(score)
        tracklets.append(owners)
    rules = {"iou_threshold": 0.5, "overlap": "p3d", "inclusive": True}
    results = []
    for boxes, owners in ((linked, tracklets), (stretched, None)):
        curve = froc_curve(boxes, scores, lesions, tracklets=owners, **rules)
        precision = detection_average_precision(
            boxes, scores, lesions, tracklets=owners, method="all_points", **rules
        )
        results.append(100 * np.append(curve.at(RATES), precision))
    gains = (results[0] - results[1]) * (1 if is_lower else -1)
    assert (gains > 1).all() and (results[0] > 20).all(), results
