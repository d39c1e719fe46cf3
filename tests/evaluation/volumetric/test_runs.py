"""Evaluation of detections that are boxes in 3-D already."""

import json
import math

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.evaluation import VolumeEvaluator, read_volume_detections
from lesion_d2.evaluation.volumetric.runs import boxes_of_run, slice_runs
from lesion_d2.evaluation.volumetric.volumes import VolumeTruth
from lesion_d2.structures import Boxes3D

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode, Instances
from made_up_lesions import run
from made_up_volume_lesions import (
    NAME,
    detect,
    make_dicts,
    make_evaluator,
    make_instances,
    make_volume,
    mark_key_slices,
    same,
    true_boxes,
)


def make_output(boxes, scores, classes):
    """Detections of a run, boxes (n, 6) with edges."""
    found = Instances((10, 200, 200))
    found.pred_boxes = Boxes3D(torch.tensor(np.array(boxes, float).reshape(-1, 6)))
    found.scores = torch.tensor(np.array(scores, float))
    found.pred_classes = torch.tensor(np.array(classes, int))
    return found


def runs_of(dicts):
    """The inputs of a model of volumes: one a volume, whose slices are all there."""
    first = {}
    for d in dicts:
        first.setdefault(d["volume"], d["slice_index"])
    return [{"image_id": v, "volume": v, "first_slice": n} for v, n in first.items()]


def slices_to_voxels(first_slice):
    """What comes to a box with its first and last slice number, for one with edges in a run."""
    return np.array([0, 0, -first_slice - 0.5, 0, 0, -first_slice + 0.5])


def test_a_run_is_numbered_slices_without_a_gap():
    dicts = make_volume(1, 1, [], numbers=(4, 5, 9, 11, 10)) + make_volume(2, 1, [], numbers=(7,))
    runs = slice_runs(VolumeTruth.from_dicts(dicts))
    assert runs == {("000001_01_01", 4): 2, ("000001_01_01", 9): 3, ("000002_01_01", 7): 1}


def test_boxes_of_slices_are_those_whose_slices_have_their_centers_in_the_box():
    rng = np.random.default_rng(3)
    low = rng.uniform(-0.5, 8.5, (60, 3)).round(1)
    high = np.minimum(low + rng.uniform(0, 4, (60, 3)).round(1), 9.5)
    boxes = np.concatenate([low, high], axis=1)
    found = boxes_of_run(boxes, np.ones(60), np.zeros(60, int), 30, 10)
    num_thin = 0
    for i, (x1, y1, z1, x2, y2, z2) in enumerate(boxes.tolist()):
        wanted = [z for z in range(10) if z1 <= z <= z2]
        if not wanted:
            wanted = [min(range(10), key=lambda z: (abs(z - (z1 + z2) / 2), -z))]
            num_thin += 1
        own = found.slice_boxes[found.tracklets == i]
        assert own.tolist() == [[x1, y1, 30 + z, x2, y2, 30 + z] for z in wanted]
        np.testing.assert_allclose(found.boxes[i, [2, 5]], [30 + z1 + 0.5, 30 + z2 - 0.5])
    assert 0 < num_thin < 30


@pytest.mark.parametrize("inclusive", [False, True])
def test_the_numbers_are_those_of_the_same_boxes_linked_from_slices(tmp_path, register, inclusive):
    dicts = register(make_dicts(2))
    rules = {"criteria": ("iou@0.3", "iobb@0.3"), "inclusive": inclusive}
    linked = run(make_evaluator(tmp_path, **rules), dicts, [detect(d, 2) for d in dicts])
    content = json.loads((tmp_path / "volumes.json").read_text())
    samples, outputs = runs_of(dicts), []
    for sample in samples:
        found = [d for d in content["detections"] if d["volume"] == sample["volume"]]
        # From slice numbers to voxels of the run, which has edges.
        shift = slices_to_voxels(sample["first_slice"])
        boxes = [np.array(d["box3d"]) + shift for d in found]
        columns = ([d[key] for d in found] for key in ("score", "category_id"))
        outputs.append(make_output(boxes, *columns))
    evaluator = VolumeEvaluator(NAME, tmp_path / "runs", link=None, **rules)
    results = run(evaluator, samples[::-1], outputs[::-1])

    for task, numbers in linked.items():
        assert 1 < numbers["sens@0.5"] < 99
        same(results[task], numbers)

    read = read_volume_detections(tmp_path / "runs" / "volumes.json")
    assert read.settings["linking"] is None
    assert sum(len(boxes.boxes) for boxes in read.boxes.values()) == len(content["detections"])


def test_the_truth_as_detections_is_perfect_on_key_slices_too(register):
    dicts = register(mark_key_slices(make_dicts(5)))
    outputs = []
    for sample in runs_of(dicts):
        shift = slices_to_voxels(sample["first_slice"])
        own = [
            (b + shift, n) for (v, _), (b, n) in true_boxes(dicts).items() if v == sample["volume"]
        ]
        outputs.append(make_output([b for b, _ in own], [0.9] * len(own), [n for _, n in own]))
    criteria = ("iou@0.9", "iobb@0.9", "p3d@0.7")
    evaluator = VolumeEvaluator(NAME, link=None, criteria=criteria)
    results = run(evaluator, runs_of(dicts), outputs)
    values = [v for row in results.values() for v in row.values() if not math.isnan(v)]
    assert len(values) > 20 and values == pytest.approx([100] * len(values))
    # Without the slices around the key slice, P3D has nothing to compare.
    for output in outputs:
        output.pred_boxes.tensor[:, [2, 5]] = -0.5
    assert run(evaluator, runs_of(dicts), outputs)["volume_p3d"]["sens@16"] < 50


def test_runs_of_a_volume_are_joined_and_regions_excuse_detections(
    register,
    tmp_path,
):
    dicts = make_volume(1, 1, [(0, 10, 10, 40, 40, 10, 12)])
    dicts += make_volume(1, 1, [(0, 60, 60, 90, 90, 30, 33)], numbers=range(30, 34))
    for d in dicts[10:]:
        d["annotations"][0]["lesion_id"] = 1
    for d in dicts[4:8]:
        box = {"bbox": [100.0, 100.0, 150.0, 150.0], "bbox_mode": BoxMode.XYXY_ABS}
        d["annotations"].append({**box, "category_id": 0, "iscrowd": 1})
    register(dicts, classes=("lesion",))
    name = dicts[0]["volume"]
    samples = [
        {"image_id": f"{name}@{first}", "volume": name, "first_slice": first} for first in (30, 10)
    ]
    first = [[10, 10, -0.5, 40, 40, 2.5], [110, 110, 3.5, 140, 140, 7.5]]
    second = [[60, 60, -0.5, 90, 90, 3.5]]
    outputs = [make_output(second, [0.8], [0]), make_output(first, [0.5, 0.9], [0, 0])]
    evaluator = VolumeEvaluator(NAME, tmp_path, link=None)
    results = run(evaluator, samples, outputs)["volume"]
    assert results["AP10"] == pytest.approx(100)

    content = json.loads((tmp_path / "volumes.json").read_text())
    assert [d["score"] for d in content["detections"]] == [0.9, 0.8, 0.5]
    assert content["detections"][1]["box3d"] == [60, 60, 30, 90, 90, 33]

    # Out of the region's slices it is an error.
    outputs[1].pred_boxes.tensor[1, [2, 5]] += 3
    assert run(evaluator, samples, outputs)["volume"]["AP10"] < 90
    # A run without a prediction is one without detections.
    assert run(evaluator, samples[1:], outputs[1:])["volume"]["sens@16"] == 50


def test_a_lesion_over_a_gap_is_one_that_may_be_found_twice(register):
    lesions = [(0, 10, 10, 40, 40, 15, 26), (0, 60, 60, 90, 90, 10, 12)]
    numbers = [*range(10, 20), *range(23, 29)]
    dicts = register(make_volume(1, 1, lesions, numbers), classes=("lesion",))
    name = dicts[0]["volume"]
    samples = [
        {"image_id": f"{name}@{first}", "volume": name, "first_slice": first} for first in (10, 23)
    ]
    before = [[10, 10, 4.5, 40, 40, 9.5], [60, 60, -0.5, 90, 90, 2.5]]
    behind = [[10, 10, -0.5, 40, 40, 3.5]]
    outputs = [make_output(before, [0.9, 0.5], [0, 0]), make_output(behind, [0.8], [0])]
    evaluator = VolumeEvaluator(NAME, link=None, rates=(0.0, 1.0))
    results = run(evaluator, samples, outputs)["volume"]
    assert results["sens@0"] == 100  # the repeat is neither a hit nor a false positive
    assert results["AP10"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_boxes_of_the_other_kind_and_unknown_runs_stop(register):
    dicts = register(make_volume(1, 1, []), classes=("lesion",))
    sample = runs_of(dicts)[0]
    of_runs = VolumeEvaluator(NAME, link=None)
    with pytest.raises(ValueError, match="on 000001_01_01: found 4 numbers per box, expected 6"):
        of_runs.process([sample], [{"instances": make_instances([], [])}])
    with pytest.raises(ValueError, match="on 000001_01_01_010: found 6 numbers per box"):
        make_evaluator().process([dicts[0]], [{"instances": make_output([], [], [])}])
    for wrong in ({"first_slice": 11}, {"volume": "another"}):
        with pytest.raises(ValueError, match="found image_id '000001_01_01', expected one of"):
            of_runs.process([{**sample, **wrong}], [{"instances": make_output([], [], [])}])
    with pytest.raises(ValueError, match="found class 1, expected 0 to 0"):
        of_runs.process([sample], [{"instances": make_output([[0] * 6], [1.0], [1])}])
    with pytest.raises(ValueError, match="found a box or score that is not finite, expected"):
        of_runs.process([sample], [{"instances": make_output([[0] * 6], [math.nan], [0])}])
