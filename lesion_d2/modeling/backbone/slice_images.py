"""Stacks of CT slices as several three-channel images through one backbone (3DCE, fused FPN)."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from ..attention import ContextualAttention, SpatialAttention

_CHANNELS = 3  # of an image
ALL_IMAGES = "images"
# Backbones that are built over MODEL.SLICE_IMAGES.BACKBONE.
_BUILDERS = ("build_slice_images_backbone", "build_fused_fpn_backbone")


def count_images(num_slices: int) -> int:
    """M, the three-channel images that a stack of 3 M slices makes.

    Raises:
        ValueError: the number is not 3 M with an odd M, so that one of them has the key slice in
            its middle.
    """
    num_images, rest = divmod(num_slices, _CHANNELS)
    if rest or num_images % 2 == 0:
        raise ValueError(
            f"MODEL.PIXEL_MEAN: found {num_slices} values (INPUT.CT.NUM_SLICES), expected three "
            "for each of an odd number of images: 3, 9, 15, 21, ..."
        )
    return num_images


class ImageStack(Backbone):
    """Base of backbones that run the M three-channel images of a stack through one backbone.

    The key image is the middle one. Features are kept where :func:`reuse_features` says so.
    In training the M images are one batch. At inference they come one after the other, so that
    features which are reused have the bits of those computed anew, whatever algorithm a convolution
    chooses for a batch's size; where that does not matter, see :func:`batch_images`.

    Args:
        backbone: for three channels.
        in_features: those of its features that are used.
        num_images: M.

    Raises:
        ValueError: M is even.
    """

    def __init__(self, backbone: Backbone, in_features: Sequence[str], num_images: int):
        super().__init__()
        count_images(_CHANNELS * num_images)
        self.backbone = backbone
        self.in_features = tuple(in_features)
        self.num_images = num_images
        self.memory: FeatureMemory | None = None
        self.in_batches = False

    @property
    def size_divisibility(self) -> int:
        """As the backbone's, or the largest stride: the last pixels are part of a feature too."""
        strides = (shape.stride for shape in self.output_shape().values())
        return max(self.backbone.size_divisibility, *strides)

    @property
    def padding_constraints(self) -> dict[str, int]:
        """As the backbone's."""
        return self.backbone.padding_constraints

    def image_features(self, x: Tensor) -> dict[str, Tensor]:
        """Map stacks (N, 3 M, H, W) to each feature of all images, (N, M, D, h, w)."""
        images = x.unflatten(1, (self.num_images, _CHANNELS)).flatten(0, 1)
        return {
            name: features.unflatten(0, (len(x), self.num_images))
            for name, features in zip(self.in_features, self._compute(images), strict=True)
        }

    def _compute(self, images: Tensor) -> list[Tensor]:
        """Map images (n, 3, H, W) to each feature, (n, D, h, w)."""
        if self.training or self.in_batches:
            return self._compute_batch(images)
        if self.memory is not None:
            found = self.memory.look_up(images, self._compute_batch)
        else:
            found = [self._compute_batch(image) for image in images.split(1)]
        return [torch.cat(features) for features in zip(*found, strict=True)]

    def _compute_batch(self, images: Tensor) -> list[Tensor]:
        features = self.backbone(images)
        return [features[name] for name in self.in_features]


class SliceImages(ImageStack):
    """Runs the M three-channel images of a stack through one backbone (3DCE, Yan et al., 2018).

    The key image is the middle one. Its features go to the region proposals as they are; those of
    all images, joined along the channels, go through the attention of Tao et al. (2019), first the
    contextual, then the spatial one, to the classification of regions. The paper leaves open which
    of them the region proposals see.

    Args:
        backbone: for three channels.
        in_feature: the one of its features that is used, with D channels.
        num_images: M.
        contextual_attention, spatial_attention: modules on features (N, M, D, H, W), or None.

    Raises:
        ValueError: M is even.
    """

    def __init__(
        self,
        backbone: Backbone,
        in_feature: str,
        num_images: int,
        *,
        contextual_attention: nn.Module | None = None,
        spatial_attention: nn.Module | None = None,
    ):
        super().__init__(backbone, [in_feature], num_images)
        self.in_feature = in_feature
        self.contextual_attention = contextual_attention
        self.spatial_attention = spatial_attention

    def output_shape(self) -> dict[str, ShapeSpec]:
        """The key image's features by the backbone's name, and those of all: ``images``."""
        shape = self.backbone.output_shape()[self.in_feature]
        joined = ShapeSpec(channels=shape.channels * self.num_images, stride=shape.stride)
        return {self.in_feature: shape, ALL_IMAGES: joined}

    def forward(
        self, x: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> dict[str, Tensor]:
        """Map stacks (N, 3 M, H, W) to features (N, D, h, w) and, ``images``, (N, M D, h, w).

        Args:
            x: on the 0..255 scale, normalized.
            image_sizes: N heights and widths without the batch's padding, which the spatial
                attention then leaves out; None for a batch without padding.
        """
        features = self.image_features(x)[self.in_feature]
        key = features[:, self.num_images // 2]
        sizes = None if image_sizes is None else self._feature_sizes(image_sizes, features)
        for attention in (self.contextual_attention, self.spatial_attention):
            if attention is not None:
                features = attention(features, sizes)
        return {self.in_feature: key, ALL_IMAGES: features.flatten(1, 2)}

    def _feature_sizes(
        self, image_sizes: Sequence[tuple[int, int]], features: Tensor
    ) -> list[tuple[int, int]] | None:
        """Heights and widths of the images' features; None where no image has been padded."""
        stride = self.output_shape()[ALL_IMAGES].stride
        sizes = [(math.ceil(h / stride), math.ceil(w / stride)) for h, w in image_sizes]
        return None if set(sizes) == {tuple(features.shape[-2:])} else sizes


class FeatureMemory:
    """Features by the content of their images; the least recently used ones are forgotten.

    Args:
        size: number of images that are kept, with their features.
    """

    def __init__(self, size: int):
        self.size = size
        self._entries: OrderedDict[tuple, tuple[Tensor, list[Tensor]]] = OrderedDict()

    def look_up(
        self, images: Tensor, compute: Callable[[Tensor], list[Tensor]]
    ) -> list[list[Tensor]]:
        """Features of each image, computed where the same image is not known.

        Args:
            images: (n, 3, H, W) float32.
            compute: maps an image (1, 3, H, W) to features, each (1, D, h, w).
        """
        found = []
        for image, number in zip(images.split(1), _fingerprints(images), strict=True):
            key = (*image.shape[-2:], number)
            known, features = self._entries.pop(key, (None, None))
            if known is None or not torch.equal(known, image):
                # Without the clone, a part of the batch would keep the whole of it.
                known, features = image.clone(), compute(image)
            self._entries[key] = known, features
            if len(self._entries) > self.size:
                self._entries.popitem(last=False)
            found.append(features)
        return found


def _fingerprints(images: Tensor) -> list[int]:
    """A number an image (n, C, H, W), which says where to look for the same one."""
    bits = images.float().contiguous().view(torch.int32).flatten(1)
    places = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    return (bits * places).sum(dim=1).tolist()  # 64 bits, and whatever runs over them


@contextmanager
def reuse_features(model: nn.Module, num_images: int) -> Iterator[None]:
    """Let a model in evaluation reuse the features of three-slice images while the context lasts.

    Neighboring key slices of a volume share images, and get the same detections as without. The
    model's weights must not change meanwhile.

    Args:
        model: whose :class:`ImageStack`, if it has any, keep features.
        num_images: that each of them keeps; 0 keeps none. Where k slices of a volume lie in the
            interval between two slices of a stack, all are found again with 3 M k.
    """
    before = {module: module.memory for module in model.modules() if isinstance(module, ImageStack)}
    for backbone in before:
        backbone.memory = FeatureMemory(num_images) if num_images > 0 else None
    try:
        yield
    finally:
        for backbone, memory in before.items():
            backbone.memory = memory


@contextmanager
def batch_images(model: nn.Module) -> Iterator[None]:
    """Let a model in evaluation compute a stack's images as one batch while the context lasts.

    This is faster on a GPU, and reuses nothing; the features may differ in their last bits.

    Args:
        model: with any number of :class:`ImageStack`.
    """
    before = {m: m.in_batches for m in model.modules() if isinstance(m, ImageStack)}
    for backbone in before:
        backbone.in_batches = True
    try:
        yield
    finally:
        for backbone, in_batches in before.items():
            backbone.in_batches = in_batches


def build_image_backbone(cfg, input_shape: ShapeSpec) -> tuple[Backbone, int]:
    """Build MODEL.SLICE_IMAGES.BACKBONE for three channels; with M, the images of C slices.

    Raises:
        ValueError: C is not 3 M with an odd M, or MODEL.SLICE_IMAGES.BACKBONE is itself one for
            stacks.
    """
    num_images, inner = count_images(input_shape.channels), cfg.MODEL.SLICE_IMAGES.BACKBONE
    if inner in (cfg.MODEL.BACKBONE.NAME, *_BUILDERS):
        raise ValueError(
            f"MODEL.SLICE_IMAGES.BACKBONE: found {inner!r}, expected a backbone for three "
            "channels, such as 'build_vgg_backbone'"
        )
    builder = BACKBONE_REGISTRY.get(inner)
    return builder(cfg, ShapeSpec(channels=_CHANNELS)), num_images


@BACKBONE_REGISTRY.register()
def build_slice_images_backbone(cfg, input_shape: ShapeSpec) -> SliceImages:
    """Build MODEL.SLICE_IMAGES.BACKBONE for three channels, with the attention that is switched on.

    Raises:
        ValueError: C is not 3 M with an odd M, MODEL.SLICE_IMAGES.BACKBONE is itself one for
            stacks, or MODEL.RPN.IN_FEATURES is not one feature of that backbone.
    """
    backbone, num_images = build_image_backbone(cfg, input_shape)
    names = list(cfg.MODEL.RPN.IN_FEATURES)
    shapes = backbone.output_shape()
    if len(names) != 1 or names[0] not in shapes:
        raise ValueError(
            f"MODEL.RPN.IN_FEATURES: found {names}, expected one of {', '.join(shapes)} "
            f"(MODEL.SLICE_IMAGES.BACKBONE is {cfg.MODEL.SLICE_IMAGES.BACKBONE!r})"
        )
    [name] = names
    channels, options = shapes[name].channels, cfg.MODEL.RFCN_3DCE
    contextual = spatial = None
    if options.CONTEXTUAL_ATTENTION:
        contextual = ContextualAttention(channels, options.CONTEXTUAL_TEMPERATURE)
    if options.SPATIAL_ATTENTION:
        spatial = SpatialAttention(channels, options.SPATIAL_TEMPERATURE)
    return SliceImages(
        backbone, name, num_images, contextual_attention=contextual, spatial_attention=spatial
    )
