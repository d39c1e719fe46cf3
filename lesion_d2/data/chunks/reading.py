"""Chunks in a loader process: reading slices, and computing channels from them."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...scans.png import check_same_size
from ...structures.slice_geometry import is_spacing
from ...utils.values import are_digits
from ..mapper import LesionDatasetMapper, volume_crop
from ..shared_arrays import Allocate, shared_array, shared_in
from ..slices.channels import ChannelMaker
from ..slices.ct import Channel, clip_to_window, plan_channels, read_slice
from ..slices.slice_formats import format_of

# Limits of a chunk: number of images, and approximate bytes of channels.
_MAX_IMAGES, _MAX_BYTES = 16, 24 * 2**20
_NOT_OF_MODELS = ("annotations", "hidden_annotations")


@dataclass(frozen=True)
class Chunk:
    """Consecutive key slices of one volume, or one image of any kind.

    Attributes:
        dicts: dicts of the data set.
        before: slice numbers of earlier key slices that may share channels with them.
        is_of_volume: whether channels are computed one by one.
    """

    dicts: tuple[dict, ...]
    before: tuple[int, ...] = ()
    is_of_volume: bool = False

    @property
    def folder(self) -> str:
        """The folder of its slices, or the file of a volume."""
        return os.path.dirname(self.dicts[0]["file_name"])


@dataclass(frozen=True)
class ReadChunk:
    """A chunk that was read, without the channels of earlier chunks.

    Attributes:
        volume: identifies the volume of the channels; None if the samples contain their images.
        samples: samples of the dicts.
        plans: the channels of each sample's image.
        channels: the channels in ``planes``.
        planes: (n, h, w) int16, HU.
    """

    volume: str | None
    samples: list[dict]
    plans: tuple[tuple[Channel, ...], ...] = ()
    channels: tuple[Channel, ...] = ()
    planes: torch.Tensor | None = None


def cut_into_chunks(dicts: Sequence[dict], mapper: LesionDatasetMapper) -> list[Chunk]:
    """Split the dicts of a data set into chunks, in order.

    Consecutive dicts of one ``volume`` with ascending slice numbers are combined; others form a
    chunk of one.
    """
    chunks: list[Chunk] = []
    for run in _runs(dicts):
        if len(run) == 1:
            chunks.append(Chunk(tuple(run)))
            continue
        step = slice_step(mapper, run[0])
        numbers, reach = [_number(image) for image in run], _reach(mapper, step)
        size = _chunk_size(mapper, run[0], step)
        for first in range(0, len(run), size):
            oldest = numbers[first] - 2 * reach
            before = tuple(number for number in numbers[:first] if number >= oldest)
            chunks.append(Chunk(tuple(run[first : first + size]), before, True))
    return chunks


def slice_step(mapper: LesionDatasetMapper, image: dict) -> float:
    """Return the distance between neighboring channels of an image, in slices."""
    if image["spacing"] is None or not mapper.slice_interval:
        return 1.0
    return mapper.slice_interval / image["spacing"][2]


def _reach(mapper: LesionDatasetMapper, step: float) -> int:
    """Distance from a key slice to the last slice that its image uses."""
    return math.ceil(mapper.num_slices // 2 * step)


def _chunk_size(mapper: LesionDatasetMapper, image: dict, step: float) -> int:
    is_whole = abs(step - round(step)) < 1e-6  # each image then has one new channel
    num_channels = 1 if is_whole else mapper.num_slices
    size = 2 * num_channels * image["height"] * image["width"]
    return max(1, min(_MAX_IMAGES, _MAX_BYTES // size))


def _runs(dicts: Sequence[dict]) -> list[list[dict]]:
    """Group dicts that share slices, in order."""
    runs: list[list[dict]] = []
    for image in dicts:
        last = runs[-1][-1] if runs else None
        if last is not None and _is_next(last, image):
            runs[-1].append(image)
        else:
            runs.append([image])
    return runs


def _is_next(image: dict, other: dict) -> bool:
    return (
        "volume" in other
        and _volume(image) == _volume(other)
        and -1 < _number(image) < _number(other)
        and (other["spacing"] is None or all(map(is_spacing, other["spacing"])))
    )


def _number(image: dict) -> int:
    """The number in the slice's file name; -1 if there is none."""
    stem = os.path.splitext(os.path.basename(image["file_name"]))[0]
    return int(stem) if are_digits(stem) else -1


def _volume(image: dict) -> tuple:
    """Values that are equal for all slices of a volume."""
    folder, name = os.path.split(image["file_name"])
    keys = ("volume", "spacing", "slice_range", "height", "width")
    values = [image.get(key) for key in keys]
    values = [tuple(v) if isinstance(v, Sequence) else v for v in values]
    return (folder, len(name), *values)


class ChunkReader:
    """Reads chunks, each slice that a chunk needs once.

    Args:
        mapper: a mapper for inference, without masks.
        named: wraps a function of a dict, so that its errors name the image.

    Attributes:
        folder: folder through which the loader's processes share arrays; None to not share.
    """

    def __init__(
        self,
        mapper: LesionDatasetMapper,
        named: Callable[[Callable[[dict], object]], Callable[[dict], object]],
    ):
        self.mapper = mapper
        self.named = named
        self.folder: str | None = None

    def __call__(self, chunk: Chunk) -> ReadChunk:
        """Read a chunk.

        Raises:
            InputError: the files of an image are missing or damaged.
        """
        with shared_in(self.folder):
            if not chunk.is_of_volume:
                return ReadChunk(None, list(map(self.named(self.mapper.load), chunk.dicts)))
            work = _VolumeChunk(self.mapper, chunk)
            samples = list(map(self.named(work.add), chunk.dicts))
            return ReadChunk(work.folder, samples, tuple(work.plans), *work.planes())


class _VolumeChunk:
    """A chunk of a volume being read."""

    def __init__(self, mapper: LesionDatasetMapper, chunk: Chunk):
        self.mapper = mapper
        self.first = chunk.dicts[0]
        self.folder = chunk.folder
        self.format = format_of(self.folder)
        self.chunk = chunk
        self.plans: list[tuple[Channel, ...]] = []
        self._files: dict[int, str] | None = None
        self._made: dict[Channel, np.ndarray] = {}
        self._known: set[Channel] = set()
        self._slices: dict[int, np.ndarray] = {}
        self._maker: ChannelMaker | None = None

    def add(self, image: dict) -> dict:
        """Compute the new channels of an image; returns its sample without ``image``."""
        if self._maker is None:
            self._begin()
        sample = {key: value for key, value in image.items() if key not in _NOT_OF_MODELS}
        if self._maker.crop is not None:
            sample["crop"] = self._maker.crop
        plan = self._plan(_number(image))
        for channel in plan:
            if channel not in self._known:
                self._made[channel] = self._maker(channel, self._read)
                self._known.add(channel)
        oldest = min(lower for lower, _, _ in plan)  # for this image, and thus for later ones
        self._slices = {n: hu for n, hu in self._slices.items() if n >= oldest}
        self.plans.append(plan)
        return sample

    def _begin(self) -> None:
        first = self.first
        self._files = self.format.files(self.folder)
        for number in self.chunk.before:
            self._known.update(self._plan(number))
        crop = self._crop() if self.mapper.cut_borders else None
        self._maker = ChannelMaker(self.mapper, self._size, first["spacing"], crop)

    @property
    def _size(self) -> tuple[int, int]:
        return self.first["height"], self.first["width"]

    def _crop(self) -> tuple[int, int, int, int]:
        """The crop, computed by one process for all."""

        def find(allocate: Allocate) -> np.ndarray:
            crop = allocate((4,), np.int64)
            crop[:] = volume_crop(self.first)
            return crop

        kind = f"crop {self.first['slice_range']} {self.first['spacing']}"
        return tuple(shared_array(self.folder, kind, find).tolist())

    def _plan(self, number: int) -> tuple[Channel, ...]:
        first, last = self.first["slice_range"] or (0, math.inf)
        spacing, mapper = self.first["spacing"], self.mapper
        plan = plan_channels(
            number,
            lambda n: first <= n <= last and self._files.get(n) == self._path(n),
            num_slices=mapper.num_slices,
            interval=0.0 if spacing is None else mapper.slice_interval,
            spacing_z=1.0 if spacing is None else spacing[2],
            where=self._path(number),
        )
        return tuple(plan)

    def _path(self, number: int) -> str:
        """The path of a slice, in the folder of the first one."""
        stem, ending = os.path.splitext(os.path.basename(self.first["file_name"]))
        return os.path.join(self.folder, f"{number:0{len(stem)}d}{ending}")

    def _read(self, number: int) -> np.ndarray:
        """Read a slice, clipped to the window, and those that are decompressed with it."""
        if number not in self._slices:
            depth, read_several = self.format.depth, self.format.read_several
            if read_several is None:
                slices = {number: read_slice(self._path(number), self._size)}
            else:
                begin = number // depth * depth
                together = {n for n in range(begin, begin + depth) if n in self._files}
                slices = read_several(self.folder, sorted({number} | together))
                check_same_size(self._path(number), slices[number].shape, self._size)
            for hu in slices.values():
                clip_to_window(hu, self.mapper.hu_window)
            self._slices |= slices
        return self._slices[number]

    def planes(self) -> tuple[tuple[Channel, ...], torch.Tensor | None]:
        """The computed channels, and their pixels."""
        if not self._made:
            return (), None
        planes = torch.from_numpy(np.stack(list(self._made.values())))
        return tuple(self._made), planes
