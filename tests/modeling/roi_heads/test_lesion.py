from lesion_d2.modeling import LesionROIHeads

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from slow_boxes import slow_iou
from tiny_run import tiny_config

_LEVELS = {"p2": 4, "p3": 8}


def _heads(kind=LesionROIHeads, **changes):
    cfg = tiny_config(
        MODEL__ROI_HEADS__IN_FEATURES=tuple(_LEVELS),
        MODEL__ROI_HEADS__NUM_CLASSES=2,
        MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=8,
        MODEL__ROI_HEADS__POSITIVE_FRACTION=0.5,
        MODEL__ROI_BOX_HEAD__NAME="FastRCNNConvFCHead",
        MODEL__ROI_BOX_HEAD__NUM_FC=1,
        MODEL__ROI_BOX_HEAD__FC_DIM=16,
        MODEL__MASK_ON=False,
        **changes,
    )
    torch.manual_seed(0)
    shapes = {name: ShapeSpec(channels=4, stride=stride) for name, stride in _LEVELS.items()}
    heads = kind(cfg, shapes)
    torch.nn.init.normal_(heads.box_predictor.cls_score.weight)
    return heads


def _images(seed=0):
    """Features of three images, 200 proposals each, and lesions; the last one has none."""
    generator = torch.Generator().manual_seed(seed)
    features = {
        name: torch.randn(3, 4, 64 // stride, 64 // stride, generator=generator)
        for name, stride in _LEVELS.items()
    }
    lesions = [[[8.0, 8.0, 24.0, 22.0], [30.0, 30.0, 50.0, 52.0]], [[20.0, 4.0, 40.0, 30.0]], []]
    proposals, targets = [], []
    for boxes in lesions:
        boxes = torch.tensor(boxes).reshape(-1, 4)
        close = boxes.repeat(10, 1) + 2 * torch.randn(10 * len(boxes), 4, generator=generator)
        corners = 48 * torch.rand(200 - len(close), 2, generator=generator)
        far = torch.cat([corners, corners + 14], dim=1)
        found = Instances((64, 64), proposal_boxes=Boxes(torch.cat([close, far])))
        found.objectness_logits = torch.zeros(200)
        proposals.append(found)
        classes = torch.arange(len(boxes))
        targets.append(Instances((64, 64), gt_boxes=Boxes(boxes), gt_classes=classes))
    return features, proposals, targets


def _drawn(heads, features, proposals, targets):
    with EventStorage():
        images = ImageList(torch.zeros(3, 3, 64, 64), [(64, 64)] * 3)
        drawn, losses = heads(images, features, proposals, targets)
    return drawn, losses


def _best_iou(box, lesions):
    """The IoU of a box with the best lesion, and which one."""
    ious = [0.0, *(slow_iou(box, lesion) for lesion in lesions)]
    return max(ious), ious.index(max(ious)) - 1


@pytest.mark.parametrize("appends", [False, True])
def test_the_hardest_negatives_are_drawn_as_in_a_slow_loop(appends):
    """Positives from IoU 0.5 on, negatives below 0.1, what lies between does not count."""
    heads = _heads(
        MODEL__LESION_RCNN__SHEM_POOL=3,
        MODEL__ROI_HEADS__IOU_THRESHOLDS=[0.1, 0.5],
        MODEL__ROI_HEADS__IOU_LABELS=[0, -1, 1],
        MODEL__ROI_HEADS__PROPOSAL_APPEND_GT=appends,
    )
    features, proposals, targets = _images()
    pools, positives = [], []
    for n, (found, lesions) in enumerate(zip(proposals, targets, strict=True)):
        scores, is_positive = [], []
        for box in found.proposal_boxes.tensor:
            one = [Boxes(box[None])]
            levels = [features[name][n : n + 1] for name in _LEVELS]
            with torch.no_grad():
                logits, _ = heads.box_predictor(heads.box_head(heads.box_pooler(levels, one)))
            iou, _ = _best_iou(box.tolist(), lesions.gt_boxes.tensor.tolist())
            is_positive.append(iou >= 0.5)
            scores.append(logits.softmax(dim=1)[0, :-1].max().item() if iou < 0.1 else -1.0)
        number = max(1, min(4, sum(is_positive) + appends * len(lesions)))
        order = sorted(range(200), key=lambda r: -scores[r])
        pools.append({tuple(found.proposal_boxes.tensor[r].tolist()) for r in order[: 3 * number]})
        positives.append((sum(is_positive) + appends * len(lesions), number))
    assert min(count for count, _ in positives[:2]) > 4 and positives[2][0] == 0

    seen = [set() for _ in pools]
    for seed in range(40):
        torch.manual_seed(seed)
        drawn, _ = _drawn(heads, *_images())
        for instances, pool, chosen, (count, number) in zip(
            drawn, pools, seen, positives, strict=True
        ):
            is_negative = instances.gt_classes == 2
            assert is_negative.sum() == number and (~is_negative).sum() == min(4, count)
            boxes = set(map(tuple, instances.proposal_boxes.tensor[is_negative].tolist()))
            assert len(boxes) == number and boxes <= pool
            chosen |= boxes
            for box, category in zip(
                instances.proposal_boxes.tensor[~is_negative].tolist(),
                instances.gt_classes[~is_negative].tolist(),
                strict=True,
            ):
                iou, lesion = _best_iou(
                    box, targets[drawn.index(instances)].gt_boxes.tensor.tolist()
                )
                assert iou >= 0.5 and category == lesion
    assert seen == pools


def test_annotations_to_ignore_are_neither_drawn_as_lesions_nor_as_background():
    heads = _heads(MODEL__LESION_RCNN__SHEM_POOL=5)
    features, proposals, targets = _images()
    targets[0].gt_classes[:] = torch.tensor([-1, 1])
    drawn, losses = _drawn(heads, features, proposals, targets)
    assert set(drawn[0].gt_classes.tolist()) == {1, 2}
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_without_shem_it_is_detectron2s():
    results = []
    for kind in (LesionROIHeads, StandardROIHeads):
        heads = _heads(kind)
        torch.manual_seed(3)
        results.append(_drawn(heads, *_images()))
    (ours, our_losses), (theirs, their_losses) = results
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor)
        assert torch.equal(a.gt_classes, b.gt_classes)
    assert our_losses == their_losses
