"""A volume whose slices differ, and mappers of models that read it."""

from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.transforms.augmentation import ResizeCT

import numpy as np
from detectron2.data import transforms as T

SIZE = (40, 52)


def make_volume(depth: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A body in air that moves along z, and filling outside; (depth, *size) int16, HU."""
    rng = np.random.default_rng(0)
    volume = rng.integers(-1020, -900, (depth, *size))
    for index, hu in enumerate(volume):
        part = hu[6 + index % 5 : 30, 8 : 30 + index]
        part[:] = rng.integers(-200, 1500, part.shape)
        hu[:2] = -3024
    return volume.astype(np.int16)


def make_mapper(resize: T.Augmentation | None = None, **options) -> LesionDatasetMapper:
    """A mapper for inference; by default images are of 64 pixels."""
    return LesionDatasetMapper(False, augmentations=[resize or ResizeCT(64)], **options)
