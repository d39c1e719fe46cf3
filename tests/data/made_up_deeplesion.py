"""Tables of DeepLesion and the first bytes of its slices."""

import csv
import re
import struct
from pathlib import Path

from lesion_d2.data.deeplesion.key_slices import load_deeplesion

import numpy as np


def good_row(number: int = 1, slice_index: int = 10, **changes: str) -> dict[str, str]:
    row = {
        "File_name": f"{number:06d}_02_03_{slice_index:03d}.png",
        "Patient_index": f"{number}",
        "Study_index": "2",
        "Series_ID": "3",
        "Key_slice_index": f"{slice_index}",
        "Measurement_coordinates": "100.5, 120, 130.25, 140, 110, 135, 120, 125",
        "Bounding_boxes": "95.5, 115, 135.25, 145",
        "Lesion_diameters_Pixel_": "35.8478, 14.1421",
        "Normalized_lesion_location": "0.1, 0.2, 0.3",
        "Coarse_lesion_type": "3",
        "Possibly_noisy": "0",
        "Slice_range": "5, 17",
        "Spacing_mm_px_": "0.488281, 0.488281, 5",
        "Image_size": "512, 256",
        "DICOM_windows": "-175, 275",
        "Patient_gender": "F",
        "Patient_age": "NaN",
        "Train_Val_Test": "1",
    }
    assert set(changes) <= set(row)
    return row | changes


def write_dataset(root: Path, rows: list[dict[str, str]], without=()) -> Path:
    """DL_info.csv and a file's header for each key slice that is not in ``without``."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "Images_png").mkdir(exist_ok=True)
    with open(root / "DL_info.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    size_of = {row["File_name"]: row["Image_size"] for row in rows}
    for name in size_of.keys() - set(without):
        header = png_header(size_of[name])
        folder, _, name = name.rpartition("_")
        if folder:
            (root / "Images_png" / folder).mkdir(exist_ok=True)
            (root / "Images_png" / folder / name).write_bytes(header)
    return root


def png_header(size: str) -> bytes:
    """The first bytes of a 16-bit grayscale PNG of a size as DL_info.csv has it."""
    width, height = (
        map(int, size.split(",")) if re.fullmatch(r"[1-9]\d*, \d+", size) else (512, 256)
    )
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBB", 13, b"IHDR", width, height, 16, 0)


def load(root: Path, split: str | None = "train", **options) -> list[dict]:
    return load_deeplesion(root / "DL_info.csv", root / "Images_png", split, **options)


def made_up_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows with up to three lesions an image, in three splits, some noisy, some at the border."""
    rng = np.random.default_rng(seed)

    def text(values):
        return ", ".join(f"{value:.6g}" for value in values)

    rows = []
    while len(rows) < count:
        image = len(rows)
        size = int(rng.choice([512, 768, 1024]))
        for _ in range(rng.integers(1, 4)):
            ends = rng.uniform(0, 60, (4, 2)) + rng.uniform(0, size - 60, 2)
            box = np.concatenate([ends.min(axis=0) - 5, ends.max(axis=0) + 5])
            rows.append(
                good_row(
                    image // 5 + 1,
                    image % 5 + 20,
                    Measurement_coordinates=text(ends.ravel()),
                    Bounding_boxes=text(box),
                    Lesion_diameters_Pixel_=text(rng.uniform(5, 60, 2)),
                    Coarse_lesion_type=f"{rng.choice([-1, 1, 2, 3, 4, 5, 6, 7, 8])}",
                    Possibly_noisy=f"{int(rng.random() < 0.05)}",
                    Spacing_mm_px_=text([*[rng.uniform(0.3, 1)] * 2, rng.choice([1, 2.5, 5])]),
                    Image_size=f"{size}, {size}",
                    Train_Val_Test=f"{image % 3 + 1}",
                )
            )
    return rows[:count]
