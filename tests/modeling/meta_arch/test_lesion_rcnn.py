from lesion_d2.engine import load_config
from lesion_d2.modeling import LesionRCNN, segmentation_loss

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from made_up_images import make_sample
from tiny_run import uldor_args


def make_model(**changes):
    torch.manual_seed(0)
    return build_model(load_config(uldor_args("output", **changes)))


def test_it_learns_lesions_and_false_positives_of_two_images_by_heart():
    model = make_model()
    assert isinstance(model, LesionRCNN)
    batch = [
        make_sample([(8, 10, 28, 26), (36, 34, 58, 56)], [0, 1], 1),
        make_sample([(30, 6, 54, 24)], [0], 2),
    ]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with EventStorage():
        for _ in range(105):
            loss = sum(model(batch).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        outputs = [o["instances"] for o in model(batch)]
        model.roi_heads.box_predictor.count_false_positives = True
        counted = model(batch)[0]["instances"]

    for output, sample in zip(outputs, batch, strict=True):
        lesions = sample["instances"].gt_classes == 0
        sure = output[output.scores > 0.5]
        assert len(sure) == int(lesions.sum())
        assert (sure.pred_classes == 0).all()
        found, true = sure.pred_masks, sample["instances"].gt_masks.tensor[lesions]
        dice = 2 * (found & true).sum() / (found.sum() + true.sum())
        assert dice > 0.8

    boxes = counted.pred_boxes.tensor
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    is_dark = (center - torch.tensor([47.0, 45.0])).norm(dim=1) < 5
    assert is_dark.any()
    assert (counted.scores[is_dark] < 0.2).all()


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_boxes_come_back_about_pixel_centers_and_masks_about_corners(scale):
    """A square of whole pixels: first to last pixel center, in the image and in a larger slice."""
    result = Instances((40, 40))
    result.pred_boxes = Boxes(torch.tensor([[8.0, 4.0, 24.0, 20.0]]))
    result.scores = torch.tensor([0.5])
    result.pred_masks = torch.ones(1, 1, 28, 28)
    size = int(40 * scale)
    found = LesionRCNN.postprocess(result, {"height": size, "width": size})
    # Pixel i of the image covers s pixels of the slice, about s (i + 1/2) - 1/2.
    expected = [scale * (v + 0.5) - 0.5 for v in (8.0, 4.0, 24.0, 20.0)]
    assert found.pred_boxes.tensor[0].tolist() == pytest.approx(expected)
    rows, columns = found.pred_masks[0].nonzero().unbind(dim=1)
    corners = [scale * v for v in (8, 4, 24, 20)]
    assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == corners


def test_without_masks_and_without_detections():
    model = make_model(MODEL__MASK_ON=False).eval()
    model.roi_heads.box_predictor.test_score_thresh = 1.0
    with torch.no_grad():
        [output] = model([{"image": torch.zeros(3, 64, 64), "height": 96, "width": 80}])
    assert output["instances"].image_size == (96, 80)
    assert len(output["instances"]) == 0
    assert not output["instances"].has("pred_masks")


@pytest.mark.parametrize("is_agnostic", [False, True])
def test_the_segmentation_loss_of_u_faster_rcnn_plus_comes_beside_the_others(is_agnostic):
    options = {"MODEL__LESION_RCNN__SEG_LOSS_WEIGHT": 0.5, "MODEL__MASK_ON": False}
    options["MODEL__SEG_HEAD__CLASS_AGNOSTIC"] = is_agnostic
    model = make_model(**options)
    batch = [make_sample([(8, 10, 28, 26), (36, 34, 58, 56)], [0, 1], 1), make_sample([], [], 2)]
    seen = []
    model.seg_predictor.register_forward_hook(lambda module, args, output: seen.append(output))
    with EventStorage():
        torch.manual_seed(3)
        losses = model(batch)
        model.seg_loss_weight = 0.0
        torch.manual_seed(3)
        plain = model(batch)
    assert "loss_mask" not in losses and not hasattr(model.roi_heads, "mask_head")

    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    for mask, category in zip(batch[0]["instances"].gt_masks.tensor, [0, 1], strict=True):
        labels[0][mask] = 1 if is_agnostic else category + 1
    torch.testing.assert_close(losses.pop("loss_seg"), 0.5 * segmentation_loss(seen[0], labels))
    assert losses.keys() == plain.keys() and len(seen) == 1

    for name, loss in losses.items():
        torch.testing.assert_close(loss, plain[name])


def test_the_segmentation_trains_the_shared_features_and_costs_nothing_at_inference():
    model = make_model(MODEL__LESION_RCNN__SEG_LOSS_WEIGHT=1.0)
    with EventStorage():
        losses = model([make_sample([(8, 10, 28, 26)], [0], 1)])
    losses["loss_seg"].backward()
    for name in ("backbone.bottom_up.stem.conv1.weight", "backbone.bottom_up.stages.3.0.weight"):
        assert model.get_parameter(name).grad.abs().sum() > 0, name
    model.backbone.decode = None  # would raise
    with torch.no_grad():
        assert "instances" in model.eval()([make_sample([], [], 1)])[0]


def test_a_segmentation_loss_without_a_u_fpn_is_refused():
    with pytest.raises(ValueError, match="found a FPN, expected a U-FPN for the segmentation"):
        make_model(
            MODEL__LESION_RCNN__SEG_LOSS_WEIGHT=1.0,
            MODEL__BACKBONE__NAME="build_resnet_fpn_backbone",
        )


@pytest.mark.parametrize("scale", [1, 2])
def test_boxes_end_at_the_images_borders_and_mirrored_ones_with_them(scale):
    perfect = Instances((32, 64), pred_boxes=Boxes(torch.tensor([[0.0, 4.0, 64.0, 32.0]])))
    size = {"height": 32 * scale, "width": 64 * scale}
    box = LesionRCNN.postprocess(perfect, size).pred_boxes.tensor[0]
    # Pixel centers are whole numbers. To the left Detectron2 has cut at the first one's center.
    expected = [(0.5 * scale - 0.5), (4.5 * scale - 0.5), 64 * scale - 0.5, 32 * scale - 0.5]
    assert box.tolist() == expected


def test_detectron2s_pictures_of_training_come_with_the_segmentation_loss_too():
    model = make_model(MODEL__LESION_RCNN__SEG_LOSS_WEIGHT=1.0)
    calls, model.vis_period = [], 1
    model.visualize_training = lambda batch, proposals: calls.append(len(proposals))
    with EventStorage():
        model([make_sample([(8, 10, 28, 26)], [0], 1)])
    assert calls == [1]
