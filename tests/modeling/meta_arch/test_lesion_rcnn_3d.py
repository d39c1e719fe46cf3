"""The two-stage detectors of volumes; what they share with those of slices is tested there."""

from lesion_d2.modeling import LesionRCNN, segmentation_loss, variant_of
from lesion_d2.structures import BitMasks3D, Boxes3D, pairwise_iou
from lesion_d2.structures.ignore_regions import IGNORED_CLASS, mark_regions

import pytest
import torch
from detectron2.structures import Instances
from made_up_patches import BACKGROUND, detect, losses_of, patch, tiny_model

SIZE = (6, 32, 32)
MASKS = ("MODEL.MASK_ON", True, "MODEL.BACKBONE.NAME", "build_resnet_fpn_3d_backbone")
_WIDE = ("MODEL.RESNETS.RES2_OUT_CHANNELS", 64)  # Detectron2's ResNet-18 has no other
KEEP_ALL = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
FIRST, SECOND = [2.5, 4.5, 0.5, 11.5, 12.5, 3.5], [9.5, 9.5, -0.5, 25.5, 24.5, 4.5]


@pytest.fixture(scope="module")
def batch():
    return [patch([FIRST], SIZE), patch([SECOND], SIZE, classes=[1], seed=1)]


@pytest.fixture(scope="module")
def trained(batch):
    """A Mask R-CNN that overfits two patches."""
    model, steps = tiny_model("LesionRCNN3D", *MASKS), 100
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.003 * (1 - step / steps)
        optimizer.zero_grad()
        sum(losses_of(model, batch).values()).backward()
        optimizer.step()
    return model.eval()


def test_mask_rcnn_learns_two_patches_by_heart(trained, batch):
    ranked = []
    for found, sample in zip(detect(trained, batch), batch, strict=True):
        truth = sample["instances"]
        overlaps = pairwise_iou(found.pred_boxes, truth.gt_boxes)[:, 0]
        hits = (overlaps > 0.5) & (found.pred_classes == truth.gt_classes[0])
        ranked += zip(found.scores.tolist(), hits.tolist(), strict=True)
        mask, true = found.pred_masks[0], truth.gt_masks.tensor[0]
        assert 2 * (mask & true).sum() / (mask.sum() + true.sum()) > 0.7
    ranked.sort(reverse=True)
    assert [hit for _, hit in ranked[:2]] == [True, True]  # AP of 100


@pytest.mark.parametrize("shift", [(2, 0, 0), (0, 8, 8)], ids=str)
def test_a_shifted_lesion_has_shifted_detections(trained, batch, shift):
    """By whole cells of all levels, in the middle of a large volume."""
    image = torch.full((1, 24, 64, 64), BACKGROUND)
    image[:, 8:14, 16:48, 16:48] = batch[0]["image"]
    images = [image, image.roll(shift, dims=(1, 2, 3))]
    detector = variant_of(  # which of equally sure ones is chance
        trained, lambda part: {"test_nms_thresh": 1.0} if hasattr(part, "test_nms_thresh") else {}
    )
    before, after = detect(detector, [{"image": x} for x in images])
    moved = Boxes3D(before.pred_boxes.tensor[:1] + torch.tensor(shift[::-1] * 2))
    overlap, same = pairwise_iou(moved, after.pred_boxes)[0].max(dim=0)
    assert overlap > 0.85
    assert after.scores[same].item() == pytest.approx(before.scores[0].item(), abs=0.05)
    assert after.pred_classes[same] == before.pred_classes[0]
    masks = (before.pred_masks[0], after.pred_masks[same])
    first, second = (mask.nonzero().float().mean(dim=0) for mask in masks)
    torch.testing.assert_close(second, first + torch.tensor(shift), atol=0.5, rtol=0)


@pytest.mark.parametrize("sizes", [[(3, 33, 21)], [(6, 32, 32), (5, 17, 30)]], ids=str)
def test_thin_patches_odd_sizes_and_patches_without_a_lesion(sizes):
    options = (*KEEP_ALL, "MODEL.MASK_ON", True, "MODEL.LESION_RCNN.SEG_LOSS_WEIGHT", 0.5)
    model = tiny_model("LesionRCNN3D", *options)
    batch = [patch([[5.5, 4.5, 0.5, 15.5, 12.5, 2.5]], sizes[0])]
    batch += [patch([], size) for size in (*sizes[1:], sizes[0])]
    losses = losses_of(model, batch)
    names = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask", "loss_seg"}
    assert set(losses) == names

    nothing = losses_of(model, batch[1:])
    assert nothing.keys() == losses.keys()
    for each in (losses, nothing):  # each has all gradients, as several processes want it
        model.zero_grad(set_to_none=True)
        sum(each.values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert nothing["loss_rpn_loc"] == nothing["loss_box_reg"] == nothing["loss_mask"] == 0
    for sample, found in zip(batch, detect(model, batch), strict=True):
        size = sample["instances"].image_size
        assert found.image_size == size and len(found) > 0
        assert found.pred_masks.shape == (len(found), *size)
        assert found.pred_boxes.inside_box(size).all() and found.pred_boxes.nonempty().all()
        assert (found.scores[:-1] >= found.scores[1:]).all()


def test_u_faster_rcnn_plus_has_the_segmentation_loss_beside_the_others():
    model = tiny_model("LesionRCNN3D", "MODEL.LESION_RCNN.SEG_LOSS_WEIGHT", 0.5)
    assert isinstance(model, LesionRCNN) and not model.roi_heads.mask_on
    batch, seen = [patch([FIRST, SECOND], SIZE, classes=[0, 1]), patch([], (5, 20, 32))], []
    handle = model.seg_predictor.register_forward_hook(lambda *args: seen.append(args[2]))
    losses = losses_of(model, batch)
    handle.remove()
    labels = torch.zeros(2, *seen[0].shape[2:], dtype=torch.int64)
    for mask, category in zip(batch[0]["instances"].gt_masks.tensor, [0, 1], strict=True):
        labels[0, :6, :32, :32][mask] = category + 1
    labels[0, 6:] = labels[1, 5:] = labels[1, :, 20:] = -1
    torch.testing.assert_close(losses["loss_seg"], 0.5 * segmentation_loss(seen[0], labels))
    losses["loss_seg"].backward()
    assert model.backbone.bottom_up.stem.conv1.weight.grad.abs().sum() > 0
    model.backbone.decode = None  # would raise: at inference nobody looks at P0
    assert not detect(model, batch)[0].has("pred_masks")


@pytest.mark.parametrize("pool", [0, 10])
def test_no_negative_region_is_drawn_in_a_region_to_ignore(pool):
    model = tiny_model(
        "LesionRCNN3D",
        *("MODEL.LESION_RCNN.SHEM_POOL", pool, "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 1000),
    )
    sample = patch([FIRST], SIZE)
    region = Instances(SIZE, gt_classes=torch.tensor([IGNORED_CLASS]))
    region.gt_boxes = Boxes3D(torch.tensor([[15.5, -0.5, -0.5, 31.5, 31.5, 5.5]]))
    region.gt_masks = BitMasks3D(torch.zeros(1, *SIZE, dtype=torch.bool))
    sample["instances"] = Instances.cat([region, sample["instances"]])
    mark_regions(sample["instances"], 1)
    drawn, draw = [], model.roi_heads.label_and_sample_proposals

    def record(proposals, targets):
        drawn.extend([proposals[0], *draw(proposals, targets)])
        return drawn[1:]

    model.roi_heads.label_and_sample_proposals = record
    assert all(torch.isfinite(loss) for loss in losses_of(model, [sample]).values())
    proposals, background = drawn[0], drawn[1][drawn[1].gt_classes == model.roi_heads.num_classes]
    found = []
    for image in (proposals, background):
        x1, x2 = image.proposal_boxes.tensor[:, 0], image.proposal_boxes.tensor[:, 3]
        found.append((x2 - x1.clamp(min=15.5)) >= 0.5 * (x2 - x1))
    assert found[0].any() and len(background) > 0 and not found[1].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("MODEL.PROPOSAL_GENERATOR.NAME", "LesionRPN"),
            "PROPOSAL_GENERATOR.NAME: found 'LesionRPN', expected 'LesionRPN3D'",
        ),
        (("MODEL.ROI_HEADS.NAME", "Nothing"), "found 'Nothing', expected 'LesionROIHeads3D'"),
        (
            ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", *_WIDE),
            "found 'build_resnet_fpn_backbone', expected one for volumes",
        ),
        (("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True), "found True, expected False"),
        (("VIS_PERIOD", 20), "VIS_PERIOD: found 20, expected 0"),
        (("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (1.0,) * 4), "expected six"),
    ],
)
def test_parts_of_models_of_slices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_model("LesionRCNN3D", *options)
