import math

from lesion_d2.modeling import LesionRPN

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from tiny_run import tiny_config

# Two levels, of small and of large anchors.
_ANCHORS = [
    Boxes(torch.tensor([[x, y, x + s, y + s] for y in range(0, 64, 4) for x in range(0, 64, 4)]))
    for s in (12.0, 24.0)
]
_TRUE, _PSEUDO_LABEL = [8.0, 8.0, 22.0, 20.0], [30.0, 30.0, 52.0, 54.0]


def _rpn(kind: type[RPN], batch_size: int, shem_pool: int = 0, **changes) -> RPN:
    cfg = tiny_config(
        MODEL__LESION_RCNN__SHEM_POOL=shem_pool,
        MODEL__RPN__IN_FEATURES=("p2", "p3"),
        MODEL__RPN__BATCH_SIZE_PER_IMAGE=batch_size,
        MODEL__ANCHOR_GENERATOR__SIZES=[[12], [24]],
        **changes,
    )
    torch.manual_seed(0)
    return kind(cfg, {name: ShapeSpec(channels=4, stride=4) for name in ("p2", "p3")})


def _image(*lesions: tuple[list[float], int]) -> Instances:
    boxes = Boxes(torch.tensor([box for box, _ in lesions]).reshape(-1, 4))
    classes = torch.tensor([number for _, number in lesions], dtype=torch.int64)
    return Instances((64, 64), gt_boxes=boxes, gt_classes=classes)


_IMAGES = [
    _image((_TRUE, 0), (_PSEUDO_LABEL, -1)),
    _image(),
    _image((_PSEUDO_LABEL, -1)),
    _image((_TRUE, 0)),
]


def test_anchors_that_match_an_ignored_annotation_have_no_label():
    labels, _ = _rpn(LesionRPN, 10_000).label_and_sample_anchors(_ANCHORS, _IMAGES)
    # As if the pseudo-label were annotated, by Detectron2: those are its positive anchors.
    rpn = _rpn(RPN, 10_000)
    added, boxes = rpn.label_and_sample_anchors(_ANCHORS, _IMAGES)
    overlaps = pairwise_iou(Boxes(torch.tensor([_TRUE, _PSEUDO_LABEL])), Boxes.cat(_ANCHORS))
    for number, image in enumerate(_IMAGES):
        matches = (boxes[number] == torch.tensor(_PSEUDO_LABEL)).all(dim=1)
        on_pseudo_label = (added[number] == 1) & matches
        assert on_pseudo_label.any() == (image.gt_classes < 0).any()
        expected = torch.where(on_pseudo_label, -1, added[number])
        assert torch.equal(labels[number], expected)
        assert (overlaps[1][on_pseudo_label] >= 0.3).all()
    assert (labels[0] == 1).any() and (labels[0] == 0).any() and not (labels[2] == 1).any()


def test_a_lesion_that_no_anchor_touches_makes_none_positive():
    lesion = [100.0, 100.0, 104.0, 104.0]
    [labels], _ = _rpn(LesionRPN, 10_000).label_and_sample_anchors(_ANCHORS, [_image((lesion, 0))])
    assert (labels == 0).all()
    [labels], _ = _rpn(RPN, 10_000).label_and_sample_anchors(_ANCHORS, [_image((lesion, 0))])
    assert (labels == 1).all()  # what Detectron2 makes of it


def test_ignored_annotations_take_no_place_among_the_drawn_anchors():
    pseudo_labels = [_PSEUDO_LABEL, [2.0, 30.0, 26.0, 54.0], [34.0, 2.0, 58.0, 26.0]]
    image = _image((_TRUE, 0), *((box, -1) for box in pseudo_labels))
    [labels], _ = _rpn(LesionRPN, 10_000).label_and_sample_anchors(_ANCHORS, [image])
    positives = int((labels == 1).sum())
    torch.manual_seed(1)
    few = 2 * positives
    [drawn], _ = _rpn(LesionRPN, few).label_and_sample_anchors(_ANCHORS, [image])
    assert (drawn == 1).sum() == positives and (drawn == 0).sum() == few - positives


@pytest.mark.parametrize("batch_size", [16, 256])
def test_without_ignored_annotations_it_draws_as_detectron2_s(batch_size):
    images = [_IMAGES[1], _IMAGES[3]]
    found = []
    for kind in (LesionRPN, RPN):
        rpn = _rpn(kind, batch_size)
        torch.manual_seed(7)
        found.append(rpn.label_and_sample_anchors(_ANCHORS, images))
    for ours, theirs in zip(*found, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_shem_labels_few_positives_and_leaves_all_negatives():
    plain, _ = _rpn(LesionRPN, 10_000).label_and_sample_anchors(_ANCHORS, _IMAGES)
    drawn, _ = _rpn(LesionRPN, 6, shem_pool=4).label_and_sample_anchors(_ANCHORS, _IMAGES)
    for before, after in zip(plain, drawn, strict=True):
        assert torch.equal(before == 0, after == 0)
        assert (after == 1).sum() == min(3, (before == 1).sum())
        assert ((before == 1) | (after != 1)).all()


def test_shem_losses_of_the_rpn_are_written_out():
    """A pool of the drawn number leaves nothing to chance."""
    rpn = _rpn(LesionRPN, 6, shem_pool=1)
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, 256, generator=generator) for _ in _ANCHORS]
    deltas = [torch.randn(4, 256, 4, generator=generator) for _ in _ANCHORS]
    labels, boxes = rpn.label_and_sample_anchors(_ANCHORS, _IMAGES)
    with EventStorage():
        losses = rpn.losses(_ANCHORS, logits, labels, deltas, boxes)
    classification, regression = [], []
    for n in range(4):
        all_logits, all_deltas = (torch.cat(x, dim=1)[n] for x in (logits, deltas))
        positives = (labels[n] == 1).nonzero()[:, 0].tolist()
        negatives = (labels[n] == 0).nonzero()[:, 0].tolist()
        negatives.sort(key=lambda r: -all_logits[r].item())
        hardest = negatives[: max(1, len(positives))]
        found = [math.log1p(math.exp(-all_logits[r].item())) for r in positives]
        missed = [math.log1p(math.exp(all_logits[r].item())) for r in hardest]
        means = [sum(terms) / max(1, len(terms)) for terms in (found, missed)]
        classification.append(sum(means) / 2)
        true = rpn.box2box_transform.get_deltas(Boxes.cat(_ANCHORS).tensor, boxes[n])
        distances = [(all_deltas[r] - true[r]).abs().mean().item() for r in positives]
        regression.append(sum(distances) / max(1, len(distances)))

    assert regression[1] == 0 and regression[0] > 0
    assert losses["loss_rpn_cls"].item() == pytest.approx(sum(classification) / 4, rel=1e-5)
    assert losses["loss_rpn_loc"].item() == pytest.approx(sum(regression) / 4, rel=1e-5)


@pytest.mark.parametrize("loss", ["smooth_l1", "giou", "ciou"])
def test_without_shem_its_losses_are_detectron2s_to_the_bit(loss):
    ours, theirs = (_rpn(kind, 64) for kind in (LesionRPN, RPN))
    labels, boxes = theirs.label_and_sample_anchors(_ANCHORS, [_IMAGES[1], _IMAGES[3]])
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 256, generator=generator) for _ in _ANCHORS]
    deltas = [torch.randn(2, 256, 4, generator=generator) for _ in _ANCHORS]
    found = []
    for rpn in (ours, theirs):
        rpn.box_reg_loss_type, rpn.smooth_l1_beta = loss, 0.1
        with EventStorage() as storage:
            losses = rpn.losses(_ANCHORS, logits, labels, deltas, boxes)
        found.append((losses, storage.latest()))
    assert found[0] == found[1]
    assert found[0][0]["loss_rpn_loc"] > 0


def test_an_unknown_box_loss_is_refused():
    with pytest.raises(ValueError, match="LOSS_TYPE: found 'l2', expected one"):
        _rpn(LesionRPN, 64, MODEL__RPN__BBOX_REG_LOSS_TYPE="l2")
