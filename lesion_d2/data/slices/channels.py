"""Channels of images, made one by one: those that neighboring key slices share are made once."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
from detectron2.data import transforms as T

from ...structures.slice_geometry import interpolate_slices
from ..mapper import LesionDatasetMapper, crop_transform
from .ct import Channel


class ChannelMaker:
    """Makes what a mapper's ``load`` would have as a channel of a volume's images, in inference.

    Args:
        mapper: for inference.
        size: height and width of a slice.
        spacing: x, y, z, mm; None where it is not known.
        crop: what to keep of slices, (x0, y0, x1, y1), ends exclusive; None for all.
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
        """A channel as it stands in images, (h, w) int16.

        Args:
            channel: what it is made of.
            read: gives the slice of a number, (H, W) int16, clipped to the mapper's window; it is
                left as it is, and may be what is returned.
        """
        lower, upper, fraction = channel
        hu = read(lower)
        if fraction:
            between = np.empty_like(hu)
            interpolate_slices(hu, read(upper), fraction, between)
            hu = between
        return np.ascontiguousarray(self.transforms.apply_image(hu))

    @cached_property
    def transforms(self) -> T.TransformList:
        """From a slice to its image; in inference they are the same for all of a size."""
        size, transforms = self.size, T.TransformList([])
        if self.crop is not None:
            transforms += crop_transform(self.crop, size)
            x0, y0, x1, y1 = self.crop
            size = y1 - y0, x1 - x0
        aug_input = T.AugInput(np.zeros((*size, 1), np.int16))
        aug_input.spacing = self.spacing
        return transforms + self.mapper.augmentations(aug_input)
