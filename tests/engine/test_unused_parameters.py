"""Parameters that get no gradients are known before the training, by the model alone."""

from lesion_d2.engine import Trainer, load_config
from lesion_d2.engine.processes import has_unused_parameters

import pytest
import torch
from detectron2.modeling import Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.events import EventStorage
from made_up_patches import tiny_model
from tiny_run import tiny_config, uldor_args
from torch import nn

_VGG = {"MODEL__VGG__DEPTH": 16, "MODEL__VGG__WIDTH": 4, "MODEL__BACKBONE__FREEZE_AT": 0}
_RESNET = {
    "MODEL__BACKBONE__NAME": "build_resnet_fpn_backbone",
    "MODEL__BACKBONE__FREEZE_AT": 0,
    "MODEL__RESNETS__DEPTH": 50,
    "MODEL__RESNETS__WIDTH_PER_GROUP": 4,
    "MODEL__RESNETS__STEM_OUT_CHANNELS": 8,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 8,
    "MODEL__RESNETS__OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL__FPN__IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL__FPN__OUT_CHANNELS": 16,
}
_RETINANET = {
    **_RESNET,
    "MODEL__RETINA_UNET__SEG_LOSS_WEIGHT": 0.0,
    "MODEL__SEG_HEAD__PREDICT_MASKS": False,
}
_VGG_FPN = {
    **_VGG,
    "MODEL__BACKBONE__NAME": "build_vgg_fpn_backbone",
    "MODEL__META_ARCHITECTURE": "RetinaNet",
}
ONE_LEVEL = ("MODEL.ANCHOR_GENERATOR.SIZES", [[18.0]], "MODEL.VOLUMETRIC.ANCHOR_DEPTHS", [[6.0]])
_VGG_UNET_FPN = {
    **_VGG,
    "MODEL__BACKBONE__NAME": "build_vgg_unet_fpn_backbone",
    "MODEL__UNET_FPN__ATTENTION": True,
}


@pytest.mark.parametrize(
    "changes, bottom_up, levels",
    [
        ({}, None, "2345"),
        ({"MODEL__RETINA_UNET__SEG_LOSS_WEIGHT": 0.0}, None, "2345"),
        ({}, None, "234"),
        ({}, None, "345"),  # P2 is used by the segmentation
        ({"MODEL__META_ARCHITECTURE": "RetinaNet"}, None, "2345"),
        (_VGG_FPN, "345", "34567"),
        (_VGG_FPN, "2345", "23456"),
        (_VGG_FPN, "2345", "3456"),
        (_VGG_FPN, "234", "234"),  # C5 is computed all the same
        (_VGG_UNET_FPN, "2345", "23456"),
        ({**_VGG_UNET_FPN, "MODEL__RETINA_UNET__SEG_LOSS_WEIGHT": 0.0}, "2345", "23456"),
        ({**_VGG_UNET_FPN, "MODEL__META_ARCHITECTURE": "RetinaNet"}, "2345", "23456"),
        ({**_VGG_UNET_FPN, "MODEL__META_ARCHITECTURE": "DetUNet"}, "2345", "23456"),
        (_RETINANET, None, "2345"),  # P6 is pooled
        (_RETINANET, None, "345"),
    ],
)
def test_parameters_without_gradients_are_known_beforehand(
    tiny_phantom, changes, bottom_up, levels
):
    cfg = tiny_config(**changes, MODEL__RETINANET__IN_FEATURES=[f"p{level}" for level in levels])
    if bottom_up is not None:
        cfg.MODEL.FPN.IN_FEATURES = [f"c{level}" for level in bottom_up]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16.0]] * len(levels)
    model = Trainer.build_model(cfg)
    with EventStorage():
        sum(model(next(iter(Trainer.build_train_loader(cfg)))).values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert has_unused_parameters(model) == bool(without), without


@pytest.mark.parametrize("num_lesions", [None, 0])
@pytest.mark.parametrize(
    "changes, rpn, roi",
    [
        (_RESNET, "23456", "2345"),
        (_RESNET, "3456", "345"),  # P2 is used by nothing
        (_RESNET, "3456", "2345"),
        ({**_RESNET, "MODEL__ROI_HEADS__NAME": "StandardROIHeads"}, "23456", "2345"),
        ({**_RESNET, "MODEL__MASK_ON": False}, "23456", "2345"),
        ({}, "2345", "2345"),  # the U-FPN's P1 and P0
        ({"MODEL__LESION_RCNN__SEG_LOSS_WEIGHT": 1.0}, "2345", "2345"),
    ],
)
def test_parameters_of_an_rcnn_without_gradients_are_known_beforehand(
    tiny_phantom, changes, rpn, roi, num_lesions
):
    options = {
        "MODEL__RPN__IN_FEATURES": [f"p{level}" for level in rpn],
        "MODEL__ROI_HEADS__IN_FEATURES": [f"p{level}" for level in roi],
        "MODEL__ANCHOR_GENERATOR__SIZES": [[16.0]] * len(rpn),
        **changes,
    }
    cfg = load_config(uldor_args("output", **options))
    model = Trainer.build_model(cfg)
    batch = next(iter(Trainer.build_train_loader(cfg)))
    for sample in batch:
        sample["instances"] = sample["instances"][:num_lesions]
    with EventStorage():
        sum(model(batch).values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert has_unused_parameters(model) == bool(without), without


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("in_feature", ["c5", "c4"])
def test_parameters_of_slice_images_without_gradients_are_known_beforehand(
    tiny_phantom, in_feature, attention
):
    cfg = load_config(
        uldor_args(
            "output",
            MODEL__META_ARCHITECTURE="RFCN3DCE",
            MODEL__MASK_ON=False,
            MODEL__BACKBONE__NAME="build_slice_images_backbone",
            MODEL__VGG__DEPTH=16,
            MODEL__VGG__WIDTH=8,
            MODEL__VGG__POOLED_STAGES=(1, 2, 3),
            MODEL__RFCN_3DCE__CONTEXTUAL_ATTENTION=attention,
            MODEL__RFCN_3DCE__SPATIAL_ATTENTION=attention,
            MODEL__RPN__IN_FEATURES=[in_feature],
            MODEL__ROI_HEADS__NAME="RFCNROIHeads",
            MODEL__ROI_HEADS__NUM_CLASSES=1,
            MODEL__ROI_HEADS__IN_FEATURES=["images"],
            MODEL__ANCHOR_GENERATOR__SIZES=[[16.0]],
        )
    )
    model = Trainer.build_model(cfg)
    with EventStorage():
        sum(model(next(iter(Trainer.build_train_loader(cfg)))).values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert has_unused_parameters(model) == bool(without) == (in_feature == "c4"), without


@pytest.mark.parametrize("last", ["c4", "c5"])
def test_parameters_of_a_fused_fpn_without_gradients_are_known_beforehand(tiny_phantom, last):
    levels = ["p2", "p3", "p4", "p5"][: int(last[1]) - 1]
    cfg = load_config(
        uldor_args(
            "output",
            MODEL__MASK_ON=False,
            MODEL__BACKBONE__NAME="build_fused_fpn_backbone",
            MODEL__SLICE_IMAGES__BACKBONE="build_vgg_backbone",
            MODEL__VGG__DEPTH=16,
            MODEL__VGG__WIDTH=8,
            MODEL__FPN__IN_FEATURES=["c2", "c3", "c4", "c5"][: len(levels)],
            MODEL__FPN__OUT_CHANNELS=16,
            MODEL__RETINANET__IN_FEATURES=levels,
            MODEL__RPN__IN_FEATURES=levels,
            MODEL__ROI_HEADS__IN_FEATURES=levels,
            MODEL__ANCHOR_GENERATOR__SIZES=[[16.0]] * len(levels),
        )
    )
    model = Trainer.build_model(cfg)
    with EventStorage():
        sum(model(next(iter(Trainer.build_train_loader(cfg)))).values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert has_unused_parameters(model) == bool(without) == (last == "c4"), without


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("RetinaUNet3D", (), False),
        ("RetinaUNet3D", ("MODEL.RETINANET.IN_FEATURES", ["p3"], *ONE_LEVEL), False),  # P2: P0's
        ("RetinaUNet3D", ("MODEL.RETINA_UNET.SEG_LOSS_WEIGHT", 0.0), True),
        ("LesionRCNN3D", (), True),  # the U-FPN's P1 and P0
        ("LesionRCNN3D", ("MODEL.LESION_RCNN.SEG_LOSS_WEIGHT", 1.0), False),
        ("LesionRCNN3D", ("MODEL.BACKBONE.NAME", "build_resnet_fpn_3d_backbone"), False),
    ],
)
def test_parameters_of_models_of_volumes(name, options, expected):
    assert has_unused_parameters(tiny_model(name, *options)) == expected


class _Stages(Backbone):
    """A backbone that nobody knows; the second feature comes from the first."""

    def __init__(self, **attributes):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(4, 4, 1)
        self._out_features = ["a", "b"]
        self._out_feature_strides = dict.fromkeys("ab", 4)
        self._out_feature_channels = dict.fromkeys("ab", 4)
        self.__dict__.update(attributes)

    def forward(self, x):
        a = self.first(x)
        return {"a": a, "b": self.second(a * getattr(self, "scale", 1))}


def _detector(backbone: Backbone, levels: str) -> DenseDetector:
    mean, std = [0.0] * 3, [1.0] * 3
    return DenseDetector(backbone, nn.Identity(), list(levels), pixel_mean=mean, pixel_std=std)


@pytest.mark.parametrize("levels, expected", [("ab", False), ("b", False), ("a", True)])
def test_any_backbone_tells_by_its_gradients(levels, expected):
    detector = _detector(_Stages(), levels)
    before = {name: p.clone() for name, p in detector.named_parameters()}
    assert has_unused_parameters(detector) == expected
    detector.backbone.second.requires_grad_(False)
    assert not has_unused_parameters(detector)
    assert detector.training and detector.backbone.first.weight.device.type == "cpu"
    assert all(torch.equal(p, before[name]) for name, p in detector.named_parameters())


@pytest.mark.parametrize("error", [AssertionError(), KeyError("meta"), RuntimeError("no kernel")])
def test_a_backbone_may_refuse_a_device_without_values_in_any_way(error):
    detector = _detector(_Stages(), "b")

    def refuse(module, args):
        if args[0].is_meta:
            raise error

    detector.backbone.register_forward_pre_hook(refuse)
    assert has_unused_parameters(detector)


def test_what_cannot_be_told_is_left_to_every_step(caplog):
    detector = _detector(_Stages(scale=torch.ones(4, 1, 1)), "b")  # no buffer: it keeps its values
    with caplog.at_level("INFO", logger="lesion_d2"):
        assert has_unused_parameters(detector)
    assert "_Stages does not work on the meta device" in caplog.text
    assert has_unused_parameters(nn.Sequential(detector))  # no detector of Detectron2's
