"""VGG (Simonyan and Zisserman, 2015), alone, with FPN and with U-FPN."""

from collections.abc import Collection

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN
from torch import nn
from torchvision.models import vgg

from .staged import StagedBackbone
from .unet_fpn import UNetFPN, build_fpn, build_unet_fpn

_LAYERS = {16: vgg.cfgs["D"], 19: vgg.cfgs["E"]}
_TORCHVISION_WIDTH = 64
_NUM_STAGES = 5


class VGG(StagedBackbone):
    """torchvision's VGG-16 or -19 without its classifier, with features ``c1`` to ``c5``.

    A stage ends with its pooling, so that features have strides 2, 4, 8, 16 and 32, as in a ResNet;
    without pooling it ends with its last ReLU: ``c5`` is then ``relu5_3``. Parameters are named as
    in torchvision: ``features.0.weight``.

    Args:
        depth: 16 or 19.
        in_channels: C, the channels of the images.
        batch_norm: use batch normalization after every convolution.
        width: channels of the first stage, 64 in torchvision; the others are scaled in proportion.
        freeze_at: number of frozen stages, from the first one.
        pooled_stages: the stages, out of 1 to 5, that end with pooling and double the stride.

    Raises:
        ValueError: the depth is not supported, the width is below 1, or a stage does not exist.
    """

    def __init__(
        self,
        depth: int = 19,
        *,
        in_channels: int = 3,
        batch_norm: bool = False,
        width: int = _TORCHVISION_WIDTH,
        freeze_at: int = 0,
        pooled_stages: Collection[int] = range(1, _NUM_STAGES + 1),
    ):
        super().__init__()
        if depth not in _LAYERS:
            raise ValueError(f"MODEL.VGG.DEPTH: found {depth}, expected one of {list(_LAYERS)}")
        if width < 1:
            raise ValueError(f"MODEL.VGG.WIDTH: found {width}, expected at least 1")
        if not set(pooled_stages) <= set(range(1, _NUM_STAGES + 1)):
            raise ValueError(
                f"MODEL.VGG.POOLED_STAGES: found {tuple(pooled_stages)}, expected stages from 1 to "
                f"{_NUM_STAGES}"
            )
        layers = [n if n == "M" else n * width // _TORCHVISION_WIDTH for n in _LAYERS[depth]]
        self.torchvision_name = f"vgg{depth}_bn" if batch_norm else f"vgg{depth}"
        self.features = vgg.make_layers(layers, batch_norm)
        self.features[0] = nn.Conv2d(in_channels, layers[0], kernel_size=3, padding=1)
        self._initialize()
        # An identity keeps the names of the following parameters.
        ends = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]
        for stage, end in enumerate(ends, start=1):
            if stage not in pooled_stages:
                self.features[end] = nn.Identity()
        widths = [layers[i - 1] for i, n in enumerate(layers) if n == "M"]
        stages = range(1, _NUM_STAGES + 1)
        self._set_features(
            {str(end): f"c{stage}" for stage, end in zip(stages, ends, strict=True)},
            channels=widths,
            strides=[2 ** sum(p <= stage for p in set(pooled_stages)) for stage in stages],
        )
        self._freeze(freeze_at)

    def _initialize(self) -> None:
        """As in torchvision, which would also initialize the classifier."""
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)


@BACKBONE_REGISTRY.register()
def build_vgg_backbone(cfg, input_shape: ShapeSpec) -> VGG:
    """Build a VGG from MODEL.VGG and MODEL.BACKBONE.FREEZE_AT."""
    return VGG(
        cfg.MODEL.VGG.DEPTH,
        in_channels=input_shape.channels,
        batch_norm=cfg.MODEL.VGG.BATCH_NORM,
        width=cfg.MODEL.VGG.WIDTH,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        pooled_stages=cfg.MODEL.VGG.POOLED_STAGES,
    )


@BACKBONE_REGISTRY.register()
def build_vgg_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's FPN over a VGG; see :func:`build_top_block` for P6 and P7."""
    return build_fpn(cfg, build_vgg_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_vgg_unet_fpn_backbone(cfg, input_shape: ShapeSpec) -> UNetFPN:
    """Build the U-FPN over a VGG (Zlocha et al., Fig. 1)."""
    return build_unet_fpn(cfg, input_shape, build_vgg_backbone(cfg, input_shape))
