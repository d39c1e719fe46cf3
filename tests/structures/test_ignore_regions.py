import pickle

from lesion_d2.structures import Boxes3D
from lesion_d2.structures.ignore_regions import (
    HostFlags,
    lesions_of,
    lie_inside,
    mark_regions,
    region_boxes,
    regions_of,
    split_regions,
)

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances


def is_inside(box, regions):
    """Whether half of a box's area is in one region, word by word."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    for region in regions:
        width = max(0, min(box[2], region[2]) - max(box[0], region[0]))
        height = max(0, min(box[3], region[3]) - max(box[1], region[1]))
        if area > 0 and width * height / area >= 0.5:
            return True
    return False


@pytest.mark.parametrize("num_regions", [0, 1, 4])
def test_boxes_in_regions_against_a_loop(num_regions):
    rng = np.random.default_rng(num_regions)
    corners = rng.integers(0, 40, (300, 2))
    boxes = np.hstack([corners, corners + rng.integers(0, 16, (300, 2))])
    regions = np.hstack([corners, corners + rng.integers(8, 30, (300, 2))])[:num_regions]
    found = lie_inside(*(Boxes(torch.from_numpy(each).float()) for each in (boxes, regions)))
    expected = [is_inside(box, regions.tolist()) for box in boxes.tolist()]
    assert found.tolist() == expected and any(expected) == (num_regions > 0)


def test_half_of_a_box_is_inside_and_two_quarters_are_not():
    boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10.1]]))
    assert lie_inside(boxes, Boxes(torch.tensor([[5.0, -9, 50, 50]]))).tolist() == [True, True]
    assert lie_inside(boxes, Boxes(torch.tensor([[-3.0, 0, 30, 5]]))).tolist() == [True, False]
    quarters = Boxes(torch.tensor([[0.0, 0, 2.5, 10], [7.5, 0, 10, 10]]))
    assert not lie_inside(boxes, quarters).any()


def test_in_volumes_half_of_a_box_is_half_of_its_voxels():
    boxes = Boxes3D(torch.tensor([[0.0, 0, 0, 10, 10, 4], [0, 0, 0, 10, 10, 4.1]]))
    regions = Boxes3D(torch.tensor([[-5.0, -5, -5, 20, 20, 2], [90.0, 90, 90, 99, 99, 99]]))
    assert lie_inside(boxes, regions).tolist() == [True, False]
    assert not lie_inside(boxes, regions[:0]).any()
    instances = Instances((9, 9, 9), gt_boxes=Boxes3D.cat([regions, boxes]))
    mark_regions(instances, 2)
    others, found = split_regions(instances)
    assert torch.equal(others.gt_boxes.tensor, boxes.tensor) and type(found.gt_boxes) is Boxes3D


def test_annotations_are_lesions_or_regions():
    annotations = [{"iscrowd": 0, "n": 1}, {"iscrowd": 1, "n": 2}, {"n": 3}]
    assert [a["n"] for a in lesions_of(annotations)] == [1, 3]
    assert [a["n"] for a in regions_of(annotations)] == [2]
    region = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1}
    lesion = {"bbox": [5, 5, 6, 6], "bbox_mode": BoxMode.XYXY_ABS}
    assert region_boxes({"annotations": [lesion, region]}).tolist() == [[1, 2, 4, 6]]
    assert region_boxes({}).shape == (0, 4)


def instances_of(num_regions, number):
    boxes = Boxes(torch.arange(4.0 * number).reshape(number, 4))
    instances = Instances((64, 64), gt_boxes=boxes, gt_classes=torch.arange(number))
    mark_regions(instances, num_regions)
    return instances


def test_regions_part_from_lesions_and_stay_on_the_host():
    plain = instances_of(0, 3)
    assert split_regions(plain)[0] is plain and split_regions(plain)[1] is None
    moved = pickle.loads(pickle.dumps(instances_of(2, 5))).to("cpu")
    assert isinstance(moved.is_region, HostFlags)
    lesions, regions = split_regions(moved)
    assert lesions.gt_classes.tolist() == [2, 3, 4] and regions.gt_classes.tolist() == [0, 1]
    assert not lesions.has("is_region") and moved.has("is_region")
    lesions, regions = split_regions(instances_of(2, 2))
    assert len(lesions) == 0 and len(regions) == 2
    lesions, regions = split_regions(moved[torch.tensor([False, True, True, False, True])])
    assert lesions.gt_classes.tolist() == [2, 4] and regions.gt_classes.tolist() == [1]
    assert moved[torch.tensor([4, 0])].is_region == [False, True]
