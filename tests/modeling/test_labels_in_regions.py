"""Regions to ignore in the labels of anchors, proposals and pixels."""

from functools import cache

from lesion_d2.data.transforms.lesion_transforms import transform_lesions
from lesion_d2.modeling import (
    LesionRetinaNet,
    LesionROIHeads,
    LesionRPN,
    MeanTeacher,
    RFCNROIHeads,
    ULDorROIHeads,
)
from lesion_d2.modeling.losses import IGNORE
from lesion_d2.modeling.roi_heads import RegionROIHeads
from lesion_d2.modeling.segmentation import semantic_labels
from lesion_d2.structures.ignore_regions import lie_inside, mark_regions, split_regions

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec
from detectron2.modeling import RetinaNet, build_model
from detectron2.modeling.matcher import Matcher
from detectron2.structures import BitMasks, Boxes, BoxMode, ImageList, Instances
from detectron2.utils.events import EventStorage
from tiny_run import tiny_config
from torch import nn

_ANCHORS = [
    Boxes(torch.tensor([[x, y, x + s, y + s] for y in range(0, 64, 4) for x in range(0, 64, 4)]))
    for s in (6.0, 20.0)
]
_LESION, _IN_REGION = [4.0, 4.0, 24.0, 22.0], [38.0, 36.0, 56.0, 58.0]
_REGION = [30.0, 28.0, 64.0, 64.0]


def _image(lesions, regions=()):
    boxes = torch.tensor([*regions, *lesions]).reshape(-1, 4)
    classes = torch.tensor([-1] * len(regions) + [0] * len(lesions))
    image = Instances((64, 64), gt_boxes=Boxes(boxes), gt_classes=classes)
    mark_regions(image, len(regions))
    return image


def _inside(boxes, regions):
    """Half of each box's area in one region, box by box."""
    found = []
    for x1, y1, x2, y2 in boxes.tolist():
        shares = [0.0]
        for a, b, c, d in regions:
            shares.append(max(0, min(x2, c) - max(x1, a)) * max(0, min(y2, d) - max(y1, b)))
        found.append(max(shares) >= 0.5 * (x2 - x1) * (y2 - y1) > 0)
    return torch.tensor(found)


# What is annotated beside the region: elsewhere, in it too, and nothing.
_CASES = [[_LESION], [_LESION, _IN_REGION], []]


def _retinanet():
    model = LesionRetinaNet.__new__(LesionRetinaNet)
    nn.Module.__init__(model)
    model.num_classes = 1
    model.anchor_matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
    return model


@cache
def _rpn(batch_size=10_000, shem_pool=0):
    cfg = tiny_config(
        MODEL__LESION_RCNN__SHEM_POOL=shem_pool,
        MODEL__RPN__IN_FEATURES=("p2", "p3"),
        MODEL__RPN__BATCH_SIZE_PER_IMAGE=batch_size,
        MODEL__ANCHOR_GENERATOR__SIZES=[[12], [24]],
    )
    return LesionRPN(cfg, {name: ShapeSpec(channels=4, stride=4) for name in ("p2", "p3")})


@pytest.mark.parametrize("lesions", _CASES)
@pytest.mark.parametrize("kind", ["RetinaNet", "RPN", "RPN, SHEM"])
def test_negative_anchors_in_a_region_do_not_count(kind, lesions):
    if kind == "RetinaNet":
        label, background = _retinanet().label_anchors, 1
    else:
        label, background = _rpn(shem_pool=3 * (kind != "RPN")).label_and_sample_anchors, 0
    regions = [_REGION, [0.0, 40.0, 12.0, 64.0]]
    (plain, found), boxes = label(_ANCHORS, [_image(lesions), _image(lesions, regions)])
    inside = _inside(Boxes.cat(_ANCHORS).tensor, regions)
    assert torch.equal(found, torch.where(inside & (plain == background), -1, plain))
    assert (found != plain).sum() > 20  # most of them small ones, of hardly any IoU with it
    assert torch.equal(*boxes)


def test_without_regions_labels_are_detectron2s():
    images = list(map(_image, _CASES))
    ours, theirs = (
        f(_ANCHORS, images)
        for f in (
            _retinanet().label_anchors,
            lambda *args: RetinaNet.label_anchors(_retinanet(), *args),
        )
    )
    for each, other in zip(ours, theirs, strict=True):
        assert all(map(torch.equal, each, other))


@cache
def _heads(kind, **changes):
    cfg = tiny_config(
        MODEL__ROI_HEADS__IN_FEATURES=("p2",),
        MODEL__ROI_HEADS__NUM_CLASSES=2,
        MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=2000,
        MODEL__ROI_BOX_HEAD__NAME="FastRCNNConvFCHead",
        MODEL__ROI_BOX_HEAD__NUM_FC=1,
        MODEL__ROI_BOX_HEAD__FC_DIM=4,
        MODEL__MASK_ON=False,
        **changes,
    )
    return kind(cfg, {"p2": ShapeSpec(channels=4, stride=4)})


@pytest.mark.parametrize("lesions", _CASES)
@pytest.mark.parametrize("kind", [LesionROIHeads, ULDorROIHeads])
@pytest.mark.parametrize("appends", [True, False])
def test_negative_proposals_in_a_region_are_not_drawn(kind, lesions, appends):
    heads = _heads(kind)
    heads.proposal_append_gt = appends
    everywhere = Boxes.cat(_ANCHORS)

    def labels(image):
        """Class of each proposal that is drawn, by its box."""
        proposals = Instances((64, 64), proposal_boxes=everywhere)
        proposals.objectness_logits = torch.zeros(len(everywhere))
        with EventStorage():
            [drawn] = heads.label_and_sample_proposals([proposals], [image])
        pairs = zip(drawn.proposal_boxes.tensor.tolist(), drawn.gt_classes.tolist(), strict=True)
        return {tuple(box): number for box, number in pairs}

    plain, found = labels(_image(lesions)), labels(_image(lesions, [_REGION]))
    inside = {tuple(b.tolist()) for b in everywhere.tensor[_inside(everywhere.tensor, [_REGION])]}
    assert found == {b: n for b, n in plain.items() if not (n == 2 and b in inside)}
    assert len(plain) - len(found) > 20
    assert {n for n in found.values()} == ({0, 2} if lesions else {2})


def test_shem_draws_no_proposal_of_a_region(monkeypatch):
    heads = _heads(LesionROIHeads, MODEL__LESION_RCNN__SHEM_POOL=1000)
    everywhere = Boxes.cat(_ANCHORS)
    hardest = _inside(everywhere.tensor, [_REGION]).float()[:, None].repeat(1, 3)
    monkeypatch.setattr(heads.box_predictor, "predict_probs", lambda *_: [hardest])
    for lesions in _CASES:
        proposals = Instances((64, 64), proposal_boxes=everywhere)
        proposals.objectness_logits = torch.zeros(len(everywhere))
        with EventStorage():
            [drawn], _ = heads(
                ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)]),
                {"p2": torch.zeros(1, 4, 16, 16)},
                [proposals],
                [_image(lesions, [_REGION])],
            )
        negatives = drawn.proposal_boxes.tensor[drawn.gt_classes == 2]
        assert len(negatives) and not _inside(negatives, [_REGION]).any()


def test_all_heads_of_this_project_know_regions():
    assert all(issubclass(k, RegionROIHeads) for k in (LesionROIHeads, RFCNROIHeads, ULDorROIHeads))


def test_pixels_of_a_region_have_no_label_but_those_of_lesions_in_it_do():
    box = {"bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    lesion = {**box, "bbox": [30, 30, 39, 39]}
    region = {**box, "bbox": [20, 20, 60, 50], "iscrowd": 1}
    masks = np.zeros((2, 64, 64), np.uint8)
    masks[0, 30:40, 30:40], masks[1, 20:51, 20:61] = 1, 1
    image = transform_lesions([lesion, region], list(masks), T.NoOpTransform(), (64, 64))
    assert image.gt_classes.tolist() == [-1, 0]
    [labels] = semantic_labels([image], ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)]))
    expected = np.where(masks[1], IGNORE, 0)
    expected[masks[0] > 0] = 1
    assert np.array_equal(labels, expected)


class _Finding(nn.Module):
    """A detector that finds three lesions with certainty: annotated, in the region, and new."""

    def forward(self, batched_inputs):
        self.seen = [x["instances"] for x in batched_inputs if "instances" in x]
        boxes = Boxes(torch.tensor([_LESION, _IN_REGION, [4.0, 40.0, 16.0, 56.0]]))
        found = Instances((64, 64), pred_boxes=boxes, scores=torch.ones(3))
        found.pred_classes = torch.zeros(3, dtype=torch.int64)
        return [{"instances": found} for _ in batched_inputs]


def _trained_on(teacher, sample):
    """What the student is given of a sample."""
    with EventStorage():
        teacher([sample])
    [instances] = teacher.student.seen
    return instances


@pytest.mark.parametrize("mode", ["add", "ignore"])
def test_a_region_has_no_pseudo_labels(mode):
    teacher = MeanTeacher(_Finding(), pseudo_label_mode=mode)
    sample = {"weak_image": torch.zeros(3, 64, 64), "slice_to_image": torch.eye(3)[:2]}
    samples = [{**sample, "instances": _image([_LESION], regions)} for regions in ([], [_REGION])]
    without, found = teacher.generate_pseudo_labels(samples)
    assert len(without) == 2 and found.pred_boxes.tensor.tolist() == [[4, 40, 16, 56]]
    instances = _trained_on(teacher, samples[1])
    assert instances.is_region == [True, False, False]
    assert instances.gt_classes.tolist() == [-1, 0 if mode == "add" else -1, 0]
    boxes = [_REGION, [4, 40, 16, 56], _LESION]
    assert instances.gt_boxes.tensor.tolist() == boxes


@pytest.mark.parametrize("mode", ["add", "ignore"])
def test_what_a_patch_cuts_of_a_pseudo_label_is_a_region(mode):
    """The patch begins at x = 12: of one it shows 12.5 of 20 columns, of the other 4.5 of 12."""
    teacher = MeanTeacher(_Finding(), pseudo_label_mode=mode)
    lesions = _image([[26.0, 36.0, 44.0, 58.0]])
    lesions.gt_masks = BitMasks(torch.zeros(1, 64, 64, dtype=torch.bool))
    sample = {"weak_image": torch.zeros(3, 64, 64), "instances": lesions, "min_share": 0.5}
    sample["slice_to_image"] = torch.tensor([[1.0, 0, -12], [0, 1, 0]])
    sample["hidden_boxes"] = Boxes(torch.zeros(0, 4))
    [found] = teacher.generate_pseudo_labels([sample])
    assert found.is_cut.tolist() == [False, True]
    assert teacher.counts["pseudo_labels"] == teacher.counts["judged"] == 1

    instances = _trained_on(teacher, sample)
    assert instances.gt_boxes.tensor.tolist() == [
        [-0.5, 40, 4, 56],
        [-0.5, 4, 12, 22],
        [26, 36, 44, 58],
    ]
    assert instances.is_region == [True, False, False]
    assert instances.gt_classes.tolist() == [-1, 0 if mode == "add" else -1, 0]
    assert instances.gt_masks.tensor[0, 40:57, :5].all()

    # Beside a region of the patch's own.
    other = {**sample, "instances": _image([], [[40.0, 0.0, 50.0, 9.0]])}
    assert _trained_on(teacher, other).is_region == [True, True, False, False]


def test_what_a_model_says_of_a_region_changes_no_loss():
    """Not of its pixels, nor of small anchors, which have hardly any IoU with it."""
    model = build_model(tiny_config(MODEL__ANCHOR_GENERATOR__SIZES=[[4], [8], [16], [32]])).train()
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 28:65, 30:65], masks[1, 6:21, 6:23] = True, True
    image = _image([_LESION], [_REGION])
    image.gt_masks = BitMasks(masks)
    sample = {"image": 127 + 40 * torch.randn(1, 64, 64), "instances": image}
    sample["image"] = sample["image"].expand(len(model.pixel_mean), -1, -1)
    regions = Boxes(torch.tensor([_REGION]))
    losses, segment = model.losses, model.predict_segmentation

    def loss(sample, noise):
        """All losses where anchors and pixels in the region have other logits."""

        def with_noise(anchors, logits, *others):
            inside = [lie_inside(level, regions)[None, :, None] for level in anchors]
            assert any(map(torch.any, inside))
            shift = [noise * torch.randn_like(x) * i for x, i in zip(logits, inside, strict=True)]
            return losses(anchors, [x + s for x, s in zip(logits, shift, strict=True)], *others)

        def segment_with_noise(*args):
            logits = segment(*args)
            return logits + noise * torch.randn_like(logits) * masks[0]

        model.losses, model.predict_segmentation = with_noise, segment_with_noise
        model.loss_normalizer = 100.0
        with EventStorage(), torch.no_grad():
            return {name: value.item() for name, value in model([sample]).items()}

    plain = loss(sample, 0)
    assert plain == loss(sample, 5) and plain.keys() == {"loss_cls", "loss_box_reg", "loss_seg"}
    lesion, _ = split_regions(image)
    without = {**sample, "instances": lesion}
    first, second = loss(without, 0), loss(without, 5)
    assert all(first[name] != second[name] for name in ("loss_cls", "loss_seg"))
    assert plain["loss_box_reg"] == first["loss_box_reg"] == second["loss_box_reg"]
