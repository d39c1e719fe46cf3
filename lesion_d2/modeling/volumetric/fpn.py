"""FPN and U-FPN in 3-D."""

import itertools

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from ..backbone import TopDownFPN, UNetFPN
from .conv import conv3d
from .resnet import ResNet3D, build_resnet_3d
from .shape import VolumeShape

_LINEAR = {"nearest": "nearest", "bilinear": "trilinear"}


class FPN3D(TopDownFPN):
    """An FPN of volumes (N, C, D, H, W): P2 to P5 if ``in_features`` are res2 to res5.

    Levels are numbered by stage, independently of its stride, and have separate strides along the
    three axes. The forward pass is that of :class:`TopDownFPN`.

    Args:
        bottom_up: backbone that returns ``in_features``, each with a :class:`VolumeShape`.
        in_features: names ending in the number of their stage, finest first.
        out_channels: channels of all levels.
        norm: see :func:`get_norm_3d`.
        top_block: must be None; there are no levels above the last stage's.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        *,
        norm: str = "",
        top_block: None = None,
    ):
        Backbone.__init__(self)
        if top_block is not None:
            raise ValueError(f"top_block: found {top_block}, expected None for volumes")
        shapes = bottom_up.output_shape()
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        self.top_block = None
        self.levels = [f"p{name[-1]}" for name in in_features]
        self.lateral_convs, self.output_convs = [], []  # coarsest first, as in Detectron2
        for level, name in zip(self.levels, in_features, strict=True):
            lateral = conv3d(shapes[name].channels, out_channels, 1, norm=norm)
            output = conv3d(out_channels, out_channels, 3, norm=norm)
            self.add_module(f"fpn_lateral{level[1:]}", lateral)
            self.add_module(f"fpn_output{level[1:]}", output)
            self.lateral_convs.insert(0, lateral)
            self.output_convs.insert(0, output)
        self.strides = {
            level: shapes[name].strides
            for level, name in zip(self.levels, in_features, strict=True)
        }
        self._out_features = list(self.levels)
        self._out_feature_strides = {level: s[-1] for level, s in self.strides.items()}
        self._out_feature_channels = dict.fromkeys(self.levels, out_channels)
        self._factors = _factors(self.strides)

    @property
    def size_divisibility(self) -> int:
        """Divisor of height and width."""
        return self.size_divisibility_3d[-1]

    @property
    def size_divisibility_3d(self) -> tuple[int, int, int]:
        """Required divisors of depth, height and width of the images."""
        return self.strides[self.levels[-1]]

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Empty: the only constraint is ``size_divisibility_3d``."""
        return {}

    def output_shape(self) -> dict[str, VolumeShape]:
        """Channels and strides of the levels."""
        return {
            level: VolumeShape.of_map(self._out_feature_channels[level], self.strides[level])
            for level in self._out_features
        }

    def upsample(self, level: str, coarser: Tensor, mode: str = "nearest") -> Tensor:
        """Upsample features (N, C, d, h, w) to the size of the next finer ``level``."""
        return F.interpolate(coarser, scale_factor=self._factors[level], mode=_LINEAR[mode])


def _factors(strides: dict[str, tuple[int, int, int]]) -> dict[str, tuple[float, float, float]]:
    """Factors by which each level, finest first, is larger than the next coarser one."""
    return {
        fine: tuple(b / a for a, b in zip(strides[fine], strides[coarse], strict=True))
        for fine, coarse in itertools.pairwise(strides)
    }


class UNetFPN3D(UNetFPN, FPN3D):
    """The U-FPN of volumes (Jaeger et al., section 3.1): :class:`UNetFPN` over :class:`FPN3D`.

    Args:
        bottom_up: see :class:`FPN3D`; its features include ``c1`` and optionally ``c0``.
        kwargs: see :class:`UNetFPN`; "bilinear" upsampling is trilinear here.

    Raises:
        ValueError: attention gates are enabled, which are supported for images only; or see
            :class:`UNetFPN`.
    """

    conv = staticmethod(conv3d)
    plain_conv = nn.Conv3d

    def __init__(self, bottom_up: ResNet3D, in_features: list[str], out_channels: int, **kwargs):
        if kwargs.get("attention"):
            raise ValueError(
                "MODEL.UNET_FPN.ATTENTION: found True, expected False for a U-FPN of volumes"
            )
        super().__init__(bottom_up, in_features, out_channels, **kwargs)
        self.decoder_shape = VolumeShape.of_map(self.decoder_shape.channels, (1, 1, 1))
        c1 = bottom_up.output_shape()["c1"].strides
        self._factors = _factors({"p0": (1, 1, 1), "p1": c1, **self.strides})


def _laid_out(backbone: FPN3D, device: str) -> FPN3D:
    """Use channels last on a CPU: a training step of RetinaNet3D takes 0.9 times as long.

    The outputs of the backbone, and then of the heads, have the memory format of its weights.
    """
    return backbone.to(memory_format=torch.channels_last_3d) if device == "cpu" else backbone


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_3d_backbone(cfg, input_shape: ShapeSpec) -> FPN3D:
    """Build the FPN of volumes over a ResNet-18 to -101."""
    bottom_up = build_resnet_3d(cfg, input_shape, stem_features=False)
    options = cfg.MODEL.FPN
    backbone = FPN3D(bottom_up, options.IN_FEATURES, options.OUT_CHANNELS, norm=options.NORM)
    return _laid_out(backbone, cfg.MODEL.DEVICE)


@BACKBONE_REGISTRY.register()
def build_resnet_unet_fpn_3d_backbone(cfg, input_shape: ShapeSpec) -> UNetFPN3D:
    """Build the U-FPN of volumes over a ResNet-18 to -101."""
    options = cfg.MODEL.UNET_FPN
    backbone = UNetFPN3D(
        build_resnet_3d(cfg, input_shape, stem_features=True),
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.FPN.OUT_CHANNELS,
        image_channels=input_shape.channels,
        decoder_channels=options.DECODER_CHANNELS,
        decoder_norm=options.DECODER_NORM,
        upsampling=options.UPSAMPLING,
        attention=options.ATTENTION,
        norm=cfg.MODEL.FPN.NORM,
    )
    return _laid_out(backbone, cfg.MODEL.DEVICE)
