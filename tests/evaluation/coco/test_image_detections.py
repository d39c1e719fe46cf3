import json

from lesion_d2.evaluation.coco import ImageDetections

import numpy as np
import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances


def made_up_instances(count, masks):
    rng = np.random.default_rng(count)
    low = rng.uniform(-3, 60, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(0, 30, low.shape)], axis=1)
    result = Instances((90, 100))
    result.pred_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
    result.scores = torch.as_tensor(rng.random(count) ** 40, dtype=torch.float32)  # 1e-20 as well
    result.pred_classes = torch.as_tensor(rng.integers(0, 12, count))
    if masks:
        result.pred_masks = torch.as_tensor(rng.random((count, 90, 100)) < 0.01)
    return result


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("count", [0, 1, 30])
def test_results_are_those_of_detectron2(count, masks):
    instances = made_up_instances(count, masks)
    found = ImageDetections.from_instances(instances, masks=True)
    expected = instances_to_coco_json(instances, "scan_7")
    assert json.dumps(found.results("scan_7")) == json.dumps(expected)
    for result in expected:
        result["bbox"][0] += 1.0
        result["bbox"][1] += 1.0
    assert json.dumps(found.results("scan_7", 1)) == json.dumps(expected)
    assert len(found) == count and len(ImageDetections.empty()) == 0


def test_boxes_and_masks():
    instances = made_up_instances(4, masks=True)
    found = ImageDetections.from_instances(instances, masks=False)
    assert found.masks is None
    np.testing.assert_allclose(found.xyxy, instances.pred_boxes.tensor, atol=1e-5)
    assert instances.has("pred_masks")  # they are the model's


def test_low_precision_is_read():
    instances = made_up_instances(3, masks=False)
    instances.scores = instances.scores.bfloat16()
    found = ImageDetections.from_instances(instances, masks=False)
    assert found.scores.tolist() == instances.scores.tolist()
