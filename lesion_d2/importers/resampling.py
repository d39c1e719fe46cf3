"""Imported volumes at another spacing."""

from dataclasses import replace

import numpy as np
from scipy import ndimage

from ..data.volume_set.form import Lesion, Volume, lesion_of_mask
from ..scans.limits import check_size
from ..structures.rle import decode_mask
from .case import ImportedVolume

_SLAB = 8  # slices
_EDGE = 1e-6  # of a voxel: what rounding may move a boundary by


def resample(imported: ImportedVolume, spacing: tuple[float, float, float]) -> ImportedVolume:
    """Bring a volume whose lesions have masks to a spacing.

    Voxels are interpolated linearly. So is the mask of each lesion by itself, and a voxel is of
    the lesion where that is at least 0.5. The outer edges of the first voxels stay in place; the
    number of voxels is the old extent over the new spacing, rounded.

    Args:
        imported: with spacing, origin and direction.
        spacing: x, y, z in mm.

    Returns:
        The volume, with a line for each lesion that no voxel is left of.

    Raises:
        ValueError: a lesion has no masks, or the new volume would be larger than any scan.
    """
    volume = imported.volume
    ratio = np.divide(spacing, volume.spacing)  # old voxels a new one, x, y, z
    shape = tuple(
        max(1, round(n / r)) for n, r in zip(volume.shape, ratio[::-1].tolist(), strict=True)
    )
    check_size(f"{volume.name} at {_told(spacing)} mm", shape)
    voxels = _resampled_voxels(imported.voxels, ratio[::-1], shape)
    first = (ratio - 1) / 2  # center of the new first voxel, in old ones
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
    """(Z, H, W) int16; a few slices at once, since they are floats on the way."""
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
    """Linear interpolation, (Z, H, W) float32, at new voxels ``start`` to ``start + shape``.

    Args:
        array: part of the old volume from its voxel ``offset`` on; beyond its sides the value is
            that of its nearest voxel.
        ratio: old voxels a new one, z, y, x.
    """
    place = (np.add(start, 0.5)) * ratio - 0.5 - offset
    return ndimage.affine_transform(
        array, ratio, place, output_shape=shape, order=1, mode="nearest", output=np.float32
    )


def _resampled_lesion(
    lesion: Lesion, volume: Volume, ratio: np.ndarray, shape: tuple[int, int, int]
) -> Lesion | None:
    """The lesion's mask is sampled where it can be 0.5 at all; None where it is nowhere."""
    if lesion.masks is None:
        raise ValueError(f"{volume.name}, lesion {lesion.id}: found no masks, expected some")
    x1, y1, z1, x2, y2, z2 = lesion.box
    low = np.ceil([z1, y1, x1]).astype(int)
    high = np.floor([z2, y2, x2]).astype(int) + 1
    # One voxel more on each side, but at the sides of the volume.
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
