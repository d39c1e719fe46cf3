from lesion_d2.modeling.volumetric import (
    Box2BoxTransform3D,
    FastRCNNConvFCHead3D,
    FastRCNNOutputLayers3D,
    VolumeShape,
)
from lesion_d2.modeling.volumetric.box_head import detect_in_image
from lesion_d2.structures import Boxes3D

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import (
    FastRCNNOutputLayers,
    fast_rcnn_inference_single_image,
)
from detectron2.structures import Boxes


def _boxes(axes: int, number: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = 30 * torch.rand(number, axes, generator=generator)
    return torch.cat([low, low + 3 + 9 * torch.rand(number, axes, generator=generator)], dim=1)


@pytest.mark.parametrize("by_class", [True, False])
@pytest.mark.parametrize("most", [100, 7, -1])
def test_on_images_detections_are_detectron2s_to_the_bit(by_class, most):
    boxes = torch.cat([_boxes(2, 90, seed) for seed in range(2 if by_class else 1)], dim=1)
    scores = torch.randn(90, 3, generator=torch.Generator().manual_seed(2)).softmax(dim=1)
    boxes[3, 1], scores[5, 0] = torch.nan, torch.inf
    found, regions = detect_in_image(
        Boxes,
        boxes,
        scores,
        (32, 36),
        score_threshold=0.2,
        nms_threshold=0.3,
        max_detections=most,
    )
    valid = torch.ones(90, dtype=torch.bool)
    valid[[3, 5]] = False
    expected, places = fast_rcnn_inference_single_image(boxes, scores, (32, 36), 0.2, 0.3, most)

    assert len(found) == len(expected) > 5
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    # Detectron2's regions are numbered without those that are not finite.
    assert torch.equal(regions, valid.nonzero()[:, 0][places])


def test_in_volumes_classes_do_not_suppress_each_other():
    box = torch.tensor([[2.0, 2.0, 1.0, 12.0, 12.0, 7.0]])
    boxes = torch.cat([box, box + 1, box + 20])
    scores = torch.tensor([[0.5, 0.4, 0.1], [0.6, 0.1, 0.3], [0.3, 0.05, 0.65]])
    found, regions = detect_in_image(
        Boxes3D,
        boxes,
        scores,
        (8, 30, 30),
        score_threshold=0.08,
        nms_threshold=0.2,
        max_detections=10,
    )
    # Of class 0 the second one stays, the first one falls; the third lies beyond the volume in z.
    assert found.scores.tolist() == pytest.approx([0.6, 0.4, 0.3])
    assert regions.tolist() == [1, 0, 2] and found.pred_classes.tolist() == [0, 1, 0]
    assert found.pred_boxes.tensor[2].tolist() == [22, 22, 7.5, 29.5, 29.5, 7.5]


def _layers(kind: type, transform, loss: str, agnostic: bool) -> FastRCNNOutputLayers:
    torch.manual_seed(0)
    return kind(
        ShapeSpec(channels=4),
        box2box_transform=transform,
        num_classes=2,
        box_reg_loss_type=loss,
        smooth_l1_beta=0.5,
        cls_agnostic_bbox_reg=agnostic,
    )


@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("loss", ["smooth_l1", "giou"])
def test_the_box_loss_on_images_is_detectron2s_to_the_bit(loss, agnostic):
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    theirs = _layers(FastRCNNOutputLayers, transform, loss, agnostic)
    deltas = torch.randn(20, 4 if agnostic else 8, generator=torch.Generator().manual_seed(3))
    arguments = (_boxes(2, 20), _boxes(2, 20) + 1, deltas, torch.tensor([0, 1, 2, -1] * 5))
    expected = theirs.box_reg_loss(*arguments)
    assert expected > 0
    assert FastRCNNOutputLayers3D.box_reg_loss(theirs, *arguments) == expected


@pytest.mark.parametrize("loss", ["smooth_l1", "giou"])
def test_a_perfect_prediction_in_volumes_has_no_box_loss(loss):
    transform = Box2BoxTransform3D((10.0, 10.0, 10.0, 5.0, 5.0, 5.0))
    layers = _layers(FastRCNNOutputLayers3D, transform, loss, False)
    proposals, truth = _boxes(3, 8), _boxes(3, 8) + 1.5
    classes = torch.tensor([0, 1, 2, -1] * 2)
    deltas = torch.full((8, 2, 6), 3.0)  # of the other class, and of regions that do not count
    rows = torch.tensor([0, 1, 4, 5])
    deltas[rows, classes[rows]] = transform.get_deltas(proposals, truth)[rows]
    perfect = layers.box_reg_loss(proposals, truth, deltas.flatten(1), classes)
    assert perfect == pytest.approx(0, abs=1e-5)
    deltas[5, 1, 2] += 0.7  # one delta of one region in eight
    wrong = layers.box_reg_loss(proposals, truth, deltas.flatten(1), classes)
    if loss == "smooth_l1":
        assert wrong == pytest.approx((0.7 - 0.25) / 8, rel=1e-4)
    else:
        assert wrong > 1e-3
    nothing = torch.full((8,), 2)
    assert layers.box_reg_loss(proposals, truth, deltas.flatten(1), nothing) == 0


def test_losses_that_volumes_do_not_have_are_refused():
    with pytest.raises(ValueError, match=r"ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE: found 'diou'"):
        _layers(FastRCNNOutputLayers3D, Box2BoxTransform3D((1.0,) * 6), "diou", False)


def test_the_head_flattens_regions_of_three_axes():
    shape = VolumeShape(channels=3, depth=2, height=4, width=5)
    head = FastRCNNConvFCHead3D(shape, conv_dims=[6], fc_dims=[7])
    assert head.output_shape.channels == 7
    regions = torch.randn(4, 3, 2, 4, 5)
    hidden = torch.nn.functional.conv3d(regions, head.conv1.weight, head.conv1.bias, padding=1)
    expected = (hidden.relu().flatten(1) @ head.fc1.weight.T + head.fc1.bias).relu()
    torch.testing.assert_close(head(regions), expected)
    assert head(regions[:0]).shape == (0, 7)
    assert FastRCNNConvFCHead3D(shape, conv_dims=[6], fc_dims=[]).output_shape.channels == 240
