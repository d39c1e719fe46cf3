import csv
import json
import math
from functools import partial

import lesion_d2
from lesion_d2.evaluation import LesionEvaluator, froc_curve, plot_froc, report

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, print_csv_format, verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, BoxMode
from made_up_lesions import (
    NAME,
    evaluate_shard,
    make_dicts,
    make_instances,
    predict,
    run,
    same,
)
from slow_boxes import slow_iou
from warm_processes import start_processes

pytestmark = pytest.mark.usefixtures("no_curves")
RATES = (0.5, 1, 2, 4, 8, 16)


def slow_ap(dicts, outputs, threshold):
    """COCO's AP for one class: greedy matching, 101 recall points, one image at a time."""
    outcomes, lesions = [], 0
    for record, instances in sorted(
        zip(dicts, outputs, strict=True), key=lambda x: x[0]["image_id"]
    ):
        free = [a["bbox"] for a in record["annotations"]]
        lesions += len(free)
        scores = instances.scores.numpy()
        for k in np.argsort(-scores, kind="stable"):
            box = instances.pred_boxes.tensor[k].tolist()
            ious = [slow_iou(box, truth) for truth in free]
            hit = bool(ious) and max(ious) >= threshold
            if hit:
                free.pop(int(np.argmax(ious)))
            outcomes.append((scores[k], hit))
    order = np.argsort([-score for score, _ in outcomes], kind="stable")
    hits = np.cumsum([outcomes[k][1] for k in order])
    precision = hits / np.arange(1, len(hits) + 1)
    recall = hits / lesions
    return 100 * np.mean([max(precision[recall >= r], default=0) for r in np.linspace(0, 1, 101)])


@pytest.mark.parametrize("num_classes", [1, 3])
def test_coco_numbers_are_those_of_detectron2(register, tmp_path, num_classes):
    dicts = register(make_dicts(30, 1, num_classes), classes="abc"[:num_classes])
    outputs = [predict(d, num_classes=num_classes) for d in dicts]
    results = run(LesionEvaluator(NAME, tmp_path, num_bootstrap=0), dicts, outputs)
    coco = COCOEvaluator(NAME, output_dir=str(tmp_path / "coco"), use_fast_impl=False)
    theirs = run(coco, dicts, outputs)
    assert theirs["bbox"]["AP50"] > 10
    ap10 = results["bbox"].pop("AP10")
    same({"bbox": results["bbox"]}, theirs)
    assert ap10 > results["bbox"]["AP50"]
    if num_classes == 1:
        assert ap10 == pytest.approx(slow_ap(dicts, outputs, 0.1), abs=1e-6)
        assert results["bbox"]["AP50"] == pytest.approx(slow_ap(dicts, outputs, 0.5), abs=1e-6)


def test_froc_pools_classes_and_images(register):
    dicts = register(make_dicts(30, 2, 3), classes="abc")
    outputs = [predict(d, num_classes=3) for d in dicts]
    results = run(LesionEvaluator(NAME, num_bootstrap=200), dicts, outputs)
    curve = froc_curve(
        [o.pred_boxes.tensor.numpy() for o in outputs],
        [o.scores.numpy() for o in outputs],
        [np.array([a["bbox"] for a in d["annotations"]]).reshape(-1, 4) for d in dicts],
    )
    expected = 100 * curve.at(RATES)
    assert 10 < expected[0] < expected[3] < 100
    froc = results["froc"]
    np.testing.assert_allclose([froc[f"sens@{rate:g}"] for rate in RATES], expected)
    assert froc["mean_sens"] == pytest.approx(expected.mean())
    for metric in ("sens@0.5", "sens@4", "mean_sens"):
        assert froc[f"{metric}_low"] < froc[metric] < froc[f"{metric}_high"]


@pytest.mark.parametrize("masks", [False, True])
def test_inclusive_boxes_are_a_pixel_wider(register, tmp_path, masks):
    """For FROC and AP of boxes; files have the boxes as they are."""
    dicts = make_dicts(30, 3)
    outputs = [predict(d) for d in dicts]
    for box in (a["bbox"] for d in dicts for a in d["annotations"]):
        box[2:] = np.array(box[:2]) + 0.2 * (np.array(box[2:]) - box[:2])  # where a pixel counts
    for instances in outputs:
        boxes = instances.pred_boxes.tensor.double()
        boxes[:, 2:] = boxes[:, :2] + 0.2 * (boxes[:, 2:] - boxes[:, :2])
        instances.pred_boxes = Boxes((8 * boxes).round() / 8)  # exact in 32 bits
    if masks:
        for annotation in (a for d in dicts for a in d["annotations"]):
            x1, y1, x2, y2 = annotation["bbox"]
            annotation["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
        for instances in outputs:
            instances.pred_masks = torch.zeros(len(instances), 320, 320, dtype=torch.bool)
            for mask, box in zip(instances.pred_masks, instances.pred_boxes, strict=True):
                x1, y1, x2, y2 = box.round().int().tolist()
                mask[y1:y2, x1:x2] = True
    register(dicts)
    plain = run(LesionEvaluator(NAME, num_bootstrap=0), dicts, outputs)
    settings = {"inclusive": True, "num_bootstrap": 0}
    found = run(LesionEvaluator(NAME, tmp_path, **settings), dicts, outputs)
    again = run(LesionEvaluator(NAME, **settings), dicts, outputs)  # nothing is widened twice
    same(found, again)
    assert json.loads((tmp_path / "froc.json").read_text())["settings"]["inclusive"]
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    boxes = np.concatenate([o.pred_boxes.tensor.numpy() for o in outputs])
    np.testing.assert_allclose(
        [r["bbox"][2] for r in written], boxes[:, 2] - boxes[:, 0], rtol=1e-6
    )

    wider = [{**d, "annotations": [dict(a) for a in d["annotations"]]} for d in dicts]
    for annotation in (a for d in wider for a in d["annotations"]):
        annotation["bbox"] = np.add(annotation["bbox"], [0, 0, 1, 1]).tolist()
    for instances in outputs:
        instances.pred_boxes.tensor += torch.tensor([0, 0, 1, 1])
    register(wider)
    expected = run(LesionEvaluator(NAME, num_bootstrap=0), wider, outputs)
    for name in ("AP10", "AP50", "AP75", "AP"):
        assert found["bbox"][name] == pytest.approx(expected["bbox"][name]), name
        assert found["bbox"][name] >= plain["bbox"][name]
    np.testing.assert_allclose(list(found["froc"].values()), list(expected["froc"].values()))
    assert found["bbox"]["AP"] > plain["bbox"]["AP"]
    assert found["froc"]["mean_sens"] > plain["froc"]["mean_sens"]
    if masks:
        same({"segm": found["segm"]}, {"segm": plain["segm"]})


def test_more_than_100_detections_count_for_froc(register):
    annotation = {"bbox": [0, 0, 50, 50], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    dicts = register(make_dicts(40))
    for record in dicts:
        record["annotations"] = []
    dicts[0]["annotations"] = [annotation]
    boxes = [[200, 200, 210, 210]] * 150 + [[0, 0, 50, 50]]
    outputs = [make_instances(boxes, np.linspace(0.9, 0.1, 151))]
    outputs += [make_instances([], []) for _ in dicts[1:]]
    results = run(LesionEvaluator(NAME, num_bootstrap=0), dicts, outputs)
    assert results["bbox"]["AP50"] == 0
    assert results["froc"]["sens@4"] == 100


def strata_example():
    """Three images; a hit and an error on each but the last, which has an error only."""
    lesions = [  # image, box, long diameter, type
        (0, [0, 0, 20, 20], 9.99, 1),
        (0, [100, 100, 140, 140], 10.0, 7),
        (1, [0, 0, 60, 60], 30.0, 7),
        (1, [100, 100, 180, 180], 30.01, -1),
    ]
    dicts = make_dicts(3)
    for record, thickness in zip(dicts, (2.5, 2.51, 5.0), strict=True):
        record["annotations"] = []
        record["spacing"] = (0.8, 0.8, thickness)
    for image, box, diameter, kind in lesions:
        dicts[image]["annotations"].append(
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 0,
                "diameters_mm": (diameter, 3.0),
                "coarse_type": kind,
            }
        )
    off = [250, 250, 260, 260]
    outputs = [
        make_instances([[0, 0, 20, 20], off, off], [0.9, 0.8, 0.7]),
        make_instances([[0, 0, 60, 60], off], [0.6, 0.95]),
        make_instances([off], [0.5]),
    ]
    return dicts, outputs


def test_strata_by_hand(register, tmp_path):
    dicts, outputs = strata_example()
    register(dicts)
    results = run(LesionEvaluator(NAME, tmp_path, num_bootstrap=0), dicts, outputs)
    # All: errors at 0.95 0.8 0.7 0.5, so rates 1/3, 2/3, 1, 4/3; found at 0.9 and 0.6.
    assert results["froc"]["sens@0.5"] == pytest.approx(25)
    assert results["froc"]["sens@1"] == pytest.approx(50)

    size, kind, interval = (results[f"froc_{x}"] for x in ("size", "type", "interval"))
    assert [size[f"{k}/sens@0.5"] for k in ("under_10mm", "10_to_30mm", "over_30mm")] == (
        pytest.approx([100, 0, 0])
    )
    assert [size[f"{k}/sens@1"] for k in ("under_10mm", "10_to_30mm", "over_30mm")] == (
        pytest.approx([100, 50, 0])
    )
    assert kind["bone/sens@1"] == 100
    assert kind["soft_tissue/sens@1"] == pytest.approx(50)
    assert math.isnan(kind["lung/sens@16"]) and math.isnan(kind["lung/mean_sens"])
    # Thin: image 0 alone, a hit above its two errors. Thick: two images, errors at 0.95 and 0.5.
    assert interval["up_to_2.5mm/sens@0.5"] == pytest.approx(50)
    assert interval["over_2.5mm/sens@0.5"] == pytest.approx(50)
    assert interval["over_2.5mm/sens@16"] == pytest.approx(50)

    with (tmp_path / "froc.csv").open() as file:
        rows = {row["stratum"]: row for row in csv.DictReader(file)}
    assert [(row["lesions"], row["images"]) for row in rows.values()][:4] == [
        ("4", "3"),
        ("1", "3"),
        ("2", "3"),
        ("1", "3"),
    ]
    assert rows["interval <= 2.5 mm"]["images"] == "1"
    assert rows["interval > 2.5 mm"]["lesions"] == "2"
    assert rows["all lesions"]["sens@1"] == "50.0"


def test_an_interval_without_images_and_data_without_properties(register, caplog):
    caplog.set_level("INFO", "lesion_d2.evaluation.report")
    dicts, outputs = strata_example()
    for record in dicts:
        del record["spacing"], record["patient"]
        for annotation in record["annotations"]:
            del annotation["diameters_mm"], annotation["coarse_type"]
    register(dicts)
    results = run(LesionEvaluator(NAME, num_bootstrap=20), dicts, outputs)
    assert results["froc"]["sens@1"] == pytest.approx(50)
    strata = flatten_results_dict({k: v for k, v in results.items() if k.startswith("froc_")})
    assert len(strata) == 13 * 7
    assert all(math.isnan(value) for value in strata.values())
    (table,) = (one.message for one in caplog.records if "FROC, sensitivity" in one.message)
    assert "10-30 mm" in table and "soft tissue" not in table  # no lesion has a type


def test_an_evaluation_writes_its_numbers_curve_and_detections(register, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "plot_froc", plot_froc)  # not the one that draws nothing
    dicts = register(make_dicts(20))
    outputs = [predict(d) for d in dicts]
    results = run(LesionEvaluator(NAME, tmp_path, num_bootstrap=50), dicts, outputs)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "coco_instances_results.json",
        "froc.csv",
        "froc.json",
        "froc.pdf",
        "froc.png",
        "results.json",
    ]

    written = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert written.keys() == results.keys()
    assert written["bbox"]["AP10"] == results["bbox"]["AP10"]

    coco = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert len(coco) == sum(map(len, outputs))
    assert coco[0].keys() == {"image_id", "category_id", "bbox", "score"}

    content = json.loads((tmp_path / "froc.json").read_text(), parse_constant=pytest.fail)
    assert content["settings"]["num_bootstrap"] == 50
    assert content["rows"][0]["sens@4"] == results["froc"]["sens@4"]
    assert content["rows"][0]["sens@4_low"] == results["froc"]["sens@4_low"]
    assert content["rows"][1]["group"] == "froc_size"
    assert len(content["band"]["rates"]) == len(content["band"]["low"]) == 64

    sensitivity = content["curve"]["sensitivity"]
    assert sensitivity == sorted(sensitivity) and len(sensitivity) > 5
    assert np.diff(content["curve"]["thresholds"]).max() < 0


def test_results_pass_through_detectron2(register):
    dicts = register(make_dicts(12))
    results = run(LesionEvaluator(NAME, num_bootstrap=20), dicts, [predict(d) for d in dicts])
    print_csv_format(results)
    assert all(type(value) is float for value in flatten_results_dict(results).values())
    cfg = get_cfg()
    expected = results["froc_size"]["10_to_30mm/sens@4"]
    cfg.TEST.EXPECTED_RESULTS = [["froc_size", "10_to_30mm/sens@4", expected, 0.01]]
    assert verify_results(cfg, results)


def test_without_detections_every_number_is_0(register, tmp_path):
    dicts = register(make_dicts(8))
    empty = [make_instances([], []) for _ in dicts]
    results = run(LesionEvaluator(NAME, tmp_path, num_bootstrap=20), dicts, empty)
    assert results["froc"]["sens@16"] == results["froc"]["mean_sens_high"] == 0
    assert results["bbox"]["AP50"] == results["bbox"]["AP10"] == 0
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []
    assert (tmp_path / "froc.png").exists()
    evaluator = LesionEvaluator(NAME, num_bootstrap=20)
    evaluator.reset()
    same(evaluator.evaluate(), results)  # not even an image


def test_without_lesions_the_numbers_are_undefined(register, tmp_path):
    dicts = register(make_dicts(8))
    for record in dicts:
        record["annotations"] = []
    outputs = [predict(d) for d in dicts]
    for predictions in (outputs, [make_instances([], []) for _ in dicts]):
        results = run(LesionEvaluator(NAME, tmp_path, num_bootstrap=20), dicts, predictions)
        assert results["bbox"].keys() >= {"AP", "AP50", "AP10"}
        assert all(math.isnan(value) for value in flatten_results_dict(results).values())
    assert json.loads((tmp_path / "froc.json").read_text())["rows"][0]["sens@4"] is None


def test_masks_in_predictions_alone(register, tmp_path):
    dicts = register(make_dicts(6))
    outputs = [predict(d) for d in dicts]
    plain = run(LesionEvaluator(NAME, tmp_path, num_bootstrap=0), dicts, outputs)
    for instances in outputs:
        instances.pred_masks = torch.zeros(len(instances), 320, 320, dtype=torch.bool)
        instances.pred_masks[:, 10:20, 10:20] = True
    coco_file = tmp_path / "coco_instances_results.json"
    plain_coco = json.loads(coco_file.read_text())
    results = run(LesionEvaluator(NAME, tmp_path, num_bootstrap=0), dicts, outputs)
    same(results, plain)
    assert json.loads(coco_file.read_text()) == plain_coco
    assert all(instances.has("pred_masks") for instances in outputs)  # they are the model's
    asked = LesionEvaluator(NAME, tmp_path, num_bootstrap=0, write_masks=True)
    same(run(asked, dicts, outputs), plain)
    coco = json.loads(coco_file.read_text())
    assert all(result.pop("segmentation")["size"] == [320, 320] for result in coco)
    assert coco == plain_coco


def test_masks_in_the_truth_are_evaluated(register, tmp_path):
    dicts = register(make_dicts(6))
    outputs = [predict(d) for d in dicts]
    for record in dicts:
        for annotation in record["annotations"]:
            x1, y1, x2, y2 = annotation["bbox"]
            annotation["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    for instances in outputs:
        instances.pred_masks = torch.zeros(len(instances), 320, 320, dtype=torch.bool)
        for mask, box in zip(instances.pred_masks, instances.pred_boxes, strict=True):
            x1, y1, x2, y2 = box.round().int().clamp(min=0).tolist()
            mask[y1:y2, x1:x2] = True
    results = run(LesionEvaluator(NAME, tmp_path / "a", num_bootstrap=0), dicts, outputs)
    assert results["segm"]["AP50"] > 5

    detectron2s = COCOEvaluator(NAME, output_dir=str(tmp_path / "b"), use_fast_impl=False)
    same({"segm": results["segm"]}, {"segm": run(detectron2s, dicts, outputs)["segm"]})
    ours, theirs = (
        json.loads((tmp_path / name / "coco_instances_results.json").read_text()) for name in "ab"
    )
    assert ours == theirs


def test_categories_have_the_ids_of_the_data_set(register, tmp_path):
    dicts = register(make_dicts(12, num_classes=3), classes="abc")
    MetadataCatalog.get(NAME).thing_dataset_id_to_contiguous_id = {30: 2, 5: 0, 12: 1}
    outputs = [predict(d, num_classes=3) for d in dicts]
    results = run(LesionEvaluator(NAME, tmp_path / "a", num_bootstrap=0), dicts, outputs)
    detectron2s = COCOEvaluator(NAME, output_dir=str(tmp_path / "b"), use_fast_impl=False)
    del results["bbox"]["AP10"]
    same({"bbox": results["bbox"]}, run(detectron2s, dicts, outputs))
    ours, theirs = ((tmp_path / name / "coco_instances_results.json").read_text() for name in "ab")
    assert ours == theirs and '"category_id": 30, ' in ours
    outputs[4].pred_classes = torch.full_like(outputs[4].pred_classes, 3)
    with pytest.raises(
        ValueError, match="'000001_01_01_004': found class 3, expected one of the 3"
    ):
        run(LesionEvaluator(NAME, num_bootstrap=0), dicts, outputs)


def test_truth_is_read_afresh(register):
    dicts = register(make_dicts(10))
    outputs = [predict(d) for d in dicts]
    first = run(LesionEvaluator(NAME, num_bootstrap=0), dicts, outputs)
    assert not hasattr(MetadataCatalog.get(NAME), "json_file")
    for record in dicts:
        record["annotations"] = record["annotations"][:1]
    MetadataCatalog.get(NAME).json_file = "stale.json"
    second = run(LesionEvaluator(NAME, num_bootstrap=0), dicts, outputs)
    assert MetadataCatalog.get(NAME).json_file == "stale.json"
    assert first["bbox"]["AP50"] != second["bbox"]["AP50"]
    assert first["froc"]["sens@1"] != second["froc"]["sens@1"]


def test_repeated_missing_and_unknown_images(register):
    dicts = register(make_dicts(9))
    outputs = [predict(d) for d in dicts]
    evaluator = LesionEvaluator(NAME, num_bootstrap=20)
    expected = run(evaluator, dicts, outputs)
    same(run(evaluator, dicts + dicts[:4], outputs + outputs[4:8]), expected)
    same(run(evaluator, dicts[::-1], outputs[::-1]), expected)
    empty = [*outputs[:6], *(make_instances([], []) for _ in range(3))]
    same(run(evaluator, dicts[:6], outputs[:6]), run(evaluator, dicts, empty))
    with pytest.raises(ValueError, match="'nowhere_001', expected one of made_up_lesions"):
        run(evaluator, [{**dicts[0], "image_id": "nowhere_001"}], outputs[:1])


def test_img_ids_restrict_everything(register):
    dicts = register(make_dicts(12))
    outputs = [predict(d) for d in dicts]
    evaluator = LesionEvaluator(NAME, num_bootstrap=20)
    run(evaluator, dicts, outputs)
    part = evaluator.evaluate([d["image_id"] for d in dicts[:7]])
    register(dicts[:7])
    same(part, run(LesionEvaluator(NAME, num_bootstrap=20), dicts[:7], outputs[:7]))
    with pytest.raises(ValueError, match="img_ids: found image_id 'x'"):
        evaluator.evaluate(["x"])


def test_a_data_set_without_images_or_with_one_twice_is_refused(register):
    register([])
    with pytest.raises(ValueError, match="made_up_lesions: found no images"):
        LesionEvaluator(NAME)
    register(make_dicts(2)[:1] * 2)
    with pytest.raises(ValueError, match="image_id '000000_01_01_000' twice"):
        LesionEvaluator(NAME)


def test_options_come_from_the_config(register):
    dicts = register(make_dicts(5))
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.TEST.NUM_BOOTSTRAP = 0
    results = run(LesionEvaluator(cfg, NAME), dicts, [predict(d) for d in dicts])
    assert results["froc"].keys() == {*(f"sens@{rate:g}" for rate in RATES), "mean_sens"}


def _evaluate_shard(rank, folder):
    evaluator = partial(LesionEvaluator, NAME, num_bootstrap=50)
    evaluate_shard(rank, folder, NAME, make_dicts(31), ["lesion"], evaluator, predict)


def test_two_processes_give_the_numbers_of_one(register, tmp_path):
    start_processes(_evaluate_shard, (str(tmp_path),), nprocs=2)
    two = torch.load(tmp_path / "results.pt", weights_only=False)
    dicts = register(make_dicts(31))
    evaluator = LesionEvaluator(NAME, tmp_path / "one", num_bootstrap=50)
    same(run(evaluator, dicts, [predict(d) for d in dicts]), two)
    for name in ("froc.json", "froc.csv", "coco_instances_results.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
