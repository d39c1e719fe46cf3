"""The evaluation of boxes and masks against pycocotools' own, to the last digit."""

import contextlib
import io

from lesion_d2.evaluation.coco import CocoEvaluation, ImageDetections
from lesion_d2.structures.rle import encode_masks

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIZE = 128


def made_up_boxes(rng, count):
    """Whole pixels, so that many overlap alike; some areas are exactly 32^2 or 96^2."""
    low = rng.integers(0, 24, (count, 2))
    sides = rng.choice([8, 9, 10, 16, 32, 64, 96], (count, 2))
    return np.concatenate([low, sides], axis=1).astype(float)


def as_masks(boxes):
    """Boxes with a hole of random size."""
    rng = np.random.default_rng(len(boxes))
    masks = np.zeros((len(boxes), SIZE, SIZE), dtype=bool)
    for mask, (x, y, width, height) in zip(masks, boxes.astype(int), strict=True):
        mask[y : y + height, x : x + width] = True
        mask[y + 1 : y + rng.integers(1, 8), x + 1 : x + 7] = False
    return encode_masks(masks)


def made_up_case(seed):
    """A data set whose annotations are not in the order of its images, and detections."""
    rng = np.random.default_rng(seed)
    ids = [f"scan_{number}" for number in rng.permutation(9)]
    annotations, detections = [], {}
    for number, image_id in enumerate(ids):
        truth = made_up_boxes(rng, rng.integers(2, 6) * (number % 4 > 0))
        for box, mask in zip(truth, as_masks(truth), strict=True):
            annotation = {"image_id": image_id, "category_id": int(rng.choice([3, 7]))}
            annotation |= {"bbox": box.tolist(), "area": float(box[2] * box[3])}
            annotation |= {"iscrowd": int(rng.random() < 0.2), "segmentation": mask}
            annotations.append(annotation)
        near = np.repeat(truth, rng.integers(0, 4), axis=0)
        near[:, :2] += rng.integers(-2, 3, near[:, :2].shape).clip(min=-near[:, :2])
        boxes = np.concatenate([near, made_up_boxes(rng, rng.integers(0, 8))])
        scores = rng.integers(1, 9, len(boxes)) / 8
        categories = rng.choice([3, 7, 9, 11], len(boxes), p=[0.4, 0.4, 0.1, 0.1])
        if number % 5:
            detections[image_id] = ImageDetections(boxes, scores, categories, as_masks(boxes))
    rng.shuffle(annotations)
    dataset = {
        "images": [{"id": image_id, "height": SIZE, "width": SIZE} for image_id in ids],
        "categories": [{"id": 3}, {"id": 7}, {"id": 9}],  # 9 has no object, and 11 is unknown
        "annotations": [{"id": k, **a} for k, a in enumerate(annotations, 1)],
    }
    return dataset, detections


def as_coco(dataset):
    coco = COCO()
    # pycocotools writes into annotations.
    coco.dataset = {**dataset, "annotations": [dict(a) for a in dataset["annotations"]]}
    coco.createIndex()
    return coco


def pycocotools_evaluation(dataset, detections, task):
    results = [
        {"image_id": image_id, "category_id": int(category), "score": float(score)}
        | ({"bbox": box.tolist()} if task == "bbox" else {"segmentation": mask})
        for image_id, found in detections.items()
        for box, score, category, mask in zip(
            found.boxes, found.scores, found.categories, found.masks, strict=True
        )
    ]
    coco = as_coco(dataset)
    return COCOeval(coco, coco.loadRes(results), task)


def run(evaluation, **params):
    vars(evaluation.params).update(params)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval


@pytest.fixture(autouse=True)
def no_output():
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize(("seed", "first"), [(0, 0), (1, 0), (1, 2), (5, 0)])
def test_all_numbers_are_those_of_pycocotools(seed, first, task):
    """With equal scores and overlaps, crowds, areas at the ends of ranges, and too many boxes."""
    dataset, detections = made_up_case(seed)
    ids = [image["id"] for image in dataset["images"]]
    params = {"maxDets": [1, 2, 4], "imgIds": ids[first:]}
    ours = CocoEvaluation(as_coco(dataset), detections, task, more_thresholds=[0.1])
    ours = run(ours, **params)
    theirs = run(pycocotools_evaluation(dataset, detections, task), **params)
    assert ours["counts"] == theirs["counts"]
    for name in ("precision", "recall"):
        assert np.array_equal(ours[name], theirs[name]), name
    low = pycocotools_evaluation(dataset, detections, task)
    low = run(low, iouThrs=np.array([0.1]), **params)["precision"]
    assert np.array_equal(ours["more_precision"], low)
    assert (low[:, :, 2] == -1).all() and 0.1 < low[:, :, :2, 0, -1].mean() < 0.9
    assert len(np.unique(ours["precision"])) > 8


def test_ranges_of_area_hold_both_ends():
    """A box of 32 x 32 pixels is small and medium, one of 96 x 96 medium and large."""
    boxes = np.array([[0.0, 0, 32, 32], [40, 0, 96, 96]])
    dataset, _ = made_up_case(0)
    dataset["annotations"] = [
        {"id": k, "image_id": "scan_1", "category_id": 3, "bbox": box.tolist(), "iscrowd": 0}
        | {"area": float(box[2] * box[3])}
        for k, box in enumerate(boxes, 1)
    ]

    def evaluate(kept):
        count = len(boxes[kept])
        found = ImageDetections(boxes[kept], np.linspace(0.9, 0.8, count), np.full(count, 3))
        evaluation = CocoEvaluation(as_coco(dataset), {"scan_1": found})
        return evaluation, run(evaluation)["recall"][0, 0, :, -1].tolist()

    # Of all sizes, small, medium and large ones.
    assert evaluate([0])[1] == [0.5, 1, 0.5, 0]
    assert evaluate([1])[1] == [0.5, 0, 0.5, 1]

    evaluation, recall = evaluate([0, 1])
    assert recall == [1, 1, 1, 1]
    evaluation.summarize()
    assert evaluation.stats[:6] == pytest.approx(1)


def test_no_object_or_no_detection():
    dataset, detections = made_up_case(1)
    nothing_found = run(CocoEvaluation(as_coco(dataset), {}))
    assert (nothing_found["recall"][:, :2, 0] == 0).all()
    assert (nothing_found["precision"][:, :, :2, 0] == 0).all()
    del dataset["annotations"][:]
    coco = as_coco(dataset)
    assert (run(CocoEvaluation(coco, detections))["precision"] == -1).all()
    del coco.dataset["annotations"]  # as Detectron2 writes a data set without any
    assert (run(CocoEvaluation(coco, {}, "segm"))["recall"] == -1).all()


def test_what_cannot_be_scored():
    dataset, detections = made_up_case(2)
    with pytest.raises(ValueError, match="iou_type: found 'keypoints', expected 'bbox' or 'segm'"):
        CocoEvaluation(as_coco(dataset), detections, "keypoints")
    bare = {i: ImageDetections(d.boxes, d.scores, d.categories) for i, d in detections.items()}
    with pytest.raises(ValueError, match=r"image 'scan_\d+': found detections without masks"):
        CocoEvaluation(as_coco(dataset), bare, "segm").evaluate()
