"""DenseNet (Huang et al., 2017), truncated."""

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from torch import nn
from torchvision.models import densenet

from .staged import StagedBackbone

# Layers of each dense block (Huang et al., 2017, Table 1).
_LAYERS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
_NUM_BLOCKS = 4
_STEM_END = "pool0"


class DenseNet(StagedBackbone):
    """torchvision's DenseNet-121, -169 or -201, truncated, with features ``c2`` to ``c5``.

    A feature is the output of a dense block, before the normalization and pooling of the following
    transition: ``c2`` of the first block has stride 4, ``c5`` of the fourth 32. torchvision's last
    normalization and classifier are omitted. Parameters are named as in torchvision:
    ``features.denseblock1.denselayer1.conv1.weight``.

    Batch normalization is trained and uses batch statistics, as in torchvision; in frozen stages it
    has fixed weights and running statistics.

    Args:
        depth: 121, 169 or 201.
        in_channels: C, the channels of the images.
        num_blocks: number of dense blocks, 1 to 4.
        stem_channels: channels of the first convolution.
        growth_rate: number of channels that a layer adds.
        freeze_at: number of frozen stages: first the stem, then each dense block with the preceding
            transition.
        memory_efficient: torchvision's option: concatenations are recomputed in the backward pass
            instead of kept. Their first normalization then processes a batch twice, and its
            momentum is adjusted accordingly.

    Raises:
        ValueError: the depth or number of blocks is not supported, or a width is below 1.
    """

    def __init__(
        self,
        depth: int = 121,
        *,
        in_channels: int = 3,
        num_blocks: int = 3,
        stem_channels: int = 64,
        growth_rate: int = 32,
        freeze_at: int = 0,
        memory_efficient: bool = False,
    ):
        super().__init__()
        _check_options(depth, num_blocks, stem_channels, growth_rate)
        self.torchvision_name = f"densenet{depth}"
        layers = _LAYERS[depth][:num_blocks]
        self.features = densenet.DenseNet(
            growth_rate,
            layers,
            num_init_features=stem_channels,
            num_classes=1,
            memory_efficient=memory_efficient,
        ).features
        del self.features.norm5
        if in_channels != self.features.conv0.in_channels:
            self.features.conv0 = nn.Conv2d(
                in_channels, stem_channels, kernel_size=7, stride=2, padding=3, bias=False
            )
            nn.init.kaiming_normal_(self.features.conv0.weight)  # as torchvision's
        widths, channels = [], stem_channels
        for num_layers in layers:
            channels += num_layers * growth_rate
            widths.append(channels)
            channels //= 2  # the transition
        blocks = range(1, num_blocks + 1)
        self._set_features(
            {f"denseblock{i}": f"c{i + 1}" for i in blocks},
            channels=widths,
            strides=[2 ** (i + 1) for i in blocks],
        )
        if memory_efficient:
            self._halve_momentum()
        self._freeze(freeze_at, further_ends=(_STEM_END,))

    def _halve_momentum(self) -> None:
        """Make two updates with the same statistics equal to one with the usual momentum."""
        for module in self.modules():
            if isinstance(module, densenet._DenseLayer):
                norm = module.norm1
                norm.momentum = 1 - (1 - norm.momentum) ** 0.5


def _check_options(depth: int, num_blocks: int, stem_channels: int, growth_rate: int) -> None:
    if depth not in _LAYERS:
        raise ValueError(f"MODEL.DENSENET.DEPTH: found {depth}, expected one of {list(_LAYERS)}")
    if not 1 <= num_blocks <= _NUM_BLOCKS:
        raise ValueError(
            f"MODEL.DENSENET.NUM_BLOCKS: found {num_blocks}, expected 1 to {_NUM_BLOCKS}"
        )
    for key, value in (("STEM_CHANNELS", stem_channels), ("GROWTH_RATE", growth_rate)):
        if value < 1:
            raise ValueError(f"MODEL.DENSENET.{key}: found {value}, expected at least 1")


@BACKBONE_REGISTRY.register()
def build_densenet_backbone(cfg, input_shape: ShapeSpec) -> DenseNet:
    """Build a DenseNet from MODEL.DENSENET and MODEL.BACKBONE.FREEZE_AT."""
    return DenseNet(
        cfg.MODEL.DENSENET.DEPTH,
        in_channels=input_shape.channels,
        num_blocks=cfg.MODEL.DENSENET.NUM_BLOCKS,
        stem_channels=cfg.MODEL.DENSENET.STEM_CHANNELS,
        growth_rate=cfg.MODEL.DENSENET.GROWTH_RATE,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        memory_efficient=cfg.MODEL.DENSENET.MEMORY_EFFICIENT,
    )
