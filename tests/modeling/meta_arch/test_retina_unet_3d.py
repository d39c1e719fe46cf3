import copy
import math

import lesion_d2  # noqa: F401, makes detectron2 importable
from lesion_d2.evaluation import froc_curve
from lesion_d2.modeling.meta_arch.retina_unet import masks_in_boxes
from lesion_d2.structures import BitMasks3D, Boxes3D, pairwise_giou, pairwise_iou
from lesion_d2.structures.ignore_regions import IGNORED_CLASS, mark_regions

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import Instances
from made_up_patches import detect, losses_of, patch, tiny_config, tiny_model
from slow_boxes import slow_iou
from torch import nn

SIZE = (8, 40, 40)
BOXES = [[5.5, 9.5, 1.5, 15.5, 20.5, 4.5], [20.5, 14.5, 0.5, 34.5, 30.5, 6.5]]
KEEP_ALL = ("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)


def _mirrored(sample, axes):
    """A patch and its lesions with x (0), y (1) or z (2) the other way round."""
    instances, dims = sample["instances"], [-1 - axis for axis in axes]
    boxes = instances.gt_boxes.tensor.clone()
    for axis in axes:
        boxes[:, [axis, axis + 3]] = (
            instances.image_size[-1 - axis] - 1 - boxes[:, [axis + 3, axis]]
        )
    mirrored = Instances(instances.image_size, **instances.get_fields())
    mirrored.gt_boxes = Boxes3D(boxes)
    mirrored.gt_masks = BitMasks3D(instances.gt_masks.tensor.flip(dims))
    return {"image": sample["image"].flip(dims), "instances": mirrored}


MIRRORS = [[axis for axis in range(3) if n >> axis & 1] for n in range(8)]


@pytest.fixture(scope="module")
def learned():
    """A model that overfits two volumes with all flips, and the volumes."""
    size = (6, 32, 32)
    batch = [
        patch([[2.5, 4.5, 0.5, 11.5, 12.5, 3.5]], size),
        patch([[9.5, 9.5, -0.5, 25.5, 24.5, 4.5]], size, classes=[1], seed=1),
    ]
    options = (
        "MODEL.SEG_HEAD.PREDICT_MASKS",
        True,
        "MODEL.SEG_HEAD.CLASS_AGNOSTIC",
        True,
    )
    model, steps = tiny_model("RetinaUNet3D", *options), 120
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(steps):
        for group in optimizer.param_groups:  # to 0, so that boxes come to rest
            group["lr"] = 0.005 * (1 - step / steps)
        views = [_mirrored(x, MIRRORS[(step * (3 + 2 * i) + i) % 8]) for i, x in enumerate(batch)]
        optimizer.zero_grad()
        sum(losses_of(model, views).values()).backward()
        optimizer.step()
    return model, batch


def test_mirrored_volumes_that_were_learned_by_heart_have_an_ap_of_100(learned):
    model, batch = learned
    samples = [_mirrored(sample, axes) for axes in MIRRORS for sample in batch]
    found = detect(model, samples)

    for category in range(2):
        detections = [x[x.pred_classes == category] for x in found]
        truth = [x["instances"][x["instances"].gt_classes == category] for x in samples]
        curve = froc_curve(
            [x.pred_boxes.tensor.numpy() for x in detections],
            [x.scores.numpy() for x in detections],
            [x.gt_boxes.tensor.numpy() for x in truth],
            iou_threshold=0.1,  # the paper's
        )
        assert curve.at([0.0]) == [1.0]  # all are found before the first false positive
    for sample, result in zip(samples, found, strict=True):
        mask = result.pred_masks[0]
        # Of what the box shows: here it is the segmentation that counts.
        whole = torch.ones(1, *mask.shape, dtype=torch.bool)
        truth = sample["instances"].gt_masks.tensor[0]
        truth = truth & masks_in_boxes(whole, result.pred_boxes.tensor[:1], torch.tensor([0]))[0]
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.7


def _without_borders(model):
    """The model on volumes that go on at their other ends, so that there is nothing to pad.

    Every feature of a small volume sees its borders, which zeros lie beyond: they tell where it is.
    """
    endless = copy.deepcopy(model).double()  # on a CPU float32 is padded elsewhere
    for module in endless.modules():
        if isinstance(module, nn.Conv3d):
            module.padding_mode = "circular"
    stem = endless.backbone.bottom_up.stem
    stem.pool = lambda c1: F.max_pool3d(F.pad(c1, (1,) * 6, mode="circular"), 3, stem.pool_stride)
    return endless.eval()


@pytest.mark.parametrize("shift", [(0, 0, 8), (0, 8, 0), (2, 0, 0)], ids=str)
def test_a_shifted_volume_has_shifted_boxes_and_masks(learned, shift):
    """By as much as the largest stride, the same to the last digits."""
    model, (sample, _) = learned
    shifted = {"image": sample["image"].roll(shift, dims=(1, 2, 3))}
    before, after = detect(_without_borders(model), [sample, shifted])
    expected = before.pred_boxes.tensor[:1] + torch.tensor(shift[::-1] * 2)
    torch.testing.assert_close(after.pred_boxes.tensor[:1], expected, rtol=0, atol=1e-3)
    assert pairwise_iou(before.pred_boxes[:1], sample["instances"].gt_boxes) > 0.5
    torch.testing.assert_close(after.scores[0], before.scores[0])
    assert torch.equal(after.pred_masks[0], before.pred_masks[0].roll(shift, dims=(0, 1, 2)))
    assert after.pred_masks[0].any()


@pytest.mark.parametrize("shift", [(2, 0, 0), (0, 8, 0), (-2, 8, -16)], ids=str)
def test_features_move_with_the_volume_by_their_strides(shift):
    model = _without_borders(tiny_model("RetinaUNet3D"))
    image = torch.randn(1, 1, 4, 24, 24, dtype=torch.double)
    dims = (2, 3, 4)
    outputs = []
    for x in (image, image.roll(shift, dims)):
        with torch.no_grad():
            features = model.backbone(x)
            logits, deltas = model.head([features["p2"], features["p3"]])
            outputs.append([*logits, *deltas, model.predict_segmentation(x, features)])
    for before, after in zip(*outputs, strict=True):
        strides = [a // b for a, b in zip(image.shape[2:], before.shape[2:], strict=True)]
        steps = [a // b for a, b in zip(shift, strides, strict=True)]
        torch.testing.assert_close(after, before.roll(steps, dims), rtol=0, atol=1e-9)
        assert before.std() > 1e-6


@pytest.mark.parametrize("level", [0, 1])
def test_a_cell_of_the_head_stands_for_the_anchor_there(level):
    model = tiny_model("RetinaUNet3D")
    strides, size, depth = [((1, 4, 4), 10.0, 3.0), ((2, 8, 8), 18.0, 6.0)][level]
    grids = [(8, 10, 10), (4, 5, 5)]
    logits = [torch.zeros(1, 2 * 3, *grid) for grid in grids]
    for level_logits in logits:
        level_logits[:, 2::3] = 9.0  # background
    deltas = [torch.zeros(1, 2 * 6, *grid) for grid in grids]
    anchor, category, cell = 1, 1, (2, 3, 1)
    logits[level][0, anchor * 3 + category, *cell] = 14.0
    deltas[level][0, anchor * 6 + 2, *cell] = 10 * 0.25  # a quarter of its depth further down
    model.head.forward = lambda levels: (logits, deltas)
    (found,) = detect(model, [patch([], SIZE)])
    z, y, x = (index * stride for index, stride in zip(cell, strides, strict=True))
    z += depth / 4
    height, width = size * math.sqrt(1.4), size / math.sqrt(1.4)
    expected = [x - width / 2, y - height / 2, z - depth / 2]
    expected += [x + width / 2, y + height / 2, z + depth / 2]
    low, high = [-0.5] * 3, [39.5, 39.5, 7.5]
    expected = torch.tensor(expected).clamp(torch.tensor(low * 2), torch.tensor(high * 2))

    torch.testing.assert_close(found.pred_boxes.tensor, expected[None])
    assert found.pred_classes.tolist() == [category] and found.image_size == SIZE
    assert found.scores.item() == pytest.approx(1 / (1 + math.exp(-5) + math.exp(-14)), rel=1e-4)


def test_labels_of_anchors_against_a_loop():
    model = tiny_model("RetinaUNet3D")
    anchors = model.anchor_generator([torch.zeros(1, 1, 4, 5, 5), torch.zeros(1, 1, 2, 3, 3)])
    lesions = patch(BOXES, SIZE, classes=[1, 0])["instances"]
    region = Instances(SIZE)
    region.gt_boxes = Boxes3D(torch.tensor([[-0.5, -0.5, -0.5, 39.5, 9.5, 7.5]]))
    region.gt_classes = torch.tensor([IGNORED_CLASS])
    region.gt_masks = BitMasks3D(torch.zeros(1, *SIZE, dtype=torch.bool))
    both = Instances.cat([region, lesions])
    mark_regions(both, 1)
    ([labels], [boxes]) = model.label_anchors(anchors, [both])
    rows = [row for level in anchors for row in level.tensor.tolist()]
    ious = [[slow_iou(row, box) for box in BOXES] for row in rows]
    best = [max(column) for column in zip(*ious, strict=True)]

    assert len(labels) == len(boxes) == len(rows) == 2 * (4 * 5 * 5 + 2 * 3 * 3)
    for row, of_row, label, box in zip(rows, ious, labels.tolist(), boxes.tolist(), strict=True):
        closest = max(range(2), key=of_row.__getitem__)
        forced = any(abs(of_row[i] - best[i]) < 1e-6 for i in range(2))
        if of_row[closest] >= 0.5 or forced:
            assert label == [1, 0][closest] and box == BOXES[closest]
        elif of_row[closest] >= 0.1:
            assert label == IGNORED_CLASS
        else:
            inside = _shared(row, region.gt_boxes.tensor[0].tolist())
            is_inside = inside >= 0.5 * _shared(row, row)
            assert label == (IGNORED_CLASS if is_inside else model.num_classes)


def _shared(a, b):
    return math.prod(max(0.0, min(a[i + 3], b[i + 3]) - max(a[i], b[i])) for i in range(3))


@pytest.mark.parametrize("sizes", [[(3, 33, 21)], [(8, 40, 40), (5, 17, 30)]], ids=str)
def test_thin_patches_odd_sizes_and_patches_without_a_lesion(sizes):
    model = tiny_model("RetinaUNet3D", "MODEL.SEG_HEAD.PREDICT_MASKS", True, *KEEP_ALL)
    batch = [patch([[5.5, 4.5, 0.5, 15.5, 12.5, 2.5]], sizes[0])]
    batch += [patch([], size) for size in (*sizes[1:], sizes[0])]
    losses = losses_of(model, batch)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_seg"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    nothing = losses_of(model, batch[1:])
    assert nothing["loss_box_reg"] == 0 and all(torch.isfinite(x) for x in nothing.values())
    for sample, found in zip(batch, detect(model, batch), strict=True):
        size = sample["instances"].image_size
        assert found.image_size == size and len(found) > 0
        assert found.pred_masks.shape == (len(found), *size)
        assert found.pred_boxes.inside_box(size).all() and found.pred_boxes.nonempty().all()


def test_nndetections_matching_and_losses(pytestconfig):
    cfg = tiny_config("RetinaUNet3D")
    part = "configs/retina_unet/parts/nndetection.yaml"
    cfg.merge_from_file(str(pytestconfig.rootpath / part))
    torch.manual_seed(0)
    model = build_model(cfg)
    batch = [patch(BOXES, SIZE, classes=[1, 0]), patch([], SIZE)]
    seen = {}
    losses = model.losses
    model.losses = lambda *args: seen.update(args=args) or losses(*args)
    found = losses_of(model, batch)
    sum(found.values()).backward()
    assert all(torch.isfinite(x.grad).all() for x in model.parameters())

    anchors, pred_logits, (labels, of_empty), deltas, (boxes, _) = seen["args"]
    positive = labels < 2
    matches, is_match = model.atss(
        batch[0]["instances"].gt_boxes, anchors, model.anchor_generator.num_anchors
    )
    assert torch.equal(positive, is_match == 1) and (of_empty == 2).all()
    assert set(matches[positive].tolist()) == {0, 1} and pred_logits[0].shape[-1] == 2

    every = Boxes3D.cat(anchors).tensor[positive]
    moved = model.box2box_transform.apply_deltas(torch.cat(deltas, dim=1)[0][positive], every)
    giou = pairwise_giou(Boxes3D(moved.detach()), Boxes3D(boxes[positive])).diagonal()
    torch.testing.assert_close(found["loss_box_reg"], (1 - giou).mean())


def test_masks_in_boxes_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    class_masks = torch.rand(2, 3, 4, 5, generator=generator) > 0.5
    boxes = torch.tensor([[-0.5, -0.5, -0.5, 4.5, 3.5, 2.5], [0.6, 1.0, 1.2, 3.5, 2.4, 2.0]])
    classes = torch.tensor([1, 0])
    masks = masks_in_boxes(class_masks, boxes, classes)
    for n, z, y, x in torch.cartesian_prod(*map(torch.arange, masks.shape)).tolist():
        x1, y1, z1, x2, y2, z2 = boxes[n].tolist()
        inside = x1 <= x <= x2 and y1 <= y <= y2 and z1 <= z <= z2
        assert masks[n, z, y, x] == (inside and class_masks[classes[n], z, y, x])


def test_retinanet_has_no_segmentation():
    backbone = ("MODEL.BACKBONE.NAME", "build_resnet_fpn_3d_backbone")
    model = tiny_model("RetinaNet3D", *backbone, "MODEL.SEG_HEAD.PREDICT_MASKS", True)
    sample = patch(BOXES, SIZE)
    sample["instances"].remove("gt_masks")
    losses = losses_of(model, [sample])
    assert set(losses) == {"loss_cls", "loss_box_reg"} and model.seg_predictor is None
    assert not detect(model, [sample])[0].has("pred_masks")


@pytest.mark.parametrize(
    "options",
    [
        ("MODEL.RETINA_UNET.SHEM_POOL", 0),
        ("MODEL.RETINA_UNET.SHEM_POOL", 0, "MODEL.RETINA_UNET.SOFTMAX", False),
        ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou"),
        ("MODEL.RETINANET.ATSS_CANDIDATES", 4, "MODEL.RETINA_UNET.SHEM_NEGATIVES", 2),
    ],
    ids=str,
)
def test_losses_of_config_have_gradients_under_mixed_precision(options):
    model = tiny_model("RetinaUNet3D", *options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, [patch(BOXES, SIZE, classes=[0, 1]), patch([], SIZE)])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    assert all(loss.dtype == torch.float32 for loss in losses.values())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("MODEL.RETINA_UNET.CALIBRATION", 0.5, "RETINA_UNET.CALIBRATION: found 0.5, expected 0"),
        ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "diou", "found 'diou', expected one of smooth_l1"),
        ("MODEL.RETINANET.NORM", "LN", "MODEL.RETINANET.NORM: found 'LN', expected one of"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator", "expected 'AnchorGenerator3D'"),
        ("MODEL.RETINANET.IN_FEATURES", ["p2", "p6"], r"expected also \['p6'\]"),
        ("MODEL.RETINANET.BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0), "BBOX_REG_WEIGHTS: found"),
    ],
)
def test_what_volumes_do_not_have_is_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        tiny_model("RetinaUNet3D", option, value)


def test_a_backbone_of_slices_is_refused():
    backbone = ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
    with pytest.raises(ValueError, match="NAME: found a FPN, expected a backbone for volumes"):
        tiny_model("RetinaNet3D", *backbone, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)


def test_a_slice_for_a_volume_is_refused():
    model = tiny_model("RetinaUNet3D").eval()
    with pytest.raises(ValueError, match=r"vol_1: found shape \(1, 32, 32\), expected \(1, depth,"):
        model([{"image": torch.zeros(1, 32, 32), "image_id": "vol_1"}])
