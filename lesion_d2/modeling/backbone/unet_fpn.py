"""U-FPN (Jaeger et al., section 3.1): an FPN with higher-resolution levels."""

import math
from functools import partial
from itertools import islice

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import ResNet
from torch import Tensor, nn

from ..attention import AttentionGate

UPSAMPLINGS = ("nearest", "bilinear")
#: Additional output of an FPN without P2: P3 before its output convolution.
MERGED = "merged_p3"


class ResNetWithStem(Backbone):
    """Detectron2's ResNet that also returns ``c1``, the stem's features before its max pooling.

    Parameters have the same names as in :class:`ResNet`, so pretrained weights can be loaded.

    Args:
        resnet: a ResNet with Detectron2's :class:`BasicStem`; its modules are reused.
        c0: module before the stem, at image resolution; its output is returned as ``c0``.
        c0_channels: output channels of ``c0``.
    """

    def __init__(self, resnet: ResNet, c0: nn.Module | None = None, c0_channels: int = 0):
        super().__init__()
        self.c0 = c0
        self.stem = resnet.stem
        self.stage_names = resnet.stage_names
        for name in resnet.stage_names:
            self.add_module(name, getattr(resnet, name))
        self._out_features = ["c1", *resnet._out_features]
        self._out_feature_strides = {"c1": 2, **resnet._out_feature_strides}
        self._out_feature_channels = {
            "c1": resnet.stem.out_channels,
            **resnet._out_feature_channels,
        }
        if c0 is not None:
            self._out_features = ["c0", *self._out_features]
            self._out_feature_strides["c0"] = 1
            self._out_feature_channels["c0"] = c0_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W) to ``c1`` at stride 2 and the selected stages."""
        outputs = {}
        if self.c0 is not None:
            x = outputs["c0"] = self.c0(x)
        x = F.relu_(self.stem.conv1(x))
        if "c1" in self._out_features:
            outputs["c1"] = x
        x = self.pool(x)
        for name in self.stage_names:
            x = self.run_stage(name, x)
            if name in self._out_features:
                outputs[name] = x
        return outputs

    def pool(self, c1: Tensor) -> Tensor:
        """Apply the stem's max pooling, from stride 2 to 4."""
        return F.max_pool2d(c1, kernel_size=3, stride=2, padding=1)

    def run_stage(self, name: str, x: Tensor) -> Tensor:
        """Apply one of ``stage_names``."""
        return getattr(self, name)(x)


class LastLevelP6(nn.Module):
    """P6 from C5 by a 3x3 convolution of stride 2, as in Detectron2's LastLevelP6P7.

    Args:
        in_channels: channels of ``in_feature``.
        out_channels: channels of the pyramid.
        in_feature: the bottom-up feature that P6 is computed from.
    """

    num_levels = 1

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5"):
        super().__init__()
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
        weight_init.c2_xavier_fill(self.p6)

    def forward(self, c5: Tensor) -> list[Tensor]:
        """Map C5 (N, in_channels, H, W) to [P6]."""
        return [self.p6(c5)]


class TopDownFPN(FPN):
    """Detectron2's FPN, with the merge of two levels as a separate method; same outputs.

    Args:
        bottom_up, in_features, out_channels, norm, top_block: see :class:`FPN`.
    """

    #: Names of the bottom-up features that :meth:`forward` returns unchanged.
    extra_features: tuple[str, ...] = ()
    #: Number of the finest levels that :meth:`forward` does not compute.
    num_left_out: int = 0

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        *,
        norm: str = "",
        top_block: nn.Module | None = None,
    ):
        super().__init__(bottom_up, in_features, out_channels, norm=norm, top_block=top_block)
        self.levels = self._out_features[: len(in_features)]  # finest first, without P6 and P7

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W) to the detection levels and the ``extra_features``."""
        bottom_up = self.bottom_up(x)
        features, merged = {name: bottom_up[name] for name in self.extra_features}, None
        convs = zip(
            self.levels[::-1],
            self.in_features[::-1],
            self.lateral_convs,
            self.output_convs,
            strict=True,
        )
        for level, name, lateral, output in islice(convs, len(self.levels) - self.num_left_out):
            skip = lateral(bottom_up[name])
            merged = skip if merged is None else self.merge(level, skip, merged)
            if output is not None:
                features[level] = output(merged)
        if self.num_left_out > 0:
            features[MERGED] = merged
        if self.top_block is not None:
            source = self.top_block.in_feature
            top = self.top_block(bottom_up[source] if source in bottom_up else features[source])
            features.update(zip(self._out_features[len(self.levels) :], top, strict=True))
        return features

    def drop_outputs(self, *, keep: list[str]) -> None:
        """Remove the output convolutions of levels that no head uses, and P6 and P7.

        Args:
            keep: levels of the top-down path to keep; for a U-FPN these include "p2", from which
                :meth:`UNetFPN.decode` continues.
        """
        for i, level in enumerate(self.levels[::-1]):
            if level not in keep:
                self.output_convs[i] = None
                delattr(self, f"fpn_output{level[1:]}")
        self.top_block = None
        self._out_features = [level for level in self.levels if level in keep]

    def merge(self, level: str, skip: Tensor, coarser: Tensor) -> Tensor:
        """Merge a skip connection (N, C, H, W) with the next coarser level (N, C, H/2, W/2).

        It is called for every skip connection, with the name of the output level ("p4" to "p0").
        """
        # In place: at full resolution, allocation costs as much as the sum.
        return self.upsample(level, coarser).add_(skip)

    def upsample(self, level: str, coarser: Tensor, mode: str = "nearest") -> Tensor:
        """Upsample features (N, C, H/2, W/2) to the size of the next finer ``level``."""
        return F.interpolate(coarser, scale_factor=2.0, mode=mode)


def conv2d(
    in_channels: int, channels: int, kernel: int, *, norm: str, activation: nn.Module | None = None
) -> Conv2d:
    """Build and initialize a padded convolution, with a bias if there is no norm."""
    conv = Conv2d(
        in_channels,
        channels,
        kernel_size=kernel,
        padding=kernel // 2,
        bias=norm == "",
        norm=get_norm(norm, channels),
        activation=activation,
    )
    weight_init.c2_xavier_fill(conv)
    return conv


class UNetFPN(TopDownFPN):
    """The U-FPN of Jaeger et al., section 3.1: an FPN with a top-down path to full resolution.

    Detection uses the FPN's levels. :meth:`decode` adds P1 (with a skip connection from ``c1`` by a
    1x1 convolution) and P0, on which the segmentation is predicted. P0's skip connection is from
    the image by two 3x3 convolutions (Zlocha et al., Fig. 1), or from the bottom-up path's ``c0``
    by a 1x1 convolution (published code of Jaeger et al.). ``decode`` is a separate method, so that
    it can be skipped at inference without segmentation. Neither paper gives the width of P1 and P0.
    Full width at full resolution, as in the code of Jaeger et al., costs more than all the rest:
    ours are narrow.

    Args:
        bottom_up: a backbone with features ``c1`` at stride 2, C2 at stride 4 and, optionally,
            ``c0`` at stride 1.
        image_channels: C, the channels of the images.
        decoder_channels: channels of P1 and of P0.
        upsampling: "nearest" or "bilinear", for P2 and P1.
        decoder_norm: normalization of P1's and P0's convolutions, by Detectron2's names; at full
            resolution it costs more than they do.
        attention: use an :class:`AttentionGate` on every skip connection (Zlocha et al., section
            2.3).
        in_features, out_channels, norm, top_block: see :class:`FPN`.

    Raises:
        ValueError: there is no P2, or the upsampling is unknown.
    """

    #: Function that builds the convolutions of the decoder.
    conv = staticmethod(conv2d)
    #: Class of convolutions for predictions from P0.
    plain_conv: type[nn.Module] = nn.Conv2d

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        *,
        image_channels: int,
        decoder_channels: tuple[int, int] = (64, 32),
        decoder_norm: str = "",
        upsampling: str = "nearest",
        attention: bool = False,
        norm: str = "",
        top_block: nn.Module | None = None,
    ):
        super().__init__(bottom_up, in_features, out_channels, norm=norm, top_block=top_block)
        if "p2" not in self._out_feature_strides:
            raise ValueError(
                f"MODEL.FPN.IN_FEATURES: found {list(in_features)} with levels "
                f"{self._out_features}, expected P2 (stride 4) among the levels of a U-FPN"
            )
        if upsampling not in UPSAMPLINGS:
            raise ValueError(
                f"MODEL.UNET_FPN.UPSAMPLING: found {upsampling!r}, expected 'nearest' or 'bilinear'"
            )
        self.upsampling = upsampling
        p1, p0 = decoder_channels
        conv = partial(self.conv, norm=decoder_norm)
        self.reduce_p2 = conv(out_channels, p1, 1)
        self.lateral_p1 = conv(bottom_up.output_shape()["c1"].channels, p1, 1)
        self.reduce_p1 = conv(p1, p0, 3, activation=nn.ReLU(inplace=True))
        shapes = bottom_up.output_shape()
        self.extra_features = tuple(name for name in ("c0", "c1") if name in shapes)
        if "c0" in shapes:
            self.lateral_p0 = conv(shapes["c0"].channels, p0, 1)
        else:
            self.lateral_p0 = nn.Sequential(
                conv(image_channels, p0, 3, activation=nn.ReLU(inplace=True)), conv(p0, p0, 3)
            )
        self.output_p0 = conv(p0, p0, 3, activation=nn.ReLU(inplace=True))
        self.decoder_shape = ShapeSpec(channels=p0, stride=1)
        self.gates = nn.ModuleDict()
        if attention:
            finer = self.levels[:-1]
            channels = {"p0": p0, "p1": p1, **dict.fromkeys(finer, out_channels)}
            self.gates.update({level: AttentionGate(n, n) for level, n in channels.items()})

    def merge(self, level: str, skip: Tensor, coarser: Tensor) -> Tensor:
        """As :meth:`TopDownFPN.merge`, with attention gates if enabled."""
        if self.gates:
            skip = self.gates[level](skip, coarser)
        return super().merge(level, skip, coarser)

    def upsample(self, level: str, coarser: Tensor, mode: str = "nearest") -> Tensor:
        """As :meth:`TopDownFPN.upsample`, with ``upsampling`` for P1 and P0."""
        mode = self.upsampling if level in ("p1", "p0") else mode
        return super().upsample(level, coarser, mode)

    def leave_out_p2(self) -> None:
        """Compute P2 in :meth:`decode` instead of :meth:`forward`, as no head uses it.

        Inference without masks then skips it. Without a norm, P2's output convolution and the
        following 1x1 convolution to the width of P1 are computed as one convolution, at a fraction
        of the cost. Its weights are computed from those of the two, which remain the parameters.
        """
        if len(self.levels) == 1:
            return  # no level to continue from
        self.num_left_out = 1
        self.extra_features = (*self.extra_features, self.in_features[0])

    def _reduced_p2(self, features: dict[str, Tensor]) -> Tensor:
        """P2 at H/4, W/4, reduced from the FPN's channels to the width of P1."""
        if self.num_left_out == 0:
            return self.reduce_p2(features["p2"])
        lateral, output, reduce = self.lateral_convs[-1], self.output_convs[-1], self.reduce_p2
        merged = self.merge("p2", lateral(features[self.in_features[0]]), features[MERGED])
        if any(getattr(conv, "norm", None) is not None for conv in (output, reduce)):
            return reduce(output(merged))
        weights = (reduce.weight.flatten(1) @ output.weight.flatten(1)).unflatten(
            1, output.weight.shape[1:]
        )
        bias = reduce.weight.flatten(1) @ output.bias + reduce.bias
        return output._conv_forward(merged, weights, bias)

    def decode(self, x: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Compute P0 from the images (N, C, H, W) and the output of :meth:`forward`.

        Returns:
            P0, (N, decoder_channels[1], H, W).
        """
        p1 = self.merge("p1", self.lateral_p1(features["c1"]), self._reduced_p2(features))
        skip = self.lateral_p0(features.get("c0", x))
        return self.output_p0(self.merge("p0", skip, self.reduce_p1(p1)))


def build_top_block(cfg, bottom_up: Backbone) -> nn.Module | None:
    """Build the module for P6 and P7, if MODEL.RETINANET.IN_FEATURES contains them.

    Lin et al.: P3-P7; Zlocha et al.: P2-P6; Jaeger et al.: P2-P5. Both are computed from the
    coarsest of MODEL.FPN.IN_FEATURES; if that is C4, with stride 16, they are P5 and P6.
    """
    levels, last = cfg.MODEL.RETINANET.IN_FEATURES, cfg.MODEL.FPN.IN_FEATURES[-1]
    shape = bottom_up.output_shape()[last]
    channels, stage = (shape.channels, cfg.MODEL.FPN.OUT_CHANNELS), int(math.log2(shape.stride))
    if f"p{stage + 2}" in levels:
        return LastLevelP6P7(*channels, last)
    return LastLevelP6(*channels, last) if f"p{stage + 1}" in levels else None


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_stages_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's FPN over any stages of a ResNet; see :func:`build_top_block`.

    Detectron2's ``build_resnet_fpn_backbone`` adds P6 to P5, and thus always requires res5.
    """
    return build_fpn(cfg, build_resnet_backbone(cfg, input_shape))


def build_fpn(cfg, bottom_up: Backbone) -> FPN:
    """Build Detectron2's FPN over MODEL.FPN.IN_FEATURES, with :func:`build_top_block`."""
    return FPN(
        bottom_up,
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=build_top_block(cfg, bottom_up),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def build_unet_fpn(cfg, input_shape: ShapeSpec, bottom_up: Backbone) -> UNetFPN:
    """Build the U-FPN over any backbone with ``c1``; ``input_shape.channels`` is C.

    Raises:
        ValueError: MODEL.UNET_FPN.C0_CHANNELS is set, and the backbone has no ``c0``.
    """
    channels = cfg.MODEL.UNET_FPN.C0_CHANNELS
    if channels > 0 and "c0" not in bottom_up.output_shape():
        raise ValueError(
            f"MODEL.UNET_FPN.C0_CHANNELS: found {channels}, expected 0 for a U-FPN over a "
            f"{type(bottom_up).__name__}: only a ResNet has a C0"
        )
    return UNetFPN(
        bottom_up,
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.FPN.OUT_CHANNELS,
        image_channels=input_shape.channels,
        decoder_channels=cfg.MODEL.UNET_FPN.DECODER_CHANNELS,
        decoder_norm=cfg.MODEL.UNET_FPN.DECODER_NORM,
        upsampling=cfg.MODEL.UNET_FPN.UPSAMPLING,
        attention=cfg.MODEL.UNET_FPN.ATTENTION,
        norm=cfg.MODEL.FPN.NORM,
        top_block=build_top_block(cfg, bottom_up),
    )


@BACKBONE_REGISTRY.register()
def build_resnet_unet_fpn_backbone(cfg, input_shape: ShapeSpec) -> UNetFPN:
    """Build the U-FPN over a ResNet-18 to -101; C is the length of MODEL.PIXEL_MEAN."""
    channels, c0, stem_input = cfg.MODEL.UNET_FPN.C0_CHANNELS, None, input_shape
    if channels > 0:
        conv = partial(conv2d, kernel=3, norm=cfg.MODEL.RESNETS.NORM)
        c0 = nn.Sequential(
            conv(input_shape.channels, channels, activation=nn.ReLU(inplace=True)),
            conv(channels, channels, activation=nn.ReLU(inplace=True)),
        )
        stem_input = ShapeSpec(channels=channels)
    bottom_up = ResNetWithStem(build_resnet_backbone(cfg, stem_input), c0, channels)
    return build_unet_fpn(cfg, input_shape, bottom_up)
