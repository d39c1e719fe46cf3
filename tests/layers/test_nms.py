import lesion_d2  # noqa: F401, it makes detectron2 importable
from lesion_d2.layers import batched_nms, nms, nms_3d

import pytest
import torch
from detectron2.layers import batched_nms as detectron2_nms
from slow_boxes import slow_iou

THRESHOLDS = (0.0, 0.1, 1 / 3)


def written_out(boxes, scores, groups, threshold):
    """Box by box."""
    boxes, kept = boxes.double().tolist(), []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        rivals = [k for k in kept if groups[k] == groups[i]]
        if all(slow_iou(boxes[k], boxes[i]) <= threshold for k in rivals):
            kept.append(i)
    return kept


def crowded_boxes(number, seed):
    """Boxes on a grid of halves with equal scores among them, so that IoUs and scores tie."""
    generator = torch.Generator().manual_seed(seed)
    low = (torch.rand(number, 3, generator=generator) * 4).round() / 2
    sides = (torch.rand(number, 3, generator=generator) * 6).round() / 2
    scores = (torch.rand(number, generator=generator) * 20).round() / 20
    groups = torch.randint(0, 3, (number,), generator=generator)
    return torch.cat([low, low + sides], dim=1), scores, groups


@pytest.fixture(params=["host", "device"])
def path(request, monkeypatch):
    """Either way, with blocks so small that there are several, and rounds too few at first."""
    monkeypatch.setattr(nms, "_HOST_BLOCK", 16)
    if request.param == "device":
        monkeypatch.setattr(nms, "_PAIRS", 50 * 16)
        monkeypatch.setattr(nms, "_ROUNDS", 1)
        monkeypatch.setattr(nms, "_on_host", lambda boxes: False)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_it_keeps_what_a_loop_keeps(path, threshold):
    boxes, scores, groups = crowded_boxes(60, seed=0)
    alone = nms_3d(boxes, scores, threshold)
    assert alone.tolist() == written_out(boxes, scores, [0] * len(boxes), threshold)
    grouped = batched_nms(boxes, scores, groups, threshold)
    assert grouped.tolist() == written_out(boxes, scores, groups.tolist(), threshold)
    assert len(alone) < len(grouped) < len(boxes)


def test_a_long_chain_is_kept_at_every_other_link(path):
    starts = torch.arange(60.0)
    low = torch.stack([starts, 0 * starts, 0 * starts], dim=1)
    boxes = torch.cat([low, low + torch.tensor([1.5, 1.0, 1.0])], dim=1)
    kept = nms_3d(boxes, torch.linspace(1, 0, 60), 0.1)
    assert kept.tolist() == list(range(0, 60, 2))


def test_none_and_one(path):
    assert nms_3d(torch.zeros(0, 6), torch.zeros(0), 0.5).tolist() == []
    assert nms_3d(torch.ones(1, 6), torch.ones(1), 0.5).tolist() == [0]


def test_boxes_of_slices_go_to_detectron2():
    boxes, scores, groups = crowded_boxes(60, seed=1)
    flat = boxes[:, [0, 1, 3, 4]]
    assert torch.equal(
        batched_nms(flat, scores, groups, 0.3), detectron2_nms(flat, scores, groups, 0.3)
    )
