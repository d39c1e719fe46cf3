"""Detections in regions to ignore: by themselves, and in the numbers of both evaluators."""

from lesion_d2.evaluation import (
    LesionEvaluator,
    VolumeEvaluator,
    detection_average_precision,
    froc_curve,
    match_detections,
    match_images,
)
from lesion_d2.evaluation.excused import boxes_in_regions, tracklets_in_regions
from lesion_d2.inference import Linker

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from made_up_lesions import (
    coco_average_precision,
    make_dicts,
    make_instances,
    predict,
    registering,
    run,
    same,
)
from made_up_volume_lesions import detect
from made_up_volume_lesions import make_dicts as make_volumes
from pycocotools import mask as mask_util

NAME = "lesions_beside_regions"


def share_inside(box, region, extra=0.0):
    """Share of a box's own area that lies in a region."""
    sides = [min(box[i + 2], region[i + 2]) - max(box[i], region[i]) + extra for i in (0, 1)]
    area = (box[2] - box[0] + extra) * (box[3] - box[1] + extra)
    return max(0, sides[0]) * max(0, sides[1]) / area if area else 0.0


def random_boxes(rng, number, low=0, high=30):
    corners = rng.integers(0, 60, (number, 2))
    return np.hstack([corners, corners + rng.integers(low, high, (number, 2))]).astype(float)


@pytest.mark.parametrize("inclusive", [False, True])
def test_boxes_in_regions_against_a_loop(inclusive):
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 200)
    for number in (0, 1, 5):
        regions = random_boxes(rng, number, 0, 60)
        shares = [[share_inside(b, r, float(inclusive)) for r in regions] for b in boxes]
        expected = [max(each, default=0) >= 0.5 for each in shares]
        assert boxes_in_regions(boxes, regions, inclusive=inclusive).tolist() == expected
        assert any(expected) == (number > 0)
    assert boxes_in_regions(boxes[:0], regions).tolist() == []


@pytest.mark.parametrize("inclusive", [False, True])
def test_tracklets_in_regions_against_a_loop(inclusive):
    rng, extra = np.random.default_rng(1), float(inclusive)
    planes, numbers = random_boxes(rng, 300), rng.integers(0, 5, 300)
    tracklets = rng.integers(0, 60, 300)
    slices = np.column_stack([planes[:, :2], numbers, planes[:, 2:], numbers])
    regions = {n: random_boxes(rng, n, 40, 90) for n in (1, 2, 4)}
    found = tracklets_in_regions(slices, tracklets, 61, regions, inclusive=inclusive)
    expected = []
    for i in range(61):
        whole = inside = 0.0
        for box, number in zip(planes[tracklets == i], numbers[tracklets == i], strict=True):
            area = (box[2] - box[0] + extra) * (box[3] - box[1] + extra)
            shares = [share_inside(box, r, extra) for r in regions.get(number, [])]
            whole, inside = whole + area, inside + max(shares, default=0) * area
        expected.append(whole > 0 and inside >= 0.5 * whole)
    assert found.tolist() == expected and 3 < sum(expected) < 50


def make_case(seed):
    """Detections, scores, lesions and regions of some images."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(12):
        truth = random_boxes(rng, rng.integers(0, 4), 8, 38)
        near = (truth + rng.normal(0, 2, truth.shape))[rng.random(len(truth)) < 0.8]
        boxes = np.concatenate([near, near + 1, random_boxes(rng, 6, 5, 35)])
        order = rng.permutation(len(boxes))
        scores = (rng.permutation(1000)[: len(boxes)] + 1.0) / 1000
        regions = random_boxes(rng, rng.integers(0, 3), 9, 69)
        images.append((boxes[order], scores, truth, regions))
    return [list(each) for each in zip(*images, strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_froc_is_that_without_the_detections_that_are_neither(seed):
    boxes, scores, truth, regions = make_case(seed)
    excused = [boxes_in_regions(*pair) for pair in zip(boxes, regions, strict=True)]
    curve = froc_curve(boxes, scores, truth, excused=excused)
    left = []
    for found, given, lesions, inside in zip(boxes, scores, truth, excused, strict=True):
        reaches = ~match_detections(found, given, lesions).false_positives
        left.append((found[reaches | ~inside], given[reaches | ~inside]))
    expected = froc_curve(*map(list, zip(*left, strict=True)), truth)
    rates = [0.25, 0.5, 1, 2, 4, 8]
    assert curve.at(rates).tolist() == expected.at(rates).tolist()

    plain = froc_curve(boxes, scores, truth)
    assert (curve.at(rates) >= plain.at(rates)).all() and curve.at(rates).sum() > plain.at(
        rates
    ).sum()

    nothing = froc_curve(boxes, scores, truth, excused=[e & False for e in excused])
    assert np.array_equal(nothing.fps_per_image, plain.fps_per_image)
    areas = [
        detection_average_precision(*case, iou_threshold=0.5, method="all_points", **options)
        for case, options in (
            ((boxes, scores, truth), {"excused": excused}),
            ((*map(list, zip(*left, strict=True)), truth), {}),
        )
    ]
    assert areas[0] == areas[1]


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_cocos_with_crowds(seed):
    boxes, scores, truth, regions = make_case(seed)
    excused = [boxes_in_regions(*pair) for pair in zip(boxes, regions, strict=True)]
    found = detection_average_precision(boxes, scores, truth, iou_threshold=0.5, excused=excused)
    assert found == pytest.approx(
        coco_average_precision(boxes, scores, truth, 0.5, regions), abs=1e-9
    )
    assert found > detection_average_precision(boxes, scores, truth, iou_threshold=0.5)


def test_what_is_excused_has_a_flag_a_detection():
    case = [np.array([[0.0, 0, 1, 1]])], [np.array([0.5])], [np.zeros((0, 4))]
    with pytest.raises(ValueError, match="excused: found 2 entries, expected 1"):
        match_images(*case, excused=[np.array([True])] * 2)
    message = r"excused\[0\]: found shape \(2,\) of type bool, expected \(1,\) of type bool"
    with pytest.raises(ValueError, match=message):
        match_images(*case, excused=[np.array([True, False])])
    with pytest.raises(ValueError, match=r"excused\[0\]: found shape \(1,\) of type int64"):
        match_images(*case, excused=[np.array([1])])


@pytest.fixture
def register():
    with registering(NAME, ["lesion"], "lesion") as add:
        yield lambda dicts, kind, classes: add(dicts, classes, kind)


def region(box, **fields):
    return {
        "bbox": list(box),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "iscrowd": 1,
        **fields,
    }


def joined(first, second):
    """Two Instances, the fields of the first."""
    return Instances.cat([first, second])


@pytest.mark.parametrize("masks", [False, True])
def test_the_evaluators_numbers_are_those_without_what_lies_in_regions(register, masks):
    """Of slices of 320 x 320 px, those above 280 hold a region and detections alone."""
    dicts = make_dicts(12)
    outputs = []
    for record in dicts:
        found = predict(record)
        found = found[(found.pred_boxes.tensor < 240).all(dim=1)]
        outputs.append(found)
        record["annotations"] = [a for a in record["annotations"] if max(a["bbox"]) < 240]
        if masks:
            found.pred_masks = filled(found.pred_boxes.tensor)
            for a in record["annotations"]:
                [mask] = filled(torch.tensor([a["bbox"]]))
                a["segmentation"] = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    register(dicts, "lesion", ["lesion"])
    expected = run(LesionEvaluator(NAME, distributed=False, num_bootstrap=20), dicts, outputs)
    assert ("segm" in expected) == masks

    with_regions, noisy = [], []
    for i, (record, found) in enumerate(zip(dicts, outputs, strict=True)):
        added = make_instances([[285, 300, 300, 310], [282, 285, 318, 318]], [0.97, 0.91])
        if masks:
            added.pred_masks = filled(added.pred_boxes.tensor)
        noisy.append(joined(found, added))
        annotations = [region([280, 280, 320, 320]), *record["annotations"]]
        with_regions.append({**record, "annotations": annotations if i else annotations[::-1]})
    register(with_regions, "lesion", ["lesion"])
    found = run(LesionEvaluator(NAME, distributed=False, num_bootstrap=20), with_regions, noisy)
    same(expected, found)

    register(dicts, "lesion", ["lesion"])  # without the regions they are errors
    assert (
        run(LesionEvaluator(NAME, distributed=False, num_bootstrap=20), dicts, noisy)["froc"]
        != expected["froc"]
    )


def filled(boxes):
    masks = torch.zeros(len(boxes), 320, 320, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[max(y1, 0) : y2 + 1, max(x1, 0) : x2 + 1] = True
    return masks


def test_the_volume_evaluators_numbers_are_those_without_what_lies_in_regions(register):
    dicts = make_volumes(2)
    outputs = [detect(record) for record in dicts]
    # Without the boxes at 150, where the region will be.
    outputs = [found[found.pred_boxes.tensor[:, 0] < 150] for found in outputs]
    link = Linker("merge", {"iou_threshold": 0.1})
    register(dicts, "lesion_volume", "abc")
    expected = run(VolumeEvaluator(NAME, link=link, distributed=False), dicts, outputs)
    with_regions, noisy = [], []
    for record, found in zip(dicts, outputs, strict=True):
        box = [150 + record["slice_index"] % 2, 150, 170, 170]
        added = Instances((200, 200), pred_boxes=Boxes(torch.tensor([box]).float()))
        added.scores, added.pred_classes = torch.tensor([0.96]), torch.tensor([1])
        noisy.append(joined(found, added))
        annotations = list(record["annotations"])
        if record["slice_index"] < 17:  # most of it
            annotations.append(region([140, 140, 190, 190]))
        with_regions.append({**record, "annotations": annotations})
    register(with_regions, "lesion_volume", "abc")
    evaluator = VolumeEvaluator(NAME, link=link, distributed=False)
    same(expected, run(evaluator, with_regions, noisy))

    register(dicts, "lesion_volume", "abc")
    plain = run(VolumeEvaluator(NAME, link=link, distributed=False), dicts, noisy)
    assert plain["volume"]["mean_sens"] < expected["volume"]["mean_sens"]
    assert plain["volume"]["patient_AP"] != expected["volume"]["patient_AP"]
