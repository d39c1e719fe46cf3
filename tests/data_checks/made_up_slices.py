"""Small slices of a body on a table, and data sets of them with faults planted."""

from collections.abc import Callable
from pathlib import Path

from lesion_d2.data_checks import DataReport

import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util
from slice_files import write_slice

SIZE = 64


def body(seed: int, *, size: int = SIZE) -> np.ndarray:
    """HU of a slice: air, a body with fat and noise, and its spine at the back."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    hu = np.full((size, size), -1000.0)
    hu[((x - 0.5) / 0.42) ** 2 + ((y - 0.5) / 0.34) ** 2 < 1] = -90
    hu[((x - 0.5) / 0.38) ** 2 + ((y - 0.5) / 0.30) ** 2 < 1] = 45
    hu[(np.abs(x - 0.5) < 0.09) & (np.abs(y - 0.7) < 0.08)] = 600
    return np.rint(hu + rng.normal(0, 10, hu.shape)).astype(np.int16)


def annotation(*box: float, category: int = 0, **more: object) -> dict:
    """A lesion's."""
    return {
        "bbox": list(box),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category,
        **more,
    }


class MadeUpSet:
    """A data set of slices with a lesion each; ``images`` are its dicts, to be spoiled by a test.

    Args:
        folder: for its files.
        split: begins the names of its images.
        count: of images, each of a patient of its own.
        first: number of the first patient.
        classes: number of classes, which the lesions take in turn.
    """

    def __init__(self, folder: Path, split: str, count: int, first: int, classes: int = 1):
        self.folder = folder
        self.images = [
            self._image(f"{split}_{i}", first + i, annotation(18, 22, 30, 35, category=i % classes))
            for i in range(count)
        ]

    def _image(self, name: str, patient: int, lesion: dict) -> dict:
        return {
            "file_name": str(write_slice(self.folder / name / "1.png", body(patient))),
            "image_id": name,
            "height": SIZE,
            "width": SIZE,
            "spacing": (5.0, 5.0, 5.0),
            "slice_range": (1, 1),
            "slice_index": 1,
            "patient": patient,
            "annotations": [lesion],
        }

    def hu(self, index: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Change the pixels of an image."""
        patient = self.images[index]["patient"]
        write_slice(Path(self.images[index]["file_name"]), change(body(patient)))


def found(report: DataReport) -> dict[str, tuple[str, ...]]:
    """Kind -> places."""
    return {fault.kind: fault.places for fault in report.faults}


def rle(mask: np.ndarray) -> dict:
    """COCO's run lengths."""
    encoded = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def square(x1: int, y1: int, x2: int, y2: int, size: int = SIZE) -> np.ndarray:
    """A mask of whole pixels, from the first to the last."""
    mask = np.zeros((size, size), bool)
    mask[y1 : y2 + 1, x1 : x2 + 1] = True
    return mask
