"""An FPN over the fused features of three-channel images."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone
from torch import Tensor, nn

from .slice_images import ImageStack, build_image_backbone
from .unet_fpn import build_fpn


class FusedImages(ImageStack):
    """Fuses the features of a stack's M three-channel images, level by level.

    On every level, the features of all images are concatenated along channels and mapped by a 1x1
    convolution to the channels of one image. Bai et al. (2023) only say that their Faster R-CNN has
    nine input slices; the fusion is our choice for a 2-D backbone with pretrained weights. It is
    initialized to the key image's features (identity on them, 0 on the others), so that the pyramid
    starts from the features of the pretrained backbone. For M = 1 there is nothing to fuse.

    Args:
        backbone: backbone for three channels.
        in_features: the levels, by the backbone's names.
        num_images: M.

    Raises:
        ValueError: M is even.
    """

    def __init__(self, backbone: Backbone, in_features: list[str], num_images: int):
        super().__init__(backbone, in_features, num_images)
        self.fusions = nn.ModuleDict()
        if num_images > 1:
            for name, shape in self.output_shape().items():
                self.fusions[name] = _key_image_conv(shape.channels, num_images)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """The backbone's shapes of the levels in use."""
        shapes = self.backbone.output_shape()
        return {name: shapes[name] for name in self.in_features}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map stacks (N, 3 M, H, W) to one feature (N, D, h, w) per level."""
        features = {name: value.flatten(1, 2) for name, value in self.image_features(x).items()}
        return {
            name: self.fusions[name](value) if name in self.fusions else value
            for name, value in features.items()
        }


def _key_image_conv(channels: int, num_images: int) -> nn.Conv2d:
    """A 1x1 convolution from the channels of all images to one, initialized to the key image."""
    conv = nn.Conv2d(channels * num_images, channels, kernel_size=1)
    nn.init.zeros_(conv.bias)
    nn.init.zeros_(conv.weight)
    first = channels * (num_images // 2)
    with torch.no_grad():
        conv.weight[:, first : first + channels, 0, 0].fill_diagonal_(1.0)
    return conv


@BACKBONE_REGISTRY.register()
def build_fused_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's FPN over the fused features of MODEL.SLICE_IMAGES.BACKBONE.

    See :class:`FusedImages` for the fusion, and :func:`build_top_block` for levels above the
    coarsest of MODEL.FPN.IN_FEATURES.

    Raises:
        ValueError: C is not 3 M with an odd M, MODEL.SLICE_IMAGES.BACKBONE is itself one for
            stacks, or MODEL.FPN.IN_FEATURES are not features of that backbone.
    """
    backbone, num_images = build_image_backbone(cfg, input_shape)
    names = list(cfg.MODEL.FPN.IN_FEATURES)
    known = backbone.output_shape()
    if not names or not known.keys() >= set(names):
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES: found {names}, expected some of {', '.join(known)} "
            f"(MODEL.SLICE_IMAGES.BACKBONE is {cfg.MODEL.SLICE_IMAGES.BACKBONE!r})"
        )
    return build_fpn(cfg, FusedImages(backbone, names, num_images))
