from lesion_d2.modeling.roi_heads import ULDorOutputLayers

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import box_iou

SIZE = (80, 100)
THRESHOLD = 0.05


def make_layers(num_classes, *, agnostic=False, threshold=THRESHOLD, **kwargs):
    torch.manual_seed(0)
    return ULDorOutputLayers(
        ShapeSpec(channels=6),
        box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        num_classes=num_classes,
        cls_agnostic_bbox_reg=agnostic,
        test_score_thresh=threshold,
        **kwargs,
    )


def make_predictions(num_classes, counts, *, agnostic=False, seed=1):
    """Logits and deltas for so many proposals an image, which overlap a lot, and the proposals."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    logits = 2 * torch.randn(total, num_classes + 1, generator=generator)
    deltas = torch.randn(total, 4 * (1 if agnostic else num_classes), generator=generator)
    corners = 60 * torch.rand(total, 2, generator=generator)
    sides = 10 + 25 * torch.rand(total, 2, generator=generator)
    boxes = torch.cat([corners, corners + sides], dim=1)
    proposals = []
    for part in boxes.split(counts):
        instances = Instances(SIZE)
        instances.proposal_boxes = Boxes(part)
        proposals.append(instances)
    return (logits, deltas), proposals


def expected_detections(layers, logits, deltas, boxes):
    """(rank, score, class, box, proposal) of one image's detections, written out."""
    num_lesions = layers.num_classes - 1
    found = []
    for row, (scores, delta, box) in enumerate(
        zip(logits.softmax(dim=1), deltas, boxes, strict=True)
    ):
        apply = layers.box2box_transform.apply_deltas
        moved = apply(delta[None], box[None]).reshape(-1, 4)
        if len(moved) == 1:
            moved = moved.repeat(layers.num_classes, 1)
        moved[:, 0::2].clamp_(0, SIZE[1])
        moved[:, 1::2].clamp_(0, SIZE[0])
        is_false = all(scores[num_lesions] > score for score in scores[:num_lesions])
        for category in range(num_lesions):
            if not is_false and scores[category] > layers.test_score_thresh:
                score = scores[category].item()
                found.append((1 + score, score, category, moved[category], row))
        counts = layers.count_false_positives and is_false
        if counts and scores[num_lesions] > layers.test_score_thresh:
            category = int(scores[:num_lesions].argmax())
            score = scores[num_lesions].item()
            ranked = (score, score * layers.test_score_thresh)
            found.append((*ranked, category, moved[num_lesions], row))
    found.sort(key=lambda detection: -detection[0])
    kept = []
    for detection in found:
        rivals = [k[3] for k in kept if k[2] == detection[2]]
        if all(box_iou(r[None], detection[3][None]) <= layers.test_nms_thresh for r in rivals):
            kept.append(detection)
    return kept[: layers.test_topk_per_image]


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize("topk", [100, 3])
def test_inference_against_a_loop(num_classes, agnostic, count, topk):
    layers = make_layers(
        num_classes, agnostic=agnostic, count_false_positives=count, test_topk_per_image=topk
    )
    counts = [30, 0, 12]
    (logits, deltas), proposals = make_predictions(num_classes, counts, agnostic=agnostic)
    results, kept = layers.inference((logits, deltas), proposals)
    starts = [0, 30, 30]
    num_counted = 0

    for result, rows, proposal, start, number in zip(
        results, kept, proposals, starts, counts, strict=True
    ):
        part = slice(start, start + number)
        boxes = proposal.proposal_boxes.tensor
        expected = expected_detections(layers, logits[part], deltas[part], boxes)
        assert len(result) == len(expected)
        assert rows.tolist() == [row for *_, row in expected]
        assert result.pred_classes.tolist() == [category for _, _, category, *_ in expected]
        assert result.scores.tolist() == pytest.approx([score for _, score, *_ in expected])
        if expected:
            torch.testing.assert_close(
                result.pred_boxes.tensor, torch.stack([box for *_, box, _ in expected])
            )
        num_counted += int((result.scores <= THRESHOLD).sum())
    assert num_counted == 0 or count
    assert num_counted > 0 or not count or topk < 100


def test_counted_false_positives_come_after_the_detections_that_dropping_gives():
    predictions, proposals = make_predictions(2, [40])
    [dropped], _ = make_layers(2).inference(predictions, proposals)
    [counted], _ = make_layers(2, count_false_positives=True).inference(predictions, proposals)
    same = counted[: len(dropped)]
    assert torch.equal(same.scores, dropped.scores)
    assert torch.equal(same.pred_boxes.tensor, dropped.pred_boxes.tensor)
    assert len(counted) > len(dropped)
    assert (counted.scores[len(dropped) :] < THRESHOLD).all()


def test_dropped_false_positives_take_no_place_among_the_detections():
    layers = make_layers(2, test_topk_per_image=1)
    _, proposals = make_predictions(2, [2])
    logits = torch.tensor([[0.0, 9.0, 0.0], [3.0, 0.0, 3.0]])  # a sure false positive, a lesion
    [result], [row] = layers.inference((logits, torch.zeros(2, 8)), proposals)
    assert row.tolist() == [1]
    assert result.scores.item() == pytest.approx(logits[1].softmax(dim=0)[0].item())


def test_outside_training_the_loss_takes_false_positives_for_background():
    layers = make_layers(2)
    (logits, deltas), [proposals] = make_predictions(2, [12])
    proposals.gt_classes = torch.tensor([0, 2] * 6)  # lesions and background
    proposals.gt_boxes = proposals.proposal_boxes

    def losses(logits):
        with EventStorage():
            return layers.losses((logits, deltas), [proposals])

    merged = logits[:, 1:].exp().sum(dim=1).log()
    two = torch.stack([logits[:, 0], merged], dim=1)
    targets = (proposals.gt_classes > 0).long()
    expected = torch.nn.functional.cross_entropy(two, targets)
    in_training = losses(logits)
    layers.eval()
    found = losses(logits)
    torch.testing.assert_close(found["loss_cls"], expected)
    torch.testing.assert_close(found["loss_box_reg"], in_training["loss_box_reg"])
    assert in_training["loss_cls"] > found["loss_cls"]


def test_invalid_keys_are_refused():
    with pytest.raises(ValueError, match="NUM_CLASSES: found 1, expected 2 or more"):
        make_layers(1)
    with pytest.raises(ValueError, match=r"SCORE_THRESH_TEST: found 0\.0, expected more than 0"):
        make_layers(2, threshold=0.0, count_false_positives=True)
