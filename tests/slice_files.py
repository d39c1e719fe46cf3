"""Slices on the disk as DeepLesion has them: 16-bit PNG files of HU + 32768, by OpenCV."""

import os
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np


def write_slice(file: str | os.PathLike, hu: np.ndarray) -> Path:
    """Write one slice (H, W) in HU; its folder is made. Returns the path."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(os.fspath(file), (np.asarray(hu).astype(int) + 32768).astype(np.uint16))
    return file


def write_slices(folder: Path, slices: Mapping[int, np.ndarray] | np.ndarray) -> Path:
    """Write slices by their numbers, or those of a volume from 0, as ``003.png``; the folder."""
    numbered = slices.items() if isinstance(slices, Mapping) else enumerate(slices)
    for number, hu in numbered:
        write_slice(folder / f"{number:03d}.png", hu)
    return folder
