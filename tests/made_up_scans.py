"""Small scans for tests, and DICOM files that are changed on the way to the disk."""

import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

from lesion_d2.scans import read_scan
from lesion_d2.scans.writing import write_dicom

import numpy as np
import pydicom
import pytest

SPACING = (0.7, 0.8, 2.5)
ORIGIN = (-100.5, -80.25, 40.0)
_WRITTEN: dict[bytes, dict[str, bytes]] = {}


def make_volume(shape=(7, 12, 16), seed: int = 0) -> np.ndarray:
    """(Z, H, W) int16, HU of all that CT has, the filling outside the field of view too."""
    volume = np.random.default_rng(seed).integers(-1024, 1500, shape).astype(np.int16)
    volume[:, 0] = -3024
    return volume


def write_series(
    folder: Path, volume: np.ndarray, spacing=SPACING, origin=ORIGIN, **options
) -> list[Path]:
    """What ``write_dicom`` writes; what it wrote before is copied, in a tenth of the time."""
    key = pickle.dumps((volume, spacing, origin, options))
    if key not in _WRITTEN:
        files = write_dicom(folder, volume, spacing, origin=origin, **options)
        _WRITTEN[key] = {file.name: file.read_bytes() for file in files}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _WRITTEN[key].items():
        (folder / name).write_bytes(content)
    return [folder / name for name in _WRITTEN[key]]


def change(files: Iterable[Path], edit: Callable[[pydicom.Dataset, int], None], **options) -> None:
    """Edit files in place: ``edit(dataset, index)``."""
    for index, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        edit(dataset, index)
        dataset.save_as(file, **options)


def set_values(**values) -> Callable[[pydicom.Dataset, int], None]:
    """An edit for :func:`change`; None deletes."""

    def edit(dataset: pydicom.Dataset, index: int) -> None:
        for keyword, value in values.items():
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value(index) if callable(value) else value)

    return edit


def message(file) -> str:
    """What a file is refused with: one line that begins with its path."""
    with pytest.raises(ValueError) as error:
        read_scan(file)
    text = str(error.value)
    assert text.startswith(f"{file}: ") and "\n" not in text
    return text
