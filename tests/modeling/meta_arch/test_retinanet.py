import lesion_d2

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from slow_boxes import slow_iou

# The second is 6 px wide: all anchors are too large for it. The third comes nearest to an anchor
# between the two thresholds.
LESIONS = [[20.0, 20.0, 53.0, 51.0], [70.0, 70.0, 76.0, 76.0], [66.0, 8.0, 85.0, 32.0]]
ANCHOR_KEYS = ("MODEL.ANCHOR_GENERATOR.SIZES", [[32]], "MODEL.ANCHOR_GENERATOR.OFFSET", 0.5)
IGNORED, BACKGROUND = -1, 1  # one class: 1 is the background


def _model(architecture, allows):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.BACKBONE.NAME = "build_vgg_unet_fpn_backbone"
    cfg.MODEL.VGG.WIDTH = 8
    cfg.MODEL.FPN.IN_FEATURES = ["c2", "c3", "c4", "c5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.UNET_FPN.DECODER_CHANNELS = (4, 4)
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3"]
    cfg.MODEL.RETINANET.NUM_CLASSES = 1
    cfg.MODEL.RETINANET.IOU_THRESHOLDS = [0.4, 0.5]
    cfg.MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES = allows
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list(list(ANCHOR_KEYS))
    return build_model(cfg)


def _written_out(anchors, lesions, allows):
    """The class of each anchor, and the lesion of those that are positive."""
    classes, matched = [], []
    best_of = [max(slow_iou(anchor, lesion) for anchor in anchors) for lesion in lesions]
    for anchor in anchors:
        ious = [slow_iou(anchor, lesion) for lesion in lesions]
        best = max(ious)
        lesion = ious.index(best)
        is_forced = allows and any(iou == top for iou, top in zip(ious, best_of, strict=True))
        if best >= 0.5 or is_forced:
            classes.append(0)
            matched.append(lesion)
        else:
            classes.append(IGNORED if best >= 0.4 else BACKGROUND)
            matched.append(None)
    return classes, matched


@pytest.mark.parametrize("architecture", ["LesionRetinaNet", "RetinaUNet"])
@pytest.mark.parametrize("allows", [True, False])
def test_anchors_are_matched_as_written_out(architecture, allows):
    model = _model(architecture, allows)
    anchors = model.anchor_generator([torch.zeros(1, 8, 12, 12)])
    instances = Instances((96, 96), gt_boxes=Boxes(torch.tensor(LESIONS)))
    instances.gt_classes = torch.zeros(len(LESIONS), dtype=torch.int64)
    [labels], [boxes] = model.label_anchors(anchors, [instances])
    classes, matched = _written_out(anchors[0].tensor.double().tolist(), LESIONS, allows)
    assert labels.tolist() == classes
    found = {lesion for lesion in matched if lesion is not None}
    assert found == ({0, 1, 2} if allows else {0})  # forced matches alone find the others
    for box, lesion in zip(boxes.tolist(), matched, strict=True):
        if lesion is not None:
            assert box == LESIONS[lesion]


def test_a_lesion_without_an_anchor_trains_as_background():
    """Every anchor on it is a negative: its label is that of an image without lesions."""
    model = _model("LesionRetinaNet", allows=False)
    anchors = model.anchor_generator([torch.zeros(1, 8, 12, 12)])
    images = [
        Instances((96, 96), gt_boxes=Boxes(torch.tensor(b).reshape(-1, 4)))
        for b in ([LESIONS[1]], [])
    ]
    for instances in images:
        instances.gt_classes = torch.zeros(len(instances), dtype=torch.int64)
    labels, _ = model.label_anchors(anchors, images)
    assert labels[0].equal(labels[1]) and labels[0].eq(BACKGROUND).all()


def test_a_lesion_between_all_anchors_makes_none_positive():
    model = _model("LesionRetinaNet", allows=True)
    apart = [Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0], [30.0, 30.0, 40.0, 40.0]]))]
    instances = Instances((96, 96), gt_boxes=Boxes(torch.tensor([[15.0, 15.0, 20.0, 20.0]])))
    instances.gt_classes = torch.zeros(1, dtype=torch.int64)
    [labels], _ = model.label_anchors(apart, [instances])
    assert labels.eq(BACKGROUND).all()


def test_the_default_is_detectron2s():
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    assert cfg.MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES is True
