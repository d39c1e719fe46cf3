"""ResNet in 3-D, and its FPN and U-FPN backbones."""

import contextlib
from collections.abc import Iterator, Sequence

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, ResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..backbone import ResNetWithStem
from .conv import Conv3d, conv3d
from .norms import freeze_norms
from .shape import VolumeShape

Strides = tuple[int, int, int]

_NUM_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_NUM_STRIDES = 5  # stem, pooling, res3, res4, res5


def _conv(in_channels: int, channels: int, kernel: int, norm: str, strides: Strides) -> Conv3d:
    """A convolution without bias if it has a norm, initialized as in Detectron2's ResNet."""
    return conv3d(
        in_channels, channels, kernel, norm=norm, stride=strides, init=weight_init.c2_msra_fill
    )


class _Block3D:
    """Common methods of blocks for volumes."""

    def set_strides(self, in_channels: int, out_channels: int, strides: Strides) -> None:
        """Replaces CNNBlockBase.__init__; ``stride`` is the in-plane one."""
        CNNBlockBase.__init__(self, in_channels, out_channels, strides[-1])
        self.strides = strides

    def freeze(self) -> nn.Module:
        """As in Detectron2, which does not support BatchNorm3d."""
        for parameter in self.parameters():
            parameter.requires_grad = False
        freeze_norms(self)
        return self

    def add_shortcut(self, norm: str) -> None:
        """Add a projection if the number of channels changes, as in Detectron2's blocks."""
        self.shortcut = None
        if self.in_channels != self.out_channels:
            self.shortcut = _conv(self.in_channels, self.out_channels, 1, norm, self.strides)


class BasicBlock3D(_Block3D, BasicBlock):
    """Detectron2's :class:`BasicBlock` with convolutions in 3-D.

    Args:
        stride: stride of the first convolution along depth, height and width.
        norm: see :func:`get_norm_3d`; without one the convolutions have biases.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: Strides, norm: str = "BN"):
        self.set_strides(in_channels, out_channels, stride)
        self.add_shortcut(norm)
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride)
        self.conv2 = _conv(out_channels, out_channels, 3, norm, (1, 1, 1))


class BottleneckBlock3D(_Block3D, BottleneckBlock):
    """Detectron2's :class:`BottleneckBlock` with convolutions in 3-D.

    Args:
        bottleneck_channels: channels of the 3x3x3 convolution.
        stride: stride along depth, height and width.
        norm: see :func:`get_norm_3d`; without one the convolutions have biases.
        stride_in_1x1: apply the stride in the first convolution instead of the second.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: Strides,
        norm: str = "BN",
        stride_in_1x1: bool = False,
    ):
        self.set_strides(in_channels, out_channels, stride)
        self.add_shortcut(norm)
        first, second = (stride, (1, 1, 1)) if stride_in_1x1 else ((1, 1, 1), stride)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, norm, first)
        self.conv2 = _conv(bottleneck_channels, bottleneck_channels, 3, norm, second)
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm, (1, 1, 1))


class Stem3D(_Block3D, CNNBlockBase):
    """Detectron2's :class:`BasicStem` in 3-D: a 7x7x7 convolution, ReLU, max pooling.

    Args:
        conv_stride, pool_stride: strides along depth, height and width.
        norm: see :func:`get_norm_3d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        conv_stride: Strides,
        pool_stride: Strides,
        norm: str = "BN",
    ):
        strides = tuple(a * b for a, b in zip(conv_stride, pool_stride, strict=True))
        self.set_strides(in_channels, out_channels, strides)
        self.conv_stride, self.pool_stride = conv_stride, pool_stride
        self.conv1 = _conv(in_channels, out_channels, 7, norm, conv_stride)

    def pool(self, c1: Tensor) -> Tensor:
        """Apply max pooling to C1 (N, C, D, H, W)."""
        return F.max_pool3d(c1, kernel_size=3, stride=self.pool_stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, D, H, W) to the pooled C1."""
        return self.pool(F.relu_(self.conv1(x)))


class ResNet3D(ResNetWithStem):
    """A ResNet for volumes; in-plane it equals Detectron2's.

    Args:
        resnet: Detectron2's :class:`ResNet` with a :class:`Stem3D` and 3-D blocks; its modules are
            reused.
        c0: see :class:`ResNetWithStem`.
        c0_channels: output channels of ``c0``.
        stem_features: whether to return ``c1`` and ``c0``, which a U-FPN needs.
        checkpoint: use activation checkpointing in training: activations inside stages are
            recomputed in the backward pass.
    """

    def __init__(
        self,
        resnet: ResNet,
        c0: nn.Module | None = None,
        c0_channels: int = 0,
        *,
        stem_features: bool = True,
        checkpoint: bool = False,
    ):
        super().__init__(resnet, c0, c0_channels)
        self.checkpoint = checkpoint
        if not stem_features:
            self._out_features = list(resnet._out_features)
        strides = self.stem.strides
        self._strides = {"c0": (1, 1, 1), "c1": self.stem.conv_stride}
        for name, stage in zip(resnet.stage_names, resnet.stages, strict=True):
            for block in stage:
                strides = tuple(a * b for a, b in zip(strides, block.strides, strict=True))
            self._strides[name] = strides

    def output_shape(self) -> dict[str, VolumeShape]:
        """Channels and strides of the returned features."""
        return {
            name: VolumeShape.of_map(self._out_feature_channels[name], self._strides[name])
            for name in self._out_features
        }

    def pool(self, c1: Tensor) -> Tensor:
        """Apply the stem's max pooling to (N, C, D, H, W)."""
        return self.stem.pool(c1)

    def run_stage(self, name: str, x: Tensor) -> Tensor:
        """Apply a stage to (N, C, D, H, W)."""
        stage = getattr(self, name)
        if not (self.checkpoint and torch.is_grad_enabled()):
            return stage(x)
        return checkpoint(
            stage,
            x,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(stage)),
        )


@contextlib.contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keep batch norms from updating their statistics on a recomputed batch."""
    norms = [m for m in module.modules() if getattr(m, "track_running_stats", False)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # the batch does not change the running mean
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def _check(cfg) -> None:
    options, strides = cfg.MODEL.RESNETS, cfg.MODEL.VOLUMETRIC.STRIDES
    wanted = "stem, pooling, res3, res4 and res5, each along depth, height and width, at least 1"
    triples = [tuple(stride) for stride in strides]
    if len(triples) != _NUM_STRIDES or any(len(s) != 3 or min(s) < 1 for s in triples):
        raise ValueError(f"MODEL.VOLUMETRIC.STRIDES: found {strides}, expected those of {wanted}")
    if any(height != width for _, height, width in triples):
        raise ValueError(
            f"MODEL.VOLUMETRIC.STRIDES: found {strides}, expected equal strides of height and width"
        )
    if options.DEPTH not in _NUM_BLOCKS:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH: found {options.DEPTH}, expected one of {list(_NUM_BLOCKS)}"
        )
    plain = {"RES5_DILATION": 1, "NUM_GROUPS": 1, "DEFORM_ON_PER_STAGE": [False] * 4}
    for key, value in plain.items():
        if options[key] != value:
            raise ValueError(
                f"MODEL.RESNETS.{key}: found {options[key]}, expected {value} for volumes"
            )


def build_resnet_3d(cfg, input_shape: ShapeSpec, *, stem_features: bool) -> ResNet3D:
    """Build a ResNet-18 to -101 for volumes; C is the length of MODEL.PIXEL_MEAN.

    Its width is set in MODEL.RESNETS (published code of Jaeger et al.: 18 channels in the stem, 72
    in res2), its strides in MODEL.VOLUMETRIC.STRIDES.

    Args:
        input_shape: shape with C channels.
        stem_features: see :class:`ResNet3D`; if True, MODEL.UNET_FPN.C0_CHANNELS adds a C0.

    Raises:
        ValueError: a key has a value that is not supported for volumes.
    """
    _check(cfg)
    options, norm = cfg.MODEL.RESNETS, cfg.MODEL.RESNETS.NORM
    stem_stride, pool_stride, *stage_strides = map(tuple, cfg.MODEL.VOLUMETRIC.STRIDES)
    channels, c0 = input_shape.channels, None
    c0_channels = cfg.MODEL.UNET_FPN.C0_CHANNELS if stem_features else 0
    if c0_channels > 0:
        first, second = (
            conv3d(n, c0_channels, 3, norm=norm, activation=nn.ReLU(inplace=True))
            for n in (channels, c0_channels)
        )
        channels, c0 = c0_channels, nn.Sequential(first, second)
    stem = Stem3D(
        channels,
        options.STEM_OUT_CHANNELS,
        conv_stride=stem_stride,
        pool_stride=pool_stride,
        norm=norm,
    )
    resnet = ResNet(
        stem,
        _stages(options, stage_strides),
        out_features=options.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
    return ResNet3D(
        resnet,
        c0,
        c0_channels,
        stem_features=stem_features,
        checkpoint=cfg.MODEL.VOLUMETRIC.GRADIENT_CHECKPOINTING,
    )


def _stages(options: CfgNode, strides: Sequence[Strides]) -> list[list[nn.Module]]:
    """Blocks of res2 and the stages after it.

    Args:
        options: MODEL.RESNETS.
        strides: of the stages after res2.
    """
    stages, in_channels = [], options.STEM_OUT_CHANNELS
    for i, (count, stride) in enumerate(
        zip(_NUM_BLOCKS[options.DEPTH], [(1, 1, 1), *strides], strict=True)
    ):
        out_channels = options.RES2_OUT_CHANNELS * 2**i
        kind, kwargs = BasicBlock3D, {}
        if options.DEPTH >= 50:
            kind = BottleneckBlock3D
            kwargs["bottleneck_channels"] = options.WIDTH_PER_GROUP * 2**i
            kwargs["stride_in_1x1"] = options.STRIDE_IN_1X1
        stages.append(
            ResNet.make_stage(
                kind,
                count,
                in_channels=in_channels,
                out_channels=out_channels,
                stride_per_block=[stride] + [(1, 1, 1)] * (count - 1),
                norm=options.NORM,
                **kwargs,
            )
        )
        in_channels = out_channels
    return stages
