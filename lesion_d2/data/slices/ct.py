"""CT slices: files to Hounsfield units (HU), stacks of neighbors, and model input."""

import math
import os
from collections.abc import Callable
from functools import partial
from typing import NotRequired, TypedDict, Unpack

import numpy as np
import torch

from ...scans.png import check_same_size
from ...structures.slice_geometry import EXPECTED_SPACING, interpolate_slices, is_spacing
from ...utils.values import are_digits
from .slice_formats import format_of

_INT16 = np.iinfo(np.int16)

#: How a channel is interpolated: the numbers of two slices, and the weight of the second one. A
#: channel that is a slice has its number twice, and weight 0.
Channel = tuple[int, int, float]
#: A function of slices by number, (H, W) int16 in HU, and the key slice's number; it may modify the
#: slices in place.
SliceChange = Callable[[dict[int, np.ndarray], int], None]


def read_slice(file: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read one CT slice losslessly.

    Args:
        file: a 16-bit grayscale PNG in DeepLesion's coding, HU = value - 32768; or one slice of a
            NIfTI file (see :mod:`lesion_d2.data.slices.nifti`) or of a volume's ``.b2nd`` file (see
            :mod:`lesion_d2.data.volume_set.slices`) or of prepared slices (see
            :mod:`lesion_d2.data.prepared.slices`), ``<file>/<slice number>.png``; or of another
            picture or volume, ``<file>#<coding>/<slice number>.png`` (see
            :mod:`lesion_d2.data.slices.pictures`).
        size: required height and width; None for any.

    Returns:
        H x W int16, in HU. Values are not clipped; outside the field of view they can be -3024.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a PNG, has another bit depth, color type or size, or is
            truncated or damaged.
    """
    return format_of(os.path.dirname(file)).read(file, size)


def slice_size(file: str | os.PathLike) -> tuple[int, int]:
    """Return height and width of a slice in pixels, from its file's header.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_slice`.
    """
    return format_of(os.path.dirname(file)).size(file)


class StackOptions(TypedDict):
    """Keywords of :func:`slice_stack`."""

    num_slices: int
    interval: float
    spacing_z: float | None
    slice_range: NotRequired[tuple[int, int] | None]
    window: NotRequired[tuple[float, float] | None]
    size: NotRequired[tuple[int, int] | None]


def slice_stack(
    file_name: str | os.PathLike,
    **options: Unpack[StackOptions],
) -> np.ndarray:
    """Read a key slice with its neighbors at a given distance (Zlocha et al., section 3.1).

    Each channel is interpolated linearly between the two slices next to its offset from the key
    slice. A slice that is missing or outside ``slice_range`` is replaced by the nearest existing
    one towards the key slice. Every file is read once.

    Args:
        file_name: the key slice, ``.../<slice number>.png`` in a folder or a volume's file; its
            neighbors are in the same place.
        num_slices: C, odd.
        interval: distance between channels, mm; 0 for the neighboring slices, without
            interpolation.
        spacing_z: distance between the files' slices, mm. If None (unknown), channels are
            neighboring slices for any interval.
        slice_range: first and last slice number of the series, if known.
        window: (low, high) HU that every slice is clipped to BEFORE interpolation, so that the
            padding outside the field of view (-3024) does not leak into its neighbors.
        size: required height and width of all slices; None for the key slice's.

    Returns:
        C x H x W int16, in HU rounded to the nearest integer: channels in slice order, the key
        slice in the middle.

    Raises:
        FileNotFoundError: the key slice does not exist.
        ValueError: C is even; interval is negative, or spacing_z not positive; a file name is not
            a slice number; a file is damaged (see :func:`read_slice`); slices differ in size.
    """
    return stack_and_key_slice(file_name, **options)[0]


def stack_and_key_slice(
    file_name: str | os.PathLike,
    *,
    num_slices: int,
    interval: float,
    spacing_z: float | None,
    slice_range: tuple[int, int] | None = None,
    window: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
    change: SliceChange | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Like :func:`slice_stack`; also returns the key slice, H x W, not clipped to the window.

    ``change`` is called with all slices right after they were read.
    """
    key, path_of = _locate(file_name)
    if spacing_z is None:
        interval, spacing_z = 0.0, 1.0
    first, last = slice_range if slice_range is not None else (0, math.inf)
    exists = format_of(os.path.dirname(file_name)).exists
    plan = plan_channels(
        key,
        lambda index: first <= index <= last and exists(path_of(index)),
        num_slices=num_slices,
        interval=interval,
        spacing_z=spacing_z,
        where=file_name,
    )
    slices = _read_slices(path_of, key, {index for *pair, _ in plan for index in pair}, size)
    if change is not None:
        change(slices, key)
    key_slice = slices[key]
    if window is not None:
        slices[key] = key_slice.copy()
    for hu in slices.values():
        clip_to_window(hu, window)
    stack = np.empty((num_slices, *key_slice.shape), np.int16)
    for channel, (lower, upper, fraction) in zip(stack, plan, strict=True):
        interpolate_slices(slices[lower], slices[upper], fraction, channel)
    return stack, key_slice


def plan_channels(
    key: int,
    exists: Callable[[int], bool],
    *,
    num_slices: int,
    interval: float,
    spacing_z: float,
    where: str | os.PathLike,
) -> list[Channel]:
    """Determine how each channel of an image is interpolated, see :func:`slice_stack`.

    Args:
        key: number of the key slice.
        exists: returns whether a slice number exists.
        num_slices, interval, spacing_z: see :func:`slice_stack`.
        where: name of the key slice, for error messages.

    Raises:
        ValueError: C is even; interval is negative, or spacing_z not positive.
    """
    _check_geometry(where, num_slices, interval, spacing_z)
    existing = partial(_existing, key=key, exists=exists)
    half = num_slices // 2
    step = interval / spacing_z if interval else 1
    return [_neighbors(key, number * step, existing) for number in range(-half, half + 1)]


def clip_to_window(hu: np.ndarray, window: tuple[float, float] | None) -> None:
    """Clip int16 HU in place to a window, rounded outwards; hu_to_pixels clips the rest."""
    if window is not None:
        low, high = _check_window(window)
        low, high = max(math.floor(low), _INT16.min), min(math.ceil(high), _INT16.max)
        np.clip(hu, low, high, out=hu)


def hu_to_pixels(
    hu: np.ndarray | torch.Tensor, window: tuple[float, float]
) -> np.ndarray | torch.Tensor:
    """Map a HU window linearly to Detectron2's 0..255 scale; values outside become 0 or 255.

    Args:
        hu: any shape, HU; a NumPy array or a tensor on any device. Not modified.
        window: (low, high), the HU mapped to 0 and 255.

    Returns:
        float32 array or tensor of the same shape and device.

    Raises:
        ValueError: low is not smaller than high.
    """
    low, high = _check_window(window)
    scale = 255.0 / (high - low)
    if isinstance(hu, torch.Tensor):
        return hu.to(torch.float32, copy=True).sub_(low).mul_(scale).clamp_(0.0, 255.0)
    pixels = hu.astype(np.float32)
    pixels -= np.float32(low)
    pixels *= np.float32(scale)
    return np.clip(pixels, 0.0, 255.0, out=pixels)


def _check_geometry(file_name, num_slices, interval, spacing_z) -> None:
    if num_slices < 1 or num_slices % 2 == 0:
        raise ValueError(f"{file_name}: found num_slices {num_slices}, expected an odd number")
    if not (interval >= 0 and math.isfinite(interval)):
        raise ValueError(f"{file_name}: found slice interval {interval} mm, expected 0 or more")
    if not is_spacing(spacing_z):
        raise ValueError(
            f"{file_name}: found slice spacing {spacing_z} mm, expected {EXPECTED_SPACING}"
        )


def _check_window(window: tuple[float, float]) -> tuple[float, float]:
    low, high = window
    if not low < high:
        raise ValueError(f"HU window: found ({low}, {high}), expected low < high")
    return low, high


def _locate(file_name: str | os.PathLike):
    """The key slice's number, and a function from slice number to path."""
    folder, name = os.path.split(file_name)
    stem, extension = os.path.splitext(name)
    if not are_digits(stem):
        raise ValueError(f"{file_name}: found the name {name!r}, expected <slice number>.png")
    digits = len(stem)
    return int(stem), lambda index: os.path.join(folder, f"{index:0{digits}d}{extension}")


def _neighbors(key: int, offset: float, existing: Callable[[int], int]) -> Channel:
    """The two slices around ``offset`` slices from the key slice, and the second one's weight."""
    nearest = round(offset)
    if abs(offset - nearest) < 1e-6:  # rounding error: 0.6 / 0.2 is not exactly an integer
        index = existing(key + nearest)
        return index, index, 0.0
    lower = existing(key + math.floor(offset))
    upper = existing(key + math.ceil(offset))
    return lower, upper, offset - math.floor(offset) if lower != upper else 0.0


def _existing(index: int, *, key: int, exists: Callable[[int], bool]) -> int:
    """The first existing slice from ``index`` towards the key slice."""
    step = 1 if index < key else -1
    while index != key and not exists(index):
        index += step
    return index


def _read_slices(
    path_of, key: int, indices: set[int], size: tuple[int, int] | None
) -> dict[int, np.ndarray]:
    """HU slices by number, including the key slice; all of the same size."""
    numbers, folder = sorted(indices | {key}), os.path.dirname(path_of(key))
    read_several = format_of(folder).read_several
    if read_several is not None:
        slices = read_several(folder, numbers)
        for index, hu in slices.items():
            check_same_size(path_of(index), hu.shape, size or slices[key].shape)
    else:
        size = size or slice_size(path_of(key))
        slices = {index: read_slice(path_of(index), size) for index in numbers}
    return slices
