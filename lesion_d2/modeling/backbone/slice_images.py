"""Backbones for stacks of CT slices as several three-channel images (3DCE, fused FPN)."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from ..attention import ContextualAttention, SpatialAttention

_CHANNELS = 3  # per image
ALL_IMAGES = "images"
# Backbones that contain MODEL.SLICE_IMAGES.BACKBONE.
_BUILDERS = ("build_slice_images_backbone", "build_fused_fpn_backbone")


def count_images(num_slices: int) -> int:
    """Return M, the number of three-channel images in a stack of 3 M slices.

    Raises:
        ValueError: the number is not 3 M with an odd M, for which the key slice is in the middle of
            an image.
    """
    num_images, rest = divmod(num_slices, _CHANNELS)
    if rest or num_images % 2 == 0:
        raise ValueError(
            f"MODEL.PIXEL_MEAN: found {num_slices} values (INPUT.CT.NUM_SLICES), expected three "
            "per image and an odd number of images: 3, 9, 15, 21, ..."
        )
    return num_images


class ImageStack(Backbone):
    """Base class of backbones that apply one backbone to the M three-channel images of a stack.

    The key image is the middle one. Features are cached within :func:`reuse_features`. In training
    the M images are one batch. At inference they are processed one by one, so that cached features
    are bitwise equal to recomputed ones, although convolution algorithms depend on the batch size;
    see :func:`batch_images` if this does not matter.

    Args:
        backbone: backbone for three channels.
        in_features: names of the features to use.
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
        """That of the backbone, at least the largest stride, so that no pixels are dropped."""
        strides = (shape.stride for shape in self.output_shape().values())
        return max(self.backbone.size_divisibility, *strides)

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Those of the backbone."""
        return self.backbone.padding_constraints

    def image_features(self, x: Tensor) -> dict[str, Tensor]:
        """Map stacks (N, 3 M, H, W) to the features of all images, (N, M, D, h, w) each."""
        images = x.unflatten(1, (self.num_images, _CHANNELS)).flatten(0, 1)
        return {
            name: features.unflatten(0, (len(x), self.num_images))
            for name, features in zip(self.in_features, self._compute(images), strict=True)
        }

    def _compute(self, images: Tensor) -> list[Tensor]:
        """Map images (n, 3, H, W) to features (n, D, h, w)."""
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
    """Applies one backbone to the M three-channel images of a stack (3DCE, Yan et al., 2018).

    The key image is the middle one. Its features are used for region proposals. The features of all
    images pass the attention of Tao et al. (2019), first contextual, then spatial, are concatenated
    along channels, and are used for the classification of regions. The paper does not say which
    features the region proposals use.

    Args:
        backbone: backbone for three channels.
        in_feature: name of the feature to use, with D channels.
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
        """The key image's feature by the backbone's name, and those of all images: ``images``."""
        shape = self.backbone.output_shape()[self.in_feature]
        joined = ShapeSpec(channels=shape.channels * self.num_images, stride=shape.stride)
        return {self.in_feature: shape, ALL_IMAGES: joined}

    def forward(
        self, x: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> dict[str, Tensor]:
        """Map stacks (N, 3 M, H, W) to features (N, D, h, w) and, ``images``, (N, M D, h, w).

        Args:
            x: stacks on the 0..255 scale, normalized.
            image_sizes: N heights and widths without the batch's padding, which the spatial
                attention ignores; None for a batch without padding.
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
        """Heights and widths of the images' features; None if no image is padded."""
        stride = self.output_shape()[ALL_IMAGES].stride
        sizes = [(math.ceil(h / stride), math.ceil(w / stride)) for h, w in image_sizes]
        return None if set(sizes) == {tuple(features.shape[-2:])} else sizes


class FeatureMemory:
    """LRU cache of features by the content of their images.

    Args:
        size: maximum number of cached images.
    """

    def __init__(self, size: int):
        self.size = size
        self._entries: OrderedDict[tuple, tuple[Tensor, list[Tensor]]] = OrderedDict()

    def look_up(
        self, images: Tensor, compute: Callable[[Tensor], list[Tensor]]
    ) -> list[list[Tensor]]:
        """Return the features of each image, computed if it is not in the cache.

        Args:
            images: (n, 3, H, W) float32.
            compute: maps an image (1, 3, H, W) to features (1, D, h, w).
        """
        found = []
        for image, number in zip(images.split(1), _fingerprints(images), strict=True):
            key = (*image.shape[-2:], number)
            known, features = self._entries.pop(key, (None, None))
            if known is None or not torch.equal(known, image):
                # Without the clone, a slice would keep the whole batch in memory.
                known, features = image.clone(), compute(image)
            self._entries[key] = known, features
            if len(self._entries) > self.size:
                self._entries.popitem(last=False)
            found.append(features)
        return found


def _fingerprints(images: Tensor) -> list[int]:
    """A hash of each image (n, C, H, W)."""
    bits = images.float().contiguous().view(torch.int32).flatten(1)
    places = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    return (bits * places).sum(dim=1).tolist()  # 64 bits, overflow is wanted


@contextmanager
def reuse_features(model: nn.Module, num_images: int) -> Iterator[None]:
    """Context manager that caches features of three-slice images of a model in evaluation.

    Neighboring key slices of a volume share images. Detections do not change. The model's weights
    must not change within the context.

    Args:
        model: model with any number of :class:`ImageStack`.
        num_images: cache size of each of them; 0 for none. If the distance between slices of a
            stack is k slices of the volume, 3 M k is sufficient to reuse all images.
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
    """Context manager that lets a model in evaluation process a stack's images as one batch.

    This is faster on a GPU, but does not use the cache; features may differ in the last bits.

    Args:
        model: model with any number of :class:`ImageStack`.
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
    """Build MODEL.SLICE_IMAGES.BACKBONE for three channels; returns it and M.

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
    """Build MODEL.SLICE_IMAGES.BACKBONE for three channels, with the enabled attention modules.

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
