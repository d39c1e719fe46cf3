"""Channels of images, computed one by one, so that neighboring key slices can share them."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
from detectron2.data import transforms as T

from ...structures.slice_geometry import interpolate_slices
from ..mapper import LesionDatasetMapper, crop_transform
from ..transforms.slice_input import SliceInput, transform_slices
from .ct import Channel


class ChannelMaker:
    """Computes single channels of a volume's images, equal to those of a mapper's ``load``.

    Args:
        mapper: a mapper for inference.
        size: height and width of a slice.
        spacing: x, y, z, mm; None if unknown.
        crop: the part of slices to keep, (x0, y0, x1, y1), ends exclusive; None for all.
    """

    def __init__(
        self,
        mapper: LesionDatasetMapper,
        size: tuple[int, int],
        spacing: tuple[float, float, float] | None,
        crop: tuple[int, int, int, int] | None,
    ):
        self.mapper = mapper
        self.size = size
        self.spacing = spacing
        self.crop = crop

    def __call__(self, channel: Channel, read: Callable[[int], np.ndarray]) -> np.ndarray:
        """Compute a channel, (h, w) int16.

        Args:
            channel: the slices and the weight that it is interpolated from.
            read: maps a slice number to the slice, (H, W) int16, clipped to the mapper's window.
                The slice is not modified, and may be returned as it is.
        """
        lower, upper, fraction = channel
        hu = read(lower)
        if fraction:
            between = np.empty_like(hu)
            interpolate_slices(hu, read(upper), fraction, between)
            hu = between
        return np.ascontiguousarray(transform_slices(self.transforms, hu))

    @cached_property
    def transforms(self) -> T.TransformList:
        """The transforms from a slice to its image; in inference they depend only on the size."""
        size, transforms = self.size, T.TransformList([])
        if self.crop is not None:
            transforms += crop_transform(self.crop, size)
            x0, y0, x1, y1 = self.crop
            size = y1 - y0, x1 - x0
        aug_input = SliceInput(np.zeros((*size, 1), np.int16), spacing=self.spacing)
        return transforms + self.mapper.augmentations(aug_input)
