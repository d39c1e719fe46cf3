"""A run of ``train_net.py`` that takes seconds: a thin model on small images, no augmentation.

Also a program with the command line of ``train_net.py``.
"""

import argparse
import os
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, os.fspath(PROJECT))  # train_net.py is a script beside the package

from lesion_d2.engine import load_config  # noqa: E402
from lesion_d2.modeling.backbone.unet_fpn import UNetFPN  # noqa: E402

from detectron2.config import CfgNode  # noqa: E402
from detectron2.engine import default_argument_parser  # noqa: E402
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, ShapeSpec  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import train_net  # noqa: E402  (first: it makes detectron2 importable)

CONFIG = PROJECT / "configs" / "quickstart" / "retina_unet_phantom.yaml"
_WIDTH = 16
_OPTIONS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_tiny_unet_fpn_backbone",
    "MODEL.RESNETS.NORM": "",  # no BatchNorm, so that a batch can be split
    "MODEL.FPN.NORM": "",
    "MODEL.RETINANET.NORM": "",
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.UNET_FPN.DECODER_CHANNELS": (8, 4),
    "INPUT.CT.IMAGE_SIZE": 64,
    "INPUT.AUG.HFLIP_PROB": 0.0,
    "INPUT.AUG.VFLIP_PROB": 0.0,
    "INPUT.AUG.MAX_ROTATION": 0.0,
    "INPUT.AUG.MAX_SHEAR": 0.0,
    "INPUT.AUG.MAX_SCALE": 0.0,
    "INPUT.AUG.MAX_TRANSLATION": 0.0,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.STEPS": (),
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "TEST.EVAL_PERIOD": 2,
    "TEST.NUM_BOOTSTRAP": 0,
    "SEED": 3,
}
_ULDOR_OPTIONS = {
    "MODEL.META_ARCHITECTURE": "LesionRCNN",
    "MODEL.RETINA_UNET.SEG_LOSS_WEIGHT": 0.0,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 60,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 30,
    "MODEL.ROI_HEADS.NAME": "ULDorROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    # Whatever an untrained model finds is a hard negative: some images get three.
    "HARD_NEGATIVES.MIN_SCORE": 0.2,
    "HARD_NEGATIVES.POSITIVE_IOU_THRESH": 1.0,
}


class _Stem(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, _WIDTH, 3, stride=2, padding=1)
        self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(x).relu()


class TinyBottomUp(Backbone):
    """``c1`` at stride 2 and ``res2`` to ``res5``, one convolution each."""

    def __init__(self, channels: int, norm: str = ""):
        super().__init__()
        self.stem = _Stem(channels)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(_WIDTH, _WIDTH, 3, stride=2, padding=1),
                nn.BatchNorm2d(_WIDTH) if norm == "BN" else nn.Identity(),
                nn.ReLU(),
            )
            for _ in range(4)
        )
        self._out_features = ["c1", "res2", "res3", "res4", "res5"]
        self._out_feature_strides = {
            name: 2 ** (i + 1) for i, name in enumerate(self._out_features)
        }
        self._out_feature_channels = dict.fromkeys(self._out_features, _WIDTH)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        outputs = {"c1": x}
        for name, stage in zip(self._out_features[1:], self.stages, strict=True):
            x = outputs[name] = stage(x)
        return outputs


@BACKBONE_REGISTRY.register()
def build_tiny_unet_fpn_backbone(cfg, input_shape: ShapeSpec) -> UNetFPN:
    return UNetFPN(
        TinyBottomUp(input_shape.channels, cfg.MODEL.RESNETS.NORM),
        ["res2", "res3", "res4", "res5"],
        _WIDTH,
        image_channels=input_shape.channels,
        decoder_channels=cfg.MODEL.UNET_FPN.DECODER_CHANNELS,
    )


def tiny_command(output_dir: str | os.PathLike, *flags: str, **changes: object) -> list[str]:
    """The command line of a tiny run; in the names of changes ``__`` stands for the dot."""
    options = {**_OPTIONS, "OUTPUT_DIR": os.fspath(output_dir)}
    options.update({key.replace("__", "."): value for key, value in changes.items()})
    if "SOLVER.MAX_EPOCHS" in options:
        del options["SOLVER.MAX_ITER"]
    pairs = [text for key, value in options.items() for text in (key, str(value))]
    return ["--config-file", os.fspath(CONFIG), *flags, *pairs]


def tiny_args(output_dir: str | os.PathLike, *flags: str, **changes: object) -> argparse.Namespace:
    """As :func:`tiny_command`, parsed."""
    return default_argument_parser().parse_args(tiny_command(output_dir, *flags, **changes))


def uldor_args(output_dir: str | os.PathLike, *flags: str, **changes: object) -> argparse.Namespace:
    """A tiny run of a Mask R-CNN with a class of false positives; without mining."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return tiny_args(output_dir, *flags, **{**_ULDOR_OPTIONS, **changes})


def stopping_args(output_dir: str | os.PathLike, *flags: str, **changes) -> argparse.Namespace:
    """A tiny run that learns nothing: evaluated after 0, 1 and 2, it stops early after 2."""
    options = {
        "SOLVER__BASE_LR": 1e-12,
        "SOLVER__WARMUP_ITERS": 0,
        "SOLVER__LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "SOLVER__PLATEAU_PATIENCE": 1,
        "SOLVER__EARLY_STOP_PATIENCE": 2,
        "SOLVER__MAX_ITER": 6,
        "TEST__EVAL_PERIOD": 1,
    }
    return tiny_args(output_dir, *flags, **{**options, **changes})


def tiny_config(**changes: object) -> CfgNode:
    """The config of a tiny run, not frozen."""
    return load_config(tiny_args("output", **changes))


if __name__ == "__main__":
    train_net.start(default_argument_parser().parse_args())
