import json

from lesion_d2.engine.hard_negatives import MinedSet, write_mined_set
from lesion_d2.evaluation import (
    LesionEvaluator,
    VolumeEvaluator,
    detection_average_precision,
    froc_curve,
    match_detections,
)
from lesion_d2.evaluation.matching import paired_overlaps
from lesion_d2.inference import (
    Linker,
    batched_weighted_box_clustering,
    merge_slices,
    track_slices,
    weighted_box_clustering,
)
from lesion_d2.structures.boxes import (
    annotation_boxes,
    mask_extent,
    moved_xywh,
    set_first_pixel,
    xyxy_box,
)
from lesion_d2.tools.visualize.results import HARD_NEGATIVE, read_results

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

NAME = "counts_from_one"
FOUND = [10.25, 12.0, 30.0, 40.5]


@pytest.fixture
def dataset():
    """One slice of a volume with a lesion, of a data set whose files count from 1."""
    lesion = {"bbox": [10, 12, 20, 28], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    image = {
        "image_id": "one",
        "file_name": "007.png",
        "height": 64,
        "width": 64,
        "volume": "v",
        "slice_index": 7,
        "annotations": [{**lesion, "lesion_id": 1, "is_key": True}],
    }
    DatasetCatalog.register(NAME, lambda: [image])
    MetadataCatalog.get(NAME).set(thing_classes=["lesion"])
    set_first_pixel(NAME, 1.0)
    yield [image]
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def detected():
    instances = Instances((64, 64))
    instances.pred_boxes = Boxes(torch.tensor([FOUND]))
    instances.scores, instances.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    return {"instances": instances}


def test_results_are_in_the_files_coordinates_and_are_read_back(dataset, tmp_path):
    evaluator = LesionEvaluator(NAME, tmp_path, distributed=False, num_bootstrap=0)
    evaluator.reset()
    evaluator.process(dataset, [detected()])
    results = evaluator.evaluate()
    assert results["froc"]["sens@0.5"] == 100  # in pixels of the image the two agree
    file = tmp_path / "coco_instances_results.json"
    [entry] = json.loads(file.read_text())
    assert entry["bbox"] == [11.25, 13.0, 19.75, 28.5]
    found = read_results(str(file), dataset, NAME)["one"]
    assert found.pred_boxes.tensor.tolist() == [FOUND]


def test_boxes_in_3d_are_written_in_the_files_coordinates(dataset, tmp_path):
    link = Linker("merge", {"iou_threshold": 0.1})
    evaluator = VolumeEvaluator(NAME, tmp_path, link=link, distributed=False)
    evaluator.process(dataset, [detected()])
    assert evaluator.evaluate()["volume"]["AP10"] == pytest.approx(100)
    [entry] = json.loads((tmp_path / "volumes.json").read_text())["detections"]
    assert entry["box3d"] == [11.25, 13.0, 7, 31.0, 41.5, 7]  # slices have their own numbers
    assert entry["key_slices"] == {"7": [11.25, 13.0, 31.0, 41.5]}


def test_hard_negatives_are_written_in_the_files_coordinates(dataset, tmp_path):
    negative = {"bbox": FOUND, "category_id": 1, "score": 0.9, "box_iou": 0.1}
    write_mined_set(MinedSet({NAME: {"one": [negative]}}), tmp_path)
    file = tmp_path / "inference" / NAME / "hard_negatives.json"
    [entry] = json.loads(file.read_text())
    assert entry["bbox"] == [11.25, 13.0, 19.75, 28.5]
    found = read_results(str(file), dataset, NAME, required=HARD_NEGATIVE)["one"]
    assert found.pred_boxes.tensor.tolist() == [FOUND]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bbox": [1, 1, -5, 5]}, r"entry 1: bbox: found \[1, 1, -5, 5\], expected .* below 0"),
        (
            {"bbox": [1, 1, 5, float("nan")]},
            r"entry 1: bbox: found \[1, 1, 5, nan\], expected|height and a num",
        ),
        ({"category_id": 1}, r"entry 1: category_id: found 1, expected one of \[0\]"),
        ({"category_id": -1}, "entry 1: category_id: found -1, expected"),
        ({"category_id": 0.5}, "entry 1: category_id: found 0.5, expected"),
        ({"category_id": True}, "entry 1: category_id: found True, expected"),
        ({"score": True}, "entry 1: score: found True, expected"),
    ],
)
def test_result_files_with_what_cannot_be_are_refused(dataset, tmp_path, changes, message):
    good = {"image_id": "one", "category_id": 0, "bbox": [1, 1, 5, 5], "score": 0.5}
    file = tmp_path / "results.json"
    file.write_text(json.dumps([good, {**good, **changes}]))
    with pytest.raises(ValueError, match=message) as error:
        read_results(str(file), dataset, NAME)
    assert str(error.value).startswith(f"{file}: entry 1") and "\n" not in str(error.value)


def test_a_box_of_either_mode():
    box = [3, 4.5, 10, 20]
    assert xyxy_box({"bbox": box, "bbox_mode": BoxMode.XYXY_ABS}) == box
    assert xyxy_box({"bbox": [3, 4.5, 7, 15.5], "bbox_mode": BoxMode.XYWH_ABS}) == box
    assert moved_xywh(moved_xywh(box, 1.0), -1.0) == box
    for bad in ({}, {"bbox_mode": BoxMode.XYXY_REL}, {"bbox_mode": "xyxy"}):
        with pytest.raises(ValueError, match=r"found bbox_mode .*, expected BoxMode.XYXY_ABS or"):
            xyxy_box({"bbox": box, **bad})
    with pytest.raises(ValueError, match=r"found bbox \[1, 2\], expected four numbers"):
        xyxy_box({"bbox": [1, 2], "bbox_mode": BoxMode.XYXY_ABS})


GOOD = [0.0, 0.0, 9.0, 9.0]
NOT_BOXES = [[5.0, 0.0, 4.0, 9.0], [0.0, 9.0, 9.0, 8.9], [0.0, 0.0, np.nan, 9.0]]
WBC = {"iou_threshold": 0.2, "view_ids": [0, 0], "num_views": 1}


@pytest.mark.parametrize("bad", NOT_BOXES, ids=["x", "y", "nan"])
def test_every_public_function_refuses_what_is_no_box(bad):
    """The same words everywhere; functions of several images name the image."""
    boxes, scores = np.array([GOOD, bad]), np.array([0.5, 0.4])
    fine, none = np.array([GOOD]), np.empty((0, 4))
    of_images = (froc_curve, detection_average_precision)
    for function in of_images:
        with pytest.raises(ValueError, match=r"pred_boxes\[1\]: found .* no end before its start"):
            function([fine, boxes], [scores[:1], scores], [fine, fine])
        with pytest.raises(ValueError, match=r"gt_boxes\[2\]: found .* no end before its start"):
            function([fine, none, fine], [[0.1], [], [0.2]], [none, fine, boxes])
    calls = (
        lambda: paired_overlaps(boxes, boxes),
        lambda: weighted_box_clustering(boxes, scores, **WBC),
        lambda: batched_weighted_box_clustering(boxes, scores, [0, 1], **WBC),
        lambda: merge_slices(boxes, scores, [1, 2], iou_threshold=0.1),
        lambda: track_slices(boxes, scores, [1, 2], iou_threshold=0.1, max_gap=1),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"boxes\[1\]: found .* no end before its start"):
            call()
    with pytest.raises(ValueError, match=r"pred_boxes\[0\]: found .* no end before its start"):
        match_detections(boxes, scores, fine)


def test_boxes_of_volumes_that_end_a_slice_before_they_start_are_refused():
    boxes = [np.array([[0, 0, 5, 9, 9, 4.0]])]
    with pytest.raises(ValueError, match=r"pred_boxes\[0\]: found"):
        froc_curve(boxes, [[0.5]], [np.array([[0, 0, 4, 9, 9, 5.0]])])


def test_boxes_of_annotations_are_a_table():
    corners = {"bbox": [1, 2, 4, 6], "bbox_mode": BoxMode.XYXY_ABS}
    sizes = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS}
    assert annotation_boxes([corners, sizes]).tolist() == [[1, 2, 4, 6]] * 2
    assert annotation_boxes([]).shape == (0, 4)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_extent_of_a_mask_has_all_of_its_pixels(order):
    mask = np.zeros((5, 7), bool, order=order)
    assert mask_extent(mask) is None
    mask[1, 3] = mask[2, 6] = True
    assert mask_extent(mask) == (slice(1, 3), slice(3, 7))
    assert mask_extent(mask[:, :4]) == (slice(1, 2), slice(3, 4))
