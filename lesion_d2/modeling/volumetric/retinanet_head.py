"""RetinaNet's head in 3-D."""

import math
from itertools import pairwise

from detectron2.config import configurable
from detectron2.modeling.anchor_generator import build_anchor_generator
from torch import Tensor, nn

from .conv import conv3d
from .norms import CycleBatchNormList3D
from .shape import VolumeShape

# Norms with separate statistics per level, as one head is applied to all levels.
_OF_LEVELS = {"BN": nn.BatchNorm3d, "SyncBN": nn.SyncBatchNorm}
_NORMS = ("", "GN", "IN", *_OF_LEVELS)


class RetinaNetHead3D(nn.Module):
    """RetinaNet head for volumes: Detectron2's :class:`RetinaNetHead` with 3x3x3 kernels.

    Two subnets of the same architecture, for classes and for boxes, are shared by all levels. In
    3-D they are narrow (Jaeger et al., section 3.1: 64 channels, MODEL.VOLUMETRIC.HEAD_CHANNELS).

    Args:
        input_shape: shapes of the levels.
        num_classes: number of logits per anchor.
        num_anchors: A, number of anchors per position.
        conv_dims: channels of each subnet's hidden convolutions.
        norm: norm of the hidden convolutions: "BN" or "SyncBN", with separate statistics per level
            as in Detectron2, "GN", "IN" or "" for none.
        prior_prob: class probability at initialization.

    Raises:
        ValueError: the norm is unknown.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[VolumeShape],
        num_classes: int,
        num_anchors: int,
        conv_dims: list[int],
        norm: str = "",
        prior_prob: float = 0.01,
    ):
        super().__init__()
        if norm not in _NORMS:
            raise ValueError(f"MODEL.RETINANET.NORM: found {norm!r}, expected one of {_NORMS}")
        channels = [input_shape[0].channels, *conv_dims]
        self.cls_subnet, self.bbox_subnet = (
            _subnet(channels, norm, len(input_shape)) for _ in range(2)
        )
        self.cls_score = _conv(channels[-1], num_anchors * num_classes)
        self.bbox_pred = _conv(channels[-1], num_anchors * 6)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    @classmethod
    def from_config(cls, cfg, input_shape: list[VolumeShape]) -> dict:
        """Arguments of ``RetinaNetHead3D(cfg, input_shape)``."""
        num_anchors = set(build_anchor_generator(cfg, input_shape).num_cell_anchors)
        if len(num_anchors) > 1:
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.SIZES: found levels with {sorted(num_anchors)} anchors "
                "per position, expected the same number on all levels"
            )
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "num_anchors": num_anchors.pop(),
            "conv_dims": [cfg.MODEL.VOLUMETRIC.HEAD_CHANNELS] * cfg.MODEL.RETINANET.NUM_CONVS,
            "norm": cfg.MODEL.RETINANET.NORM,
            "prior_prob": cfg.MODEL.RETINANET.PRIOR_PROB,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map levels (N, C, D, H, W) to logits (N, A * K, D, H, W) and deltas (N, A * 6, D, H, W).

        Deltas are dx, dy, dz, dw, dh, dd.
        """
        logits = [self.cls_score(self.cls_subnet(level)) for level in features]
        return logits, [self.bbox_pred(self.bbox_subnet(level)) for level in features]


def _conv(in_channels: int, channels: int, **kwargs) -> nn.Module:
    return conv3d(in_channels, channels, 3, init=_draw, **kwargs)


def _draw(conv: nn.Module) -> None:
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _subnet(channels: list[int], norm: str, num_levels: int) -> nn.Sequential:
    layers = []
    for before, after in pairwise(channels):
        if norm in _OF_LEVELS:
            layers += [
                _conv(before, after),
                CycleBatchNormList3D(num_levels, after, _OF_LEVELS[norm]),
                nn.ReLU(inplace=True),
            ]
        else:
            layers.append(_conv(before, after, norm=norm, activation=nn.ReLU(inplace=True)))
    return nn.Sequential(*layers)
