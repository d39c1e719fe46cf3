"""Detections of many views become one each."""

from lesion_d2.inference import find_clusters
from lesion_d2.inference.cut_masks import cut_masks
from lesion_d2.inference.ensemble import consolidate
from lesion_d2.inference.views import ViewDetections

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from slow_boxes import slow_iou
from whole_masks import whole_masks


def _random_detections(seed, num=60, views=6):
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 25, (num, 2)), rng.uniform(4, 14, (num, 2))
    instances = Instances(
        (40, 48),
        pred_boxes=Boxes(torch.tensor(np.hstack([corner, corner + side]), dtype=torch.float32)),
        scores=torch.tensor(rng.uniform(0, 1, num), dtype=torch.float32),
        pred_classes=torch.tensor(rng.integers(0, 2, num)),
    )
    return ViewDetections(
        instances,
        cut_masks(torch.tensor(rng.uniform(size=(num, 40, 48)) < 0.5)),
        torch.tensor(rng.integers(0, views, num)),
        torch.full((num,), views),
        torch.tensor(rng.uniform(0.1, 1, num), dtype=torch.float32),
    )


@pytest.mark.parametrize("seed", range(4))
def test_clustering_averages_boxes_and_masks(seed):
    detections = _random_detections(seed)
    instances = detections.instances
    clusters = find_clusters(
        instances.pred_boxes.tensor.double().numpy(),
        instances.scores.double().numpy(),
        instances.pred_classes.numpy(),
        iou_threshold=0.3,
        view_ids=detections.view_ids.numpy(),
        num_views=6,
        center_weights=detections.center_weights.double().numpy(),
    )
    joined = consolidate(detections, "wbc", iou_threshold=0.3)

    assert 1 < len(joined) < 60
    np.testing.assert_allclose(joined.pred_boxes.tensor, clusters.boxes, rtol=1e-6)
    np.testing.assert_allclose(joined.scores, clusters.scores, rtol=1e-6)
    np.testing.assert_array_equal(joined.pred_classes, clusters.classes)
    for row, mask in enumerate(joined.pred_masks.numpy()):
        rows = clusters.members == row
        share = np.average(
            whole_masks(detections).numpy()[rows], axis=0, weights=clusters.weights[rows]
        )
        clear = abs(share - 0.5) > 1e-6  # not decided by rounding
        assert clear.mean() > 0.5
        np.testing.assert_array_equal(mask[clear], (share > 0.5)[clear])


def test_half_of_the_masks_is_not_a_majority():
    boxes = Boxes(torch.tensor([[1.0, 1, 5, 5]] * 2))
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 1:4, 1:6] = masks[1, 3:6, 1:6] = True
    instances = Instances((8, 8), pred_boxes=boxes, scores=torch.full((2,), 0.5))
    instances.pred_classes = torch.zeros(2, dtype=torch.int64)
    views = torch.arange(2), torch.full((2,), 2), torch.ones(2)
    detections = ViewDetections(instances, cut_masks(masks), *views)
    joined = consolidate(detections, "wbc")
    assert torch.equal(joined.pred_masks, masks[:1] & masks[1:])


@pytest.mark.parametrize("seed", range(4))
def test_nms_keeps_the_best_boxes_with_their_masks(seed):
    detections = _random_detections(seed)
    instances = detections.instances
    left, kept = instances.scores.argsort(descending=True).tolist(), []
    boxes, classes = instances.pred_boxes.tensor.tolist(), instances.pred_classes.tolist()
    while left:
        best, *left = left
        kept.append(best)
        left = [
            i for i in left if classes[i] != classes[best] or slow_iou(boxes[i], boxes[best]) <= 0.3
        ]
    joined = consolidate(detections, "nms", iou_threshold=0.3, max_detections=7)
    assert len(kept) > 7
    assert torch.equal(joined.scores, instances.scores[kept[:7]])
    assert torch.equal(joined.pred_boxes.tensor, instances.pred_boxes.tensor[kept[:7]])
    assert torch.equal(joined.pred_masks, whole_masks(detections)[kept[:7]])


@pytest.mark.parametrize("seed", range(4))
def test_cut_masks_are_whole_and_small(seed):
    rng = np.random.default_rng(seed)
    masks = torch.tensor(rng.uniform(size=(40, 12, 17)) < rng.choice([0, 0.005, 0.02], (40, 1, 1)))
    assert 0 < masks.any(dim=(1, 2)).sum() < 40
    for mask, cut in zip(masks, cut_masks(masks), strict=True):
        whole = torch.zeros_like(mask)
        whole[cut.window] = cut.pixels
        assert torch.equal(whole, mask)
        rows, columns = np.nonzero(mask.numpy())
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1) if len(rows) else 0
        assert cut.pixels.untyped_storage().nbytes() == area  # and not that of all masks
