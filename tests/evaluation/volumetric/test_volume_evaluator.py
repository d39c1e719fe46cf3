import json
import logging
import math

import lesion_d2
from lesion_d2.evaluation import VolumeEvaluator, froc_curve
from lesion_d2.inference import Linker

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.evaluation import print_csv_format
from made_up_lesions import evaluate_shard, run
from made_up_volume_lesions import (
    NAME,
    detect,
    make_dicts,
    make_evaluator,
    make_instances,
    make_volume,
    same,
    thick,
    true_boxes,
    truth_as_detections,
)
from slow_average_precision import slow_average_precision
from warm_processes import start_processes

RATES = (0.5, 1, 2, 4, 8, 16)


def slow_results(dicts, detections, classes):
    """The numbers from the detections in 3-D as they stand in the file."""
    names = list(dict.fromkeys(d["volume"] for d in dicts))
    patients = sorted({d["patient"] for d in dicts})
    truth = true_boxes(dicts)
    expected = {}
    for number, name in enumerate(classes):
        boxes, scores, lesions = [], [], []
        for volume in names:
            own = [d for d in detections if d["volume"] == volume and d["category_id"] == number]
            boxes.append(thick([d["box3d"] for d in own]))
            scores.append([d["score"] for d in own])
            lesions.append(
                thick([box for key, (box, c) in truth.items() if key[0] == volume and c == number])
            )
        ap = slow_average_precision(boxes, scores, lesions, 0.1) if any(map(len, lesions)) else None
        expected[f"AP10-{name}"] = ap
        has = [
            any(int(key[0][:6]) == p and c == number for key, (_, c) in truth.items())
            for p in patients
        ]
        highest = [
            max(
                (
                    score
                    for volume, found in zip(names, scores, strict=True)
                    if int(volume[:6]) == p
                    for score in found
                ),
                default=0,
            )
            for p in patients
        ]
        expected[f"patient_AP-{name}"] = slow_ranking(highest, has) if any(has) else None
        if all(has):
            expected[f"patient_AP-{name}"] = None
    for metric in ("AP10", "patient_AP"):
        values = [v for k, v in expected.items() if k.startswith(f"{metric}-") and v is not None]
        expected[metric] = np.mean(values)
    return expected


def slow_ranking(scores, positive):
    total, before = 0.0, 0
    for level in sorted(set(scores), reverse=True):
        above = [p for s, p in zip(scores, positive, strict=True) if s >= level]
        total += (sum(above) - before) / sum(positive) * sum(above) / len(above)
        before = sum(above)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_numbers_against_a_written_out_version(register, tmp_path, seed):
    dicts = register(make_dicts(seed))
    results = run(make_evaluator(tmp_path), dicts, [detect(d, seed) for d in dicts])["volume"]
    content = json.loads((tmp_path / "volumes.json").read_text(), parse_constant=pytest.fail)
    expected = slow_results(dicts, content["detections"], "abc")
    assert 0.05 < expected["AP10"] < 0.95 and 0.2 < expected["patient_AP"] < 0.99
    for key, value in expected.items():
        if value is None:
            assert math.isnan(results[key])
        else:
            assert results[key] == pytest.approx(100 * value, abs=1e-9), key

    names = list(dict.fromkeys(d["volume"] for d in dicts))
    found = [[d for d in content["detections"] if d["volume"] == name] for name in names]
    truth = true_boxes(dicts)
    curve = froc_curve(
        [thick([d["box3d"] for d in part]) for part in found],
        [[d["score"] for d in part] for part in found],
        [thick([box for key, (box, _) in truth.items() if key[0] == name]) for name in names],
        iou_threshold=0.1,
    )
    sensitivity = 100 * curve.at(RATES)
    assert 0 < sensitivity[0] < sensitivity[3]
    np.testing.assert_allclose([results[f"sens@{rate:g}"] for rate in RATES], sensitivity)
    assert results["mean_sens"] == pytest.approx(sensitivity.mean())


def test_the_truth_as_detections_is_perfect(register, tmp_path):
    dicts = register(make_dicts(5))
    results = run(make_evaluator(tmp_path), dicts, [truth_as_detections(d) for d in dicts])
    values = [v for v in results["volume"].values() if not math.isnan(v)]
    assert len(values) >= 9 and values == pytest.approx([100] * len(values))

    content = json.loads((tmp_path / "volumes.json").read_text())
    truth = true_boxes(dicts)
    by_box = sorted((key[0], box, number) for key, (box, number) in truth.items())
    found = sorted((d["volume"], d["box3d"], d["category_id"]) for d in content["detections"])

    assert found == by_box
    assert any(box[2] == box[5] for _, box, _ in by_box)  # a lesion on one slice is found too
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "froc.pdf",
        "froc.png",
        "volumes.json",
    ]
    assert content["settings"]["iou_threshold"] == 0.1
    assert content["settings"]["criteria"] == {"volume": "iou@0.1"}
    assert content["lesions"] == len(truth) and content["other_results"] == {}
    assert content["results"].keys() == results["volume"].keys()


def test_one_class_has_no_numbers_by_class(register):
    dicts = register(make_dicts(1, num_classes=1), classes=("lesion",))
    results = run(make_evaluator(), dicts, [truth_as_detections(d) for d in dicts])
    assert results["volume"].keys() == {
        "AP10",
        *(f"sens@{rate:g}" for rate in RATES),
        "mean_sens",
        "patient_AP",
    }
    print_csv_format(results)


def test_a_hole_in_z_makes_a_hit_and_an_error(register, tmp_path):
    lesions = [(0, 10, 10, 40, 40, 11, 15), (0, 100, 100, 140, 140, 12, 13)]
    dicts = register(make_volume(1, 1, lesions), classes=("lesion",))
    whole = [make_instances([[10, 10, 40, 40]] * (11 <= n <= 15), [0.9] * (11 <= n <= 15))
             for n in range(10, 20)]  # fmt: skip
    boxes = {11: 0.7, 12: 0.9, 14: 0.8, 15: 0.8}
    outputs = []
    for number in range(10, 20):
        found = [([10, 10, 40, 40], boxes[number])] if number in boxes else []
        found += [([100, 100, 140, 140], 0.5)] if number in (12, 13) else []
        outputs.append(make_instances([b for b, _ in found], [s for _, s in found]))
    results = run(make_evaluator(tmp_path), dicts, outputs)["volume"]
    found = json.loads((tmp_path / "volumes.json").read_text())["detections"]

    assert [(d["box3d"][2], d["box3d"][5], round(d["score"], 5)) for d in found] == [
        (11, 12, 0.9),
        (14, 15, 0.8),
        (12, 13, 0.5),
    ]
    # Hit, error, hit. The second part reaches a lesion, so that FROC does not count it as false.
    assert results["AP10"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    assert results["sens@0.5"] == 100

    # Slices without a number between are no neighbors either.
    register([d for d in dicts if d["slice_index"] != 13], classes=("lesion",))
    kept = [(d, o) for d, o in zip(dicts, whole, strict=True) if d["slice_index"] != 13]
    run(make_evaluator(tmp_path), *zip(*kept, strict=True))
    found = json.loads((tmp_path / "volumes.json").read_text())["detections"]
    assert sorted((d["box3d"][2], d["box3d"][5]) for d in found) == [(11, 12), (14, 15)]


def test_a_lesion_reaches_over_slices_that_are_not_there(register):
    lesion = (0, 10, 10, 40, 40, 10, 19)
    dicts = register(make_volume(1, 1, [lesion], numbers=(10, 19)), classes=("lesion",))
    results = run(make_evaluator(), dicts, [truth_as_detections(d) for d in dicts])["volume"]
    # Two boxes of one slice each in a lesion of ten slices: IoU 0.1, which is enough.
    assert results["AP10"] == pytest.approx(100)
    dicts = register(make_volume(1, 1, [(*lesion[:-1], 20)], numbers=(10, 20)), classes=("lesion",))
    results = run(make_evaluator(), dicts, [truth_as_detections(d) for d in dicts])["volume"]
    assert results["AP10"] == results["sens@16"] == 0


def test_a_detection_finds_only_lesions_of_its_volume_and_class(register):
    lesion = (1, 10, 10, 40, 40, 12, 14)
    volumes = [make_volume(1, 1, [lesion]), make_volume(1, 2, []), make_volume(2, 1, [])]
    dicts = register([d for volume in volumes for d in volume])
    elsewhere = [truth_as_detections(volumes[0][i % 10]) for i in range(30)]
    elsewhere[:10] = elsewhere[20:] = [make_instances([], [])] * 10
    results = run(make_evaluator(), dicts, elsewhere)["volume"]
    assert results["AP10"] == results["sens@16"] == 0
    assert results["patient_AP-b"] == 100  # the patient is right, blind to the place

    other_class = [truth_as_detections(d) for d in dicts]
    for instances in other_class:
        instances.pred_classes[:] = 2
    results = run(make_evaluator(), dicts, other_class)["volume"]
    assert results["AP10"] == 0 and results["sens@0.5"] == 100
    assert results["patient_AP-b"] == 50  # both patients at 0, one of them has it
    assert math.isnan(results["AP10-a"]) and math.isnan(results["patient_AP-c"])


def test_what_all_patients_have_says_nothing_of_them(register):
    lesion = (0, 10, 10, 40, 40, 12, 14)
    dicts = register(make_volume(1, 1, [lesion]) + make_volume(2, 1, [lesion]), ("lesion",))
    results = run(make_evaluator(), dicts, [truth_as_detections(d) for d in dicts])["volume"]
    assert results["AP10"] == pytest.approx(100) and math.isnan(results["patient_AP"])
    for record in dicts:
        record["annotations"] = []
    results = run(make_evaluator(), dicts, [detect(d, num_classes=1) for d in dicts])["volume"]
    assert all(math.isnan(value) for value in results.values())


def test_volumes_without_a_patient_are_patients(register):
    dicts = register(make_volume(1, 1, [(0, 10, 10, 40, 40, 12, 14)]) + make_volume(1, 2, []))
    evaluator = make_evaluator()
    assert math.isnan(
        run(evaluator, dicts, [truth_as_detections(d) for d in dicts])["volume"]["patient_AP"]
    )
    for record in dicts:
        del record["patient"]
    results = run(make_evaluator(), dicts, [truth_as_detections(d) for d in dicts])
    assert results["volume"]["patient_AP"] == 100


def test_missing_repeated_and_unknown_slices(register, caplog):
    dicts = register(make_dicts(2))
    outputs = [detect(d) for d in dicts]
    evaluator = make_evaluator()
    expected = run(evaluator, dicts, outputs)["volume"]
    with caplog.at_level(logging.WARNING):
        same(run(evaluator, dicts + dicts[:4], outputs + outputs[4:8])["volume"], expected)
    assert "Dropped 4 repeated slices" in caplog.text and "no prediction" not in caplog.text
    same(run(evaluator, dicts[::-1], outputs[::-1])["volume"], expected)

    with caplog.at_level(logging.WARNING):
        part = run(evaluator, dicts[:-7], outputs[:-7])["volume"]
    assert "7 slices of made_up_volumes have no prediction" in caplog.text

    empty = [*outputs[:-7], *[make_instances([], [])] * 7]
    same(part, run(evaluator, dicts, empty)["volume"])
    evaluator.reset()
    nothing = evaluator.evaluate()["volume"]
    assert nothing["AP10"] == nothing["sens@16"] == 0
    with pytest.raises(ValueError, match="image_id 'nowhere_001', expected one of made_up_volumes"):
        run(evaluator, [{**dicts[0], "image_id": "nowhere_001"}], outputs[:1])
    with pytest.raises(ValueError, match=r"predictions on .*: found class 3, expected 0 to 2"):
        run(evaluator, dicts[:1], [make_instances([[0, 0, 9, 9]], [0.5], [3])])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda dicts: dicts.clear(), "made_up_volumes: found no images"),
        (lambda dicts: dicts[1].pop("volume"), "000001_01_01_011: found no 'volume'"),
        (lambda dicts: dicts[1].pop("slice_index"), "found no 'slice_index'"),
        (lambda dicts: dicts.append(dicts[2]), "'000001_01_01_012' twice"),
        (
            lambda dicts: dicts.append({**dicts[2], "image_id": "x"}),
            "slice 12 of volume 000001_01_01 twice",
        ),
        (lambda dicts: dicts[3].update(patient=7), "found patients 1 and 7, expected one"),
        (
            lambda dicts: dicts[2]["annotations"][0].pop("lesion_id"),
            "000001_01_01_012: found an annotation without 'lesion_id'",
        ),
        (
            lambda dicts: dicts[3]["annotations"][0].update(category_id=1),
            "000001_01_01_013, lesion 0: found classes 0 and 1",
        ),
        (
            lambda dicts: [d["annotations"][0].update(category_id=3) for d in dicts[2:5]],
            "made_up_volumes: found class 3, expected 0 to 2",
        ),
    ],
)
def test_an_invalid_data_set_is_refused(register, change, message):
    dicts = register(make_volume(1, 1, [(0, 10, 10, 40, 40, 12, 14)]))
    change(dicts)
    with pytest.raises(ValueError, match=message) as error:
        make_evaluator()
    assert "\n" not in str(error.value)


def test_options_of_volumes_come_from_the_config(register, tmp_path):
    dicts = register(make_dicts(4))
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.TEST.MERGE_IOU_THRESH = 0.35
    cfg.TEST.VOLUME_CRITERIA = ("iou@0.5", "iobb@0.3")
    cfg.TEST.VOLUME_FROC_RATES = (0.125, 8.0)
    link = Linker("merge", {"iou_threshold": 0.35})
    evaluator = VolumeEvaluator(cfg, NAME, tmp_path, link=link)
    results = run(evaluator, dicts, [truth_as_detections(d) for d in dicts])
    settings = json.loads((tmp_path / "volumes.json").read_text())["settings"]
    assert settings["linking"] == {"name": "merge", "iou_threshold": 0.35}
    assert settings["criteria"] == {"volume": "iou@0.5", "volume_iobb": "iobb@0.3"}
    assert [k for k in results["volume_iobb"] if "sens" in k] == [
        "sens@0.125",
        "sens@8",
        "mean_sens",
    ]


def _evaluate_shard(rank, folder):
    # The part ends in the middle of a volume.
    evaluate_shard(rank, folder, NAME, make_dicts(6), ["a", "b", "c"], make_evaluator, detect)


def test_two_processes_give_the_numbers_of_one(register, tmp_path):
    start_processes(_evaluate_shard, (str(tmp_path),), nprocs=2)
    two = torch.load(tmp_path / "results.pt", weights_only=False)
    dicts = register(make_dicts(6))
    one = run(make_evaluator(tmp_path / "one"), dicts, [detect(d) for d in dicts])
    same(one["volume"], two["volume"])
    for name in ("volumes.json", "froc.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
