"""The two-stage detectors of volumes; what they share with those of slices is tested there."""

from lesion_d2.ignore_regions import IGNORED_CLASS, mark_regions
from lesion_d2.modeling import LesionRCNN, segmentation_loss
from lesion_d2.structures import BitMasks3D, Boxes3D

import pytest
import torch
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from made_up_patches import patch, tiny_model

SIZE = (6, 32, 32)
MASKS = ("MODEL.MASK_ON", True, "MODEL.BACKBONE.NAME", "build_resnet_fpn_3d_backbone")
_WIDE = ("MODEL.RESNETS.RES2_OUT_CHANNELS", 64)  # Detectron2's ResNet-18 has no other
KEEP_ALL = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
FIRST, SECOND = [5.5, 9.5, 0.5, 15.5, 20.5, 3.5], [12.5, 8.5, 0.5, 26.5, 22.5, 5.5]


def _losses(model, batch):
    with EventStorage():
        return model(batch)


def _detect(model, batch):
    with torch.no_grad():
        return [output["instances"] for output in model.eval()(batch)]


@pytest.mark.parametrize("sizes", [[(3, 33, 21)], [(6, 32, 32), (5, 17, 30)]], ids=str)
def test_thin_patches_odd_sizes_and_patches_without_a_lesion(sizes):
    options = (*KEEP_ALL, "MODEL.MASK_ON", True, "MODEL.LESION_RCNN.SEG_LOSS_WEIGHT", 0.5)
    model = tiny_model("LesionRCNN3D", *options)
    batch = [patch([[5.5, 4.5, 0.5, 15.5, 12.5, 2.5]], sizes[0])]
    batch += [patch([], size) for size in (*sizes[1:], sizes[0])]
    losses = _losses(model, batch)
    names = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask", "loss_seg"}
    assert set(losses) == names
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    nothing = _losses(model, batch[1:])
    assert all(torch.isfinite(x) for x in nothing.values())
    assert nothing["loss_rpn_loc"] == nothing["loss_box_reg"] == nothing["loss_mask"] == 0
    for sample, found in zip(batch, _detect(model, batch), strict=True):
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
    losses = _losses(model, batch)
    handle.remove()
    labels = torch.zeros(2, *seen[0].shape[2:], dtype=torch.int64)
    for mask, category in zip(batch[0]["instances"].gt_masks.tensor, [0, 1], strict=True):
        labels[0, :6, :32, :32][mask] = category + 1
    labels[0, 6:] = labels[1, 5:] = labels[1, :, 20:] = -1
    torch.testing.assert_close(losses["loss_seg"], 0.5 * segmentation_loss(seen[0], labels))
    losses["loss_seg"].backward()
    assert model.backbone.bottom_up.stem.conv1.weight.grad.abs().sum() > 0
    model.backbone.decode = None  # would raise: at inference nobody looks at P0
    assert not _detect(model, batch)[0].has("pred_masks")


@pytest.mark.parametrize("pool", [0, 10])
def test_what_lies_in_a_region_to_ignore_changes_no_loss(pool):
    """Predictions there are made as wrong as can be, in one of two trainings."""
    model = tiny_model(
        "LesionRCNN3D",
        *("MODEL.LESION_RCNN.SHEM_POOL", pool, "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100_000),
        *(
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
            1000,
            "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT",
            False,
        ),
    )
    sample = patch([FIRST], SIZE)
    region = Instances(SIZE, gt_classes=torch.tensor([IGNORED_CLASS]))
    region.gt_boxes = Boxes3D(torch.tensor([[15.5, -0.5, -0.5, 31.5, 31.5, 5.5]]))
    region.gt_masks = BitMasks3D(torch.zeros(1, *SIZE, dtype=torch.bool))
    sample["instances"] = Instances.cat([region, sample["instances"]])
    mark_regions(sample["instances"], 1)
    with EventStorage():
        images = model.preprocess_image([sample])
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, [sample["instances"]])
        model.roi_heads._hardness = iter([torch.rand(len(proposals[0]))])
        [drawn] = model.roi_heads.label_and_sample_proposals(proposals, [sample["instances"]])
    background = drawn.proposal_boxes.tensor[drawn.gt_classes == model.roi_heads.num_classes]
    assert len(background) > 0
    for x1, y1, z1, x2, y2, z2 in background.tolist():
        assert max(0.0, x2 - max(x1, 15.5)) < 0.5 * (x2 - x1) and y1 < y2 and z1 < z2


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
            "found 'build_resnet_fpn_backbone', expected one of volumes",
        ),
        (("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True), "found True, expected False"),
        (("VIS_PERIOD", 20), "VIS_PERIOD: found 20, expected 0"),
        (("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (1.0,) * 4), "expected six"),
    ],
)
def test_parts_of_models_of_slices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_model("LesionRCNN3D", *options)
