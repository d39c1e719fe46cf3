"""A volume of random voxels, and how warps are tried on it."""

from lesion_d2.data.volumetric.warp import VolumeWarp

import numpy as np

SHAPE = (9, 24, 30)


def made_up_voxels(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Voxels of all HU from -1000 to 499."""
    return np.random.default_rng(0).integers(-1000, 500, shape).astype(np.int16)


def apply(warp: VolumeWarp, volume: np.ndarray, fill: int = -2000) -> np.ndarray:
    """The whole way: the part of the volume that is needed, and its warp."""
    ranges = warp.source_ranges(volume.shape)
    block = volume[tuple(slice(a, b) for a, b in ranges)]
    return warp.apply_image(block, [a for a, _ in ranges], volume.shape, fill)
