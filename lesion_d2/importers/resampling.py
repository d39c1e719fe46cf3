"""Resampling of imported volumes to another spacing."""

from dataclasses import replace

import numpy as np
from scipy import ndimage

from ..data.volume_set.form import Lesion, Volume, lesion_of_mask
from ..scans.limits import check_size
from ..structures.rle import decode_mask
from .case import ImportedVolume

_SLAB = 8  # slices
_EDGE = 1e-6  # tolerance of the mask threshold for rounding errors


def resample(imported: ImportedVolume, spacing: tuple[float, float, float]) -> ImportedVolume:
    """Resample a volume and the masks of its lesions.

    Voxels are interpolated linearly. Each lesion's mask is interpolated on its own, and thresholded
    at 0.5. The outer edges of the first voxels stay in place. The number of voxels is the extent of
    the volume divided by the new spacing, rounded.

    Args:
        imported: a volume with spacing, origin and direction, whose lesions have masks.
        spacing: x, y, z in mm.

    Returns:
        The resampled volume. ``left_out`` has one line for each lesion without a voxel left.

    Raises:
        ValueError: a lesion has no masks, or the new volume exceeds the size limit of scans.
    """
    volume = imported.volume
    ratio = np.divide(spacing, volume.spacing)  # old voxels per new voxel, x, y, z
    shape = tuple(
        max(1, round(n / r)) for n, r in zip(volume.shape, ratio[::-1].tolist(), strict=True)
    )
    check_size(f"{volume.name} at {_told(spacing)} mm", shape)
    voxels = _resampled_voxels(imported.voxels, ratio[::-1], shape)
    first = (ratio - 1) / 2  # center of the first new voxel, in old voxels
    lesions, left_out = [], list(imported.left_out)
    for lesion in volume.lesions:
        resampled = _resampled_lesion(lesion, volume, ratio[::-1], shape)
        if resampled is None:
            left_out.append(
                f"{volume.name}, lesion {lesion.id}: no voxel of it is left at a spacing of "
                f"{_told(spacing)} mm"
            )
        else:
            lesions.append(replace(resampled, id=len(lesions) + 1))
    volume = replace(
        volume,
        shape=shape,
        spacing=tuple(map(float, spacing)),
        origin=tuple(volume.to_patient(first[None])[0].tolist()),
        lesions=tuple(lesions),
    )
    return ImportedVolume(voxels, volume, tuple(left_out))


def _told(spacing: tuple[float, float, float]) -> str:
    return " x ".join(f"{number:g}" for number in spacing)


def _resampled_voxels(
    voxels: np.ndarray, ratio: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    """(Z, H, W) int16; a few slices at a time, as interpolation takes floats."""
    resampled = np.empty(shape, np.int16)
    for start in range(0, shape[0], _SLAB):
        end = min(start + _SLAB, shape[0])
        first, last = ((n + 0.5) * ratio[0] - 0.5 for n in (start, end - 1))
        low = min(max(int(np.floor(first)), 0), len(voxels) - 1)
        part = voxels[low : int(np.floor(last)) + 2].astype(np.float32)
        size = (end - start, *shape[1:])
        resampled[start:end] = np.rint(_sample(part, ratio, (start, 0, 0), size, (low, 0, 0)))
    return resampled


def _sample(
    array: np.ndarray,
    ratio: np.ndarray,
    start: tuple[int, ...],
    shape: tuple[int, ...],
    offset: tuple[int, ...],
) -> np.ndarray:
    """Interpolate new voxels ``start`` to ``start + shape`` linearly, (Z, H, W) float32.

    Args:
        array: part of the old volume, starting at voxel ``offset``; beyond its borders, the
            nearest voxel is used.
        ratio: old voxels per new voxel, z, y, x.
    """
    place = (np.add(start, 0.5)) * ratio - 0.5 - offset
    return ndimage.affine_transform(
        array, ratio, place, output_shape=shape, order=1, mode="nearest", output=np.float32
    )


def _resampled_lesion(
    lesion: Lesion, volume: Volume, ratio: np.ndarray, shape: tuple[int, int, int]
) -> Lesion | None:
    """Resample a lesion's mask around its box; None if no voxel reaches 0.5."""
    if lesion.masks is None:
        raise ValueError(
            f"{volume.name}, lesion {lesion.id}: found no masks, expected one per slice"
        )
    x1, y1, z1, x2, y2, z2 = lesion.box
    low = np.ceil([z1, y1, x1]).astype(int)
    high = np.floor([z2, y2, x2]).astype(int) + 1
    # Plus one voxel on each side, within the volume.
    first = np.maximum(low - 1, 0)
    last = np.minimum(high + 1, volume.shape)
    mask = np.zeros(last - first, np.float32)
    for number, counts in lesion.masks.items():
        whole = decode_mask({"size": volume.shape[1:], "counts": counts})
        mask[number - first[0]] = whole[first[1] : last[1], first[2] : last[2]]
    start = np.maximum(np.floor(first / ratio).astype(int) - 1, 0)
    end = np.minimum(np.ceil(last / ratio).astype(int) + 1, shape)
    sampled = _sample(mask, ratio, tuple(start), tuple(end - start), tuple(first)) >= 0.5 - _EDGE
    if not sampled.any():
        return None
    others = {key: getattr(lesion, key) for key in ("diameters_mm", "ignore", "attributes")}
    return lesion_of_mask(
        lesion.id, lesion.category, sampled, offset=start.tolist(), shape=shape, **others
    )
