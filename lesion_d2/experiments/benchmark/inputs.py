"""Synthetic inputs of the benchmarks: phantoms, boxes, an annotation file and batches."""

import contextlib
import csv
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from lesion_d2.data.deeplesion.csv_rows import CSV_COLUMNS
from lesion_d2.data.deeplesion.key_slices import register_deeplesion
from lesion_d2.data.phantoms.phantom import write_phantom

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Boxes, Instances

# Phantoms: a few slices of DeepLesion's size for timing, a few that a CPU can train on, many
# lesions to average Dice over, and series as long as those of the preset "columns".
LARGE = {"num_patients": 8, "size": 512}
FEW = {"num_patients": 8, "size": 256}
SMALL = {"num_patients": 60, "size": 256}
STACKS = {"num_patients": 5, "size": 256, "extent_mm": 14.0}


# The first bytes of a PNG of 512 x 512 pixels, 16-bit grayscale.
_HEADER = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBB", 13, b"IHDR", 512, 512, 16, 0)


def prepare_phantom(folder: Path, *, num_patients: int, size: int, extent_mm: float = 2.0) -> Path:
    """The folder of a phantom data set, which is written on first use."""
    root = folder / f"phantom_{num_patients}_{size}_{extent_mm:g}"
    write_phantom(root, num_patients=num_patients, size=size, extent_mm=extent_mm)
    return root


@contextlib.contextmanager
def registered(
    root: Path,
    register: Callable[[str, str, str | None], None] = register_deeplesion,
    split: str | None = None,
) -> Iterator[str]:
    """Context manager that registers a data set folder within the block, and gives its name.

    Args:
        root: of the data set.
        register: function that registers a name with a root and a split.
        split: "train", "val", "test", or None for all.
    """
    name = f"benchmark_{root.name}"
    register(name, str(root), split)
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def random_boxes(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """(*shape, 4) boxes of 10 to 60 px in an image of 512 x 512."""
    corner = rng.uniform(0, 450, (*shape, 2))
    return np.concatenate([corner, corner + rng.uniform(10, 60, (*shape, 2))], axis=-1)


def random_volume_boxes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """(*shape, 6) boxes of 6 to 40 px on 2 to 12 slices, in a volume of 300 slices of 320 x 320."""
    low = rng.uniform(0, (280, 280, 288), (*shape, 3))
    return np.concatenate([low, low + rng.uniform((6, 6, 2), (40, 40, 12), (*shape, 3))], axis=-1)


def write_rows(root: Path, count: int) -> None:
    """Write ``DL_info.csv`` with ``count`` synthetic rows, and the headers of their files."""
    rng = np.random.default_rng(0)
    root.mkdir()
    with open(root / "DL_info.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for number in range(count):
            patient, key = number // 8 + 1, number % 8 + 20
            folder = f"{patient:06d}_01_01"
            row = [f"{folder}_{key:03d}.png", patient, 1, 1, key, *_made_up_lists(rng)]
            row += [number % 8 + 1, 0, "10, 40", "0.8, 0.8, 5", "512, 512", "-175, 275", "F", 60]
            writer.writerow([*row, _split_of(number)])
            path = root / "Images_png" / folder / f"{key:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_HEADER)


def _split_of(number: int) -> int:
    """The split of a row: of 20 rows, 14 train, 3 val and 3 test, as in DeepLesion."""
    return 1 if number % 20 < 14 else 2 + number % 2


def _made_up_lists(rng: np.random.Generator) -> list[str]:
    """RECIST end points, box, diameters and position of an upright lesion, as in the file."""
    x, y = rng.uniform(50, 400, 2)
    short, long = np.sort(rng.uniform(5, 20, 2))  # half diameters
    ends = [x, y - long, x, y + long, x - short, y, x + short, y]
    box = [x - short - 5, y - long - 5, x + short + 5, y + long + 5]
    lists = [ends, box, [2 * long, 2 * short], [x / 512, y / 512, 0.5]]
    return [", ".join(f"{value:.6g}" for value in values) for values in lists]


def random_batch(cfg: CfgNode) -> list[dict]:
    """A training batch of the config's size, of noise with two lesions per image."""
    rng, size = np.random.default_rng(0), cfg.INPUT.CT.IMAGE_SIZE
    batch = []
    for _ in range(cfg.SOLVER.IMS_PER_BATCH):
        instances, masks = Instances((size, size)), torch.zeros(2, size, size, dtype=torch.bool)
        boxes = torch.as_tensor(random_boxes(rng, (1, 2))[0] * size / 512, dtype=torch.float32)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        instances.gt_boxes, instances.gt_masks = Boxes(boxes), BitMasks(masks)
        instances.gt_classes = torch.zeros(2, dtype=torch.int64)
        image = rng.uniform(0, 255, (cfg.INPUT.CT.NUM_SLICES, size, size))
        batch.append({"image": torch.as_tensor(image, dtype=torch.float32), "instances": instances})
    return batch
