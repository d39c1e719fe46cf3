"""Slices of a scan in memory as model input, equal to those read from files."""

import math
from collections import OrderedDict
from functools import cached_property

import numpy as np
import torch

from ...structures.slice_geometry import EXPECTED_SPACING, is_spacing
from ..mapper import LesionDatasetMapper
from ..transforms.borders import common_extent
from .channels import ChannelMaker
from .ct import Channel, clip_to_window, plan_channels


def slices_needed(num_slices: int, interval: float, spacing_z: float) -> int:
    """Return the minimum number of slices that a scan needs for a model's input.

    Args:
        num_slices: number of slices of the model's input.
        interval: distance between them, mm; 0 for the scan's slices.
        spacing_z: slice spacing of the scan, mm.
    """
    step = interval / spacing_z if interval else 1.0
    return math.ceil((num_slices - 1) * step - 1e-6) + 1


class ScanImages:
    """The samples that a mapper's ``load`` would return for the slices of a scan in files.

    A channel of an image (a slice, or an interpolated one) is windowed, cropped and resized once,
    and cached for neighboring key slices. The cache holds twice the channels of an image, in int16,
    as much memory as one float32 image. If borders are cropped, all slices have the crop of the
    whole scan.

    Args:
        mapper: a mapper for inference; its ``pseudo_masks`` are ignored.
        volume: (Z, H, W) int16, HU, slices in DeepLesion's order; not modified.
        spacing: x, y, z, mm.
        name: name of the scan, for messages.

    Raises:
        ValueError: a spacing is invalid, or the scan has fewer slices than the model's input needs
            at the mapper's interval.

    Example:
        >>> images = ScanImages(LesionDatasetMapper(cfg, False), scan.volume, scan.spacing, "ct")
        >>> sample = images[10]  # image: (C, h, w) int16; height, width, spacing, slice_index
    """

    def __init__(
        self,
        mapper: LesionDatasetMapper,
        volume: np.ndarray,
        spacing: tuple[float, float, float],
        name: str,
    ):
        if not all(map(is_spacing, spacing)):
            raise ValueError(
                f"{name}: found spacing {tuple(spacing)}, expected x, y and z, "
                f"each {EXPECTED_SPACING}"
            )
        self.mapper = mapper
        self.volume = volume
        self.spacing = tuple(map(float, spacing))
        self.name = name
        #: Distance between neighboring channels, in slices.
        self.step = mapper.slice_interval / self.spacing[2] if mapper.slice_interval else 1.0
        self._channels: OrderedDict[Channel, np.ndarray] = OrderedDict()
        self._num_kept = 2 * mapper.num_slices
        self._check_depth()

    def _check_depth(self) -> None:
        mapper, depth = self.mapper, len(self.volume)
        needed = slices_needed(mapper.num_slices, mapper.slice_interval, self.spacing[2])
        if depth < needed:
            interval = f" at {mapper.slice_interval:g} mm" if mapper.slice_interval else ""
            raise ValueError(
                f"{self.name}: found {depth} slices of {self.spacing[2]:g} mm, expected {needed} "
                f"or more, the extent of the model's stack of {mapper.num_slices}{interval}"
            )

    def __len__(self) -> int:
        return len(self.volume)

    def order(self) -> list[int]:
        """All slices, ordered in steps of the distance between channels.

        If the interval is an integer number of slices, consecutive slices share channels, which
        then only need to be cached briefly.
        """
        step = round(self.step)
        if step < 2 or abs(self.step - step) > 1e-6:
            step = 1
        return [index for first in range(step) for index in range(first, len(self), step)]

    def __getitem__(self, index: int) -> dict:
        """Return a slice's sample: ``image`` int16 (C, h, w) in HU, and its metadata.

        Raises:
            IndexError: the slice does not exist.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: found slice {index}, expected 0 to {len(self) - 1}")
        mapper, (height, width) = self.mapper, self.volume.shape[1:]
        plan = plan_channels(
            index,
            lambda number: 0 <= number < len(self),
            num_slices=mapper.num_slices,
            interval=mapper.slice_interval,
            spacing_z=self.spacing[2],
            where=f"{self.name}, slice {index}",
        )
        sample = {
            "file_name": f"{self.name}, slice {index}",
            "image_id": index,
            "slice_index": index,
            "height": height,
            "width": width,
            "spacing": self.spacing,
            "image": torch.from_numpy(np.stack([self._channel(channel) for channel in plan])),
        }
        if mapper.cut_borders:
            sample["crop"] = self._crop
        return sample

    @property
    def scale(self) -> tuple[float, float]:
        """Image pixels per slice pixel, along x and y."""
        ends = self._maker.transforms.apply_coords(np.array([[0.0, 0.0], [1.0, 1.0]]))
        return tuple((ends[1] - ends[0]).tolist())

    def _channel(self, channel: Channel) -> np.ndarray:
        """A channel of the images, (h, w) int16."""
        known = self._channels.pop(channel, None)
        if known is None:
            known = self._maker(channel, self._read)
        self._channels[channel] = known
        if len(self._channels) > self._num_kept:
            self._channels.popitem(last=False)
        return known

    @cached_property
    def _crop(self) -> tuple[int, int, int, int]:
        return common_extent(self.volume, self.spacing[:2])

    @cached_property
    def _maker(self) -> ChannelMaker:
        crop = self._crop if self.mapper.cut_borders else None
        return ChannelMaker(self.mapper, self.volume.shape[1:], self.spacing, crop)

    def _read(self, number: int) -> np.ndarray:
        hu = self.volume[number].copy()
        clip_to_window(hu, self.mapper.hu_window)
        return hu
