"""Reads blocks of volumes, as on disk or resampled to a model's spacing."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

import numpy as np
import torch

from ...structures.slice_geometry import EXPECTED_SPACING, is_spacing
from ..slices.ct import clip_to_window, hu_to_pixels, read_slice
from ..slices.slice_formats import format_of

#: HU outside a volume.
AIR = -1024
# Cached slices per process, for formats that are read slice by slice: 67 MB at 512 x 512.
_MAX_SLICES = 128

#: Depth, height, width.
_Triple = tuple[int, int, int]


def array_record(
    voxels: np.ndarray, spacing: Sequence[float] | None, image_id: str = "volume"
) -> dict:
    """Make the record of a volume in memory, such as a scan.

    Args:
        voxels: (D, H, W) int16, HU.
        spacing: x, y, z in mm; None if unknown.
        image_id: its name, used in messages.

    Returns:
        A record as in :func:`~lesion_d2.data.volumetric.records.volume_records`, with ``voxels``
        instead of ``files``.

    Raises:
        ValueError: the voxels have another type or shape.
    """
    if voxels.ndim != 3 or voxels.dtype != np.int16:
        raise ValueError(
            f"{image_id}: found voxels {voxels.dtype} of shape {voxels.shape}, expected int16 of "
            "slices x height x width"
        )
    return {
        "image_id": image_id,
        "volume": image_id,
        "patient": image_id,
        "first_slice": 0,
        "shape": tuple(map(int, voxels.shape)),
        "spacing": None if spacing is None else tuple(map(float, spacing)),
        "voxels": voxels,
        "annotations": [],
    }


def read_block(
    record: Mapping, start: Sequence[int], size: Sequence[int], fill: int = AIR
) -> np.ndarray:
    """Read a block of a volume as on disk, in HU.

    Of a ``.b2nd`` file, only the blocks that the request intersects are decompressed; of a folder,
    only those slices are read. NIfTI files are read completely, and the last four are cached: for
    training, import them as a volume set.

    Args:
        record: see :func:`~lesion_d2.data.volumetric.records.volume_records`.
        start: z, y, x of the first voxel in the run; may be outside.
        size: depth, height, width of the block.
        fill: HU of voxels outside the run.

    Returns:
        (d, h, w) int16, a copy.

    Raises:
        FileNotFoundError: a slice is missing.
        ValueError: a file is damaged, or the size of a slice differs from the record's.
    """
    read = partial(_read_inside, record)
    return _read_padded(read, start, size, record["shape"], fill)


def _read_padded(
    read: Callable[[list[tuple[int, int]]], np.ndarray],
    start: Sequence[int],
    size: Sequence[int],
    shape: Sequence[int],
    fill: int,
) -> np.ndarray:
    """(d, h, w) int16, padded; ``read`` returns the part inside the volume, if any.

    Its argument is the first voxel and the end (exclusive) along each axis.
    """
    ranges = [
        (max(first, 0), min(first + side, length))
        for first, side, length in zip(start, size, shape, strict=True)
    ]
    if any(first >= end for first, end in ranges):
        return np.full(tuple(size), fill, np.int16)
    inside = read(ranges)
    if inside.shape == tuple(size):
        return inside
    block = np.full(tuple(size), fill, np.int16)
    place = tuple(slice(a - s, b - s) for (a, b), s in zip(ranges, start, strict=True))
    block[place] = inside
    return block


def _read_inside(record: Mapping, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    (z0, z1), (y0, y1), (x0, x1) = ranges
    if "voxels" in record:
        return record["voxels"][z0:z1, y0:y1, x0:x1].copy()
    files = record["files"][z0:z1]
    block = format_of(os.path.dirname(files[0])).read_block
    if block is not None:
        return block(files, (y0, y1), (x0, x1))
    out = np.empty((z1 - z0, y1 - y0, x1 - x0), np.int16)
    for section, file in zip(out, files, strict=True):
        changed = os.path.getmtime(file) if os.path.isfile(file) else 0.0
        hu = _read_slice(file, tuple(record["shape"][1:]), changed)
        section[:] = hu[y0:y1, x0:x1]
    return out


@lru_cache(_MAX_SLICES)
def _read_slice(file: str, size: tuple[int, int], changed: float) -> np.ndarray:
    """Read a slice; cached, as neighboring patches and tiles share slices."""
    return read_slice(file, size)


class ResampledVolume:
    """A volume at a model's spacing, with blocks that are read and resampled on demand.

    Both grids have the same outer edges: with r source voxels per voxel of the model, its voxel i
    covers the source from i r to (i + 1) r. Interpolation is linear along each axis, between voxel
    centers; the outermost half voxel repeats the outermost voxels. There is no smoothing before
    downsampling, as in the published code of Jaeger et al.

    Blocks are bitwise equal to the same part of the volume read at once.

    Args:
        record: see :func:`~lesion_d2.data.volumetric.records.volume_records`.
        spacing: x, y, z in mm of the model's voxels; 0 keeps the spacing of an axis.
        hu_window: (low, high) HU that voxels are clipped to before interpolation, so that the
            padding outside the field of view (-3024) does not leak into its neighbors; low is the
            value outside the volume.

    Attributes:
        shape: (D, H, W) at the model's spacing, at least one voxel along each axis.
        source_shape: (D, H, W) of the run of slices.

    Raises:
        ValueError: a spacing is required, and the record has none or an invalid one.

    Example:
        >>> volume = ResampledVolume(record, (0.7, 0.7, 1.25), (-1024.0, 1050.0))
        >>> volume.read((0, 0, 0), (64, 128, 128)).shape
        (64, 128, 128)
    """

    def __init__(
        self,
        record: Mapping,
        spacing: Sequence[float] = (0.0, 0.0, 0.0),
        hu_window: tuple[float, float] = (AIR, 1050.0),
    ):
        self.record = record
        self.hu_window = tuple(hu_window)
        self.fill = math.floor(hu_window[0])
        self.source_shape: _Triple = tuple(record["shape"])
        self.shape: _Triple = model_shape(record, spacing)

    @property
    def ratios(self) -> tuple[float, float, float]:
        """Source voxels per voxel of the model, along z, y, x."""
        return tuple(s / n for s, n in zip(self.source_shape, self.shape, strict=True))

    def read(self, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """Read a block.

        Args:
            start: z, y, x of its first voxel at the model's spacing; may be outside.
            size: depth, height, width.

        Returns:
            (d, h, w) int16 in HU, clipped to the window; its low end outside the volume.

        Raises:
            FileNotFoundError, ValueError: see :func:`read_block`.
        """
        return _read_padded(self._resample, start, size, self.shape, self.fill)

    def _resample(self, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
        """Resample a block inside the volume, (d, h, w) int16."""
        axes = [
            _linear(first, end, length, source)
            for (first, end), length, source in zip(
                ranges, self.shape, self.source_shape, strict=True
            )
        ]
        firsts = [int(lower[0]) for lower, _, _ in axes]
        ends = [int(upper[-1]) + 1 for _, upper, _ in axes]
        sizes = [end - first for first, end in zip(firsts, ends, strict=True)]
        source = read_block(self.record, firsts, sizes, self.fill)
        clip_to_window(source, self.hu_window)
        for axis, (lower, upper, weights) in enumerate(axes):
            source = _interpolate(source, axis, lower - firsts[axis], upper - firsts[axis], weights)
        return source if source.dtype == np.int16 else np.rint(source).astype(np.int16)

    def load(
        self, start: Sequence[int], size: Sequence[int], device: str | torch.device = "cpu"
    ) -> torch.Tensor:
        """Read a block as model input.

        Args:
            start, size: see :meth:`read`.
            device: device of the result.

        Returns:
            (d, h, w) float32 on the 0..255 scale of the window.
        """
        block = torch.from_numpy(self.read(start, size)).to(device)
        return hu_to_pixels(block, self.hu_window)

    def to_source(self, boxes: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
        """Map boxes (n, 6) X1Y1Z1X2Y2Z2 in the model's voxels to the run's."""
        return (boxes + 0.5) * self._factors(boxes) - 0.5

    def from_source(self, boxes: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
        """Map boxes (n, 6) X1Y1Z1X2Y2Z2 in the run's voxels to the model's."""
        return (boxes + 0.5) / self._factors(boxes) - 0.5

    def _factors(self, boxes: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
        factors = self.ratios[::-1] * 2
        return boxes.new_tensor(factors) if isinstance(boxes, torch.Tensor) else np.array(factors)


def model_shape(record: Mapping, spacing: Sequence[float]) -> _Triple:
    """Return depth, height and width of a volume at a spacing, see :class:`ResampledVolume`.

    Args:
        record: with ``shape``, ``spacing`` and ``image_id``.
        spacing: x, y, z in mm; 0 keeps the spacing of an axis.

    Raises:
        ValueError: a spacing is required, and the record has none or an invalid one.
    """
    if not any(spacing):
        return tuple(record["shape"])
    known = record["spacing"]
    if known is None or not all(is_spacing(s) for s in known):
        raise ValueError(
            f"volume {record['image_id']}: found spacing {known}, expected x, y and z, each "
            f"{EXPECTED_SPACING} (INPUT.VOLUME.SPACING is {tuple(spacing)})"
        )
    sides = zip(record["shape"], known[::-1], tuple(spacing)[::-1], strict=True)
    return tuple(max(1, round(n * of / to)) if to else n for n, of, to in sides)


def _linear(
    first: int, end: int, length: int, source: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interpolation of voxels first..end - 1 of an axis: two source voxels, weight of the second.

    They depend only on the voxel, not on the start of a block.
    """
    position = (np.arange(first, end) + 0.5) * (source / length) - 0.5
    position = position.clip(0, source - 1)
    lower = np.floor(position).astype(int)
    weights = (position - lower).astype(np.float32)
    return lower, np.minimum(lower + (weights > 0), source - 1), weights


def _interpolate(
    block: np.ndarray, axis: int, lower: np.ndarray, upper: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    if not weights.any():
        # Also voxels that a smaller grid skips.
        is_whole = len(lower) == block.shape[axis]
        return block if is_whole else block.take(lower, axis)
    block = block.astype(np.float32, copy=False)
    shape = [1] * block.ndim
    shape[axis] = len(weights)
    out, upper_part = block.take(lower, axis), block.take(upper, axis)
    upper_part -= out
    upper_part *= weights.reshape(shape)
    out += upper_part
    return out
