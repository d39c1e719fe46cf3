from lesion_d2.modeling.proposal_generator.proposals import find_top_proposals
from lesion_d2.modeling.volumetric import Box2BoxTransform3D
from lesion_d2.structures import Boxes3D

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import Boxes
from slow_boxes import slow_iou

_TRANSFORM = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))


def _predictions(axes: int, number: int = 300):
    """Anchors, logits and deltas of two levels and two images; half of the logits are ties."""
    generator = torch.Generator().manual_seed(axes)
    anchors, logits, deltas = [], [], []
    for level in range(2):
        low = 40 * torch.rand(number, axes, generator=generator) - 5
        sides = 4 + 8 * (level + torch.rand(number, axes, generator=generator))
        anchors.append(torch.cat([low, low + sides], dim=1))
        scores = torch.randn(2, number, generator=generator)
        logits.append(torch.where(scores > 0, scores, scores.round()))
        deltas.append(2 * torch.randn(2, number, 2 * axes, generator=generator))
    return anchors, logits, deltas


@pytest.mark.parametrize("topk", [(50, 1000), (1000, 20)])
def test_on_images_they_are_detectron2s_to_the_bit(topk):
    anchors, logits, deltas = _predictions(2)
    sizes, anchors = [(32, 40), (30, 36)], list(map(Boxes, anchors))
    options = {"nms_threshold": 0.5, "pre_nms_topk": topk[0], "post_nms_topk": topk[1]}
    found = find_top_proposals(
        anchors, logits, deltas, sizes, _TRANSFORM, **options, min_box_size=2.0
    )
    decoded = [
        torch.stack([_TRANSFORM.apply_deltas(image, level.tensor) for image in level_deltas])
        for level, level_deltas in zip(anchors, deltas, strict=True)
    ]
    expected = find_top_rpn_proposals(decoded, logits, sizes, 0.5, *topk, 2.0, False)
    for ours, theirs in zip(found, expected, strict=True):
        assert 0 < len(ours) <= topk[1] and ours.image_size == theirs.image_size
        assert ours.get_fields().keys() == theirs.get_fields().keys()
        assert torch.equal(ours.proposal_boxes.tensor, theirs.proposal_boxes.tensor)
        assert torch.equal(ours.objectness_logits, theirs.objectness_logits)


def test_in_volumes_against_loops():
    anchors, logits, deltas = _predictions(3, number=60)
    transform = Box2BoxTransform3D((10.0, 10.0, 10.0, 5.0, 5.0, 5.0))
    size = (20, 32, 40)
    found = find_top_proposals(
        list(map(Boxes3D, anchors)),
        logits,
        deltas,
        [size, size],
        transform,
        nms_threshold=0.2,
        pre_nms_topk=30,
        post_nms_topk=25,
    )

    for image, ours in enumerate(found):
        kept = []
        for level in range(2):
            boxes = transform.apply_deltas(deltas[level][image], anchors[level])
            best = logits[level][image].topk(30).indices.tolist()
            on_level = []
            for number in best:
                box = boxes[number].tolist()
                for column, side in zip(range(6), (40, 32, 20) * 2, strict=True):
                    box[column] = min(max(box[column], -0.5), side - 0.5)
                is_empty = any(box[axis] >= box[axis + 3] for axis in range(3))
                if not is_empty and all(slow_iou(box, other) <= 0.2 for _, other in on_level):
                    on_level.append((logits[level][image][number].item(), box))
            kept += on_level
        kept.sort(key=lambda pair: -pair[0])
        assert 5 < len(ours) == min(25, len(kept))
        assert isinstance(ours.proposal_boxes, Boxes3D)
        expected = torch.tensor([score for score, _ in kept[:25]])
        assert torch.equal(ours.objectness_logits, expected)
        boxes = {tuple(round(x, 3) for x in box) for _, box in kept}
        assert {tuple(round(x, 3) for x in box) for box in ours.proposal_boxes.tensor.tolist()} <= (
            boxes
        )


def test_what_is_not_finite_is_dropped_and_in_training_an_error():
    anchors, logits, deltas = _predictions(2)
    deltas[0][0, :, 0] = torch.nan
    logits[1][0, 3] = torch.inf
    arguments = (list(map(Boxes, anchors)), logits, deltas, [(32, 40)] * 2, _TRANSFORM)
    options = {"nms_threshold": 0.5, "pre_nms_topk": 300, "post_nms_topk": 600}
    first, second = find_top_proposals(*arguments, **options)
    assert torch.isfinite(first.proposal_boxes.tensor).all()
    assert 0 < len(first) < len(second)
    with pytest.raises(FloatingPointError, match="Training has diverged"):
        find_top_proposals(*arguments, **options, is_training=True)
