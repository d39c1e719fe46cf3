"""Stacks of CT slices as several three-channel images through one backbone (3DCE)."""

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


class SliceImages(Backbone):
    """Runs the M three-channel images of a stack through one backbone (3DCE, Yan et al., 2018).

    The key image is the middle one. Its features go to the region proposals as they are; those of
    all images, joined along the channels, go through the attention of Tao et al. (2019), first the
    contextual, then the spatial one, to the classification of regions. The paper leaves open which
    of them the region proposals see.

    In training the M images are one batch. At inference they come one after the other, so that
    features which are reused (see :func:`reuse_features`) have the bits of those computed anew,
    whatever algorithm a convolution chooses for a batch's size.

    Args:
        backbone: for three channels.
        in_feature: the one of its features that is used, with D channels.
        num_images: M.
        contextual_attention, spatial_attention: modules on features (N, M, D, H, W), or None.

    Raises:
        ValueError: M is even.

    Attributes:
        image_sizes: N heights and widths of the next batch without its padding, which the spatial
            attention then leaves out; None for one without padding. Detectron2's models give their
            backbone the tensor alone.
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
        super().__init__()
        count_images(_CHANNELS * num_images)
        self.backbone = backbone
        self.in_feature = in_feature
        self.num_images = num_images
        self.contextual_attention = contextual_attention
        self.spatial_attention = spatial_attention
        self.image_sizes: Sequence[tuple[int, int]] | None = None
        self.memory: FeatureMemory | None = None

    @property
    def size_divisibility(self) -> int:
        """As the backbone's, or the stride: the last pixels are part of a feature too."""
        return max(self.backbone.size_divisibility, self.output_shape()[ALL_IMAGES].stride)

    @property
    def padding_constraints(self) -> dict[str, int]:
        """As the backbone's."""
        return self.backbone.padding_constraints

    def output_shape(self) -> dict[str, ShapeSpec]:
        """The key image's features by the backbone's name, and those of all: ``images``."""
        shape = self.backbone.output_shape()[self.in_feature]
        joined = ShapeSpec(channels=shape.channels * self.num_images, stride=shape.stride)
        return {self.in_feature: shape, ALL_IMAGES: joined}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map stacks (N, 3 M, H, W) to features (N, D, h, w) and, ``images``, (N, M D, h, w)."""
        image_sizes, self.image_sizes = self.image_sizes, None  # of this batch alone
        images = x.unflatten(1, (self.num_images, _CHANNELS)).flatten(0, 1)
        features = self._compute(images).unflatten(0, (len(x), self.num_images))
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

    def _compute(self, images: Tensor) -> Tensor:
        """Map images (n, 3, H, W) to features (n, D, h, w)."""
        if self.training:
            return self._compute_batch(images)
        if self.memory is not None:
            return torch.cat(self.memory.look_up(images, self._compute_batch))
        return torch.cat([self._compute_batch(image) for image in images.split(1)])

    def _compute_batch(self, images: Tensor) -> Tensor:
        return self.backbone(images)[self.in_feature]


class FeatureMemory:
    """Features by the content of their images; the least recently used ones are forgotten.

    Args:
        size: number of images that are kept, with their features.
    """

    def __init__(self, size: int):
        self.size = size
        self._entries: OrderedDict[tuple, tuple[Tensor, Tensor]] = OrderedDict()

    def look_up(self, images: Tensor, compute: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Features of each image, computed where the same image is not known.

        Args:
            images: (n, 3, H, W) float32.
            compute: maps an image (1, 3, H, W) to features (1, D, h, w).
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
        model: whose :class:`SliceImages`, if it has any, keep features.
        num_images: that each of them keeps; 0 keeps none. Where k slices of a volume lie in the
            interval between two slices of a stack, all are found again with 3 M k.
    """
    before = {
        module: module.memory for module in model.modules() if isinstance(module, SliceImages)
    }
    for backbone in before:
        backbone.memory = FeatureMemory(num_images) if num_images > 0 else None
    try:
        yield
    finally:
        for backbone, memory in before.items():
            backbone.memory = memory


@BACKBONE_REGISTRY.register()
def build_slice_images_backbone(cfg, input_shape: ShapeSpec) -> SliceImages:
    """Build MODEL.RFCN_3DCE.BACKBONE for three channels, with the attention that is switched on.

    Raises:
        ValueError: C is not 3 M with an odd M, MODEL.RFCN_3DCE.BACKBONE is this builder itself, or
            MODEL.RPN.IN_FEATURES is not one feature of that backbone.
    """
    options = cfg.MODEL.RFCN_3DCE
    num_images = count_images(input_shape.channels)
    if options.BACKBONE == cfg.MODEL.BACKBONE.NAME:
        raise ValueError(
            f"MODEL.RFCN_3DCE.BACKBONE: found {options.BACKBONE!r}, expected a backbone for three "
            "channels, such as 'build_vgg_backbone'"
        )
    builder = BACKBONE_REGISTRY.get(options.BACKBONE)
    backbone = builder(cfg, ShapeSpec(channels=_CHANNELS))
    names, shapes = list(cfg.MODEL.RPN.IN_FEATURES), backbone.output_shape()
    if len(names) != 1 or names[0] not in shapes:
        raise ValueError(
            f"MODEL.RPN.IN_FEATURES: found {names}, expected one of {', '.join(shapes)} "
            f"(MODEL.RFCN_3DCE.BACKBONE is {options.BACKBONE!r})"
        )
    [name] = names
    channels = shapes[name].channels
    contextual = spatial = None
    if options.CONTEXTUAL_ATTENTION:
        contextual = ContextualAttention(channels, options.CONTEXTUAL_TEMPERATURE)
    if options.SPATIAL_ATTENTION:
        spatial = SpatialAttention(channels, options.SPATIAL_TEMPERATURE)
    return SliceImages(
        backbone, name, num_images, contextual_attention=contextual, spatial_attention=spatial
    )
