"""Series of slices and tables as DeepLesion has them."""

from pathlib import Path

from lesion_d2.data.deeplesion.csv_rows import CSV_COLUMNS

import numpy as np
import pandas as pd
from slice_files import write_slices

HEIGHT = 24
WIDTH = 32


def write_csv(root: Path, rows: dict) -> None:
    """``DL_info.csv`` with a spacing by file name."""
    cells = dict.fromkeys(CSV_COLUMNS, "1")
    table = [
        cells | {"File_name": name, "Spacing_mm_px_": spacing, "DICOM_windows": "-1350, 150"}
        for name, spacing in rows.items()
    ]
    pd.DataFrame(table).to_csv(root / "DL_info.csv", index=False)


def write_series(folder: Path, numbers) -> np.ndarray:
    """Random slices, a body among air; (Z, H, W) in HU."""
    rng = np.random.default_rng([int(part) for part in folder.name.split("_")[:3]])
    volume = rng.integers(-1200, -900, (len(numbers), HEIGHT, WIDTH)).astype(np.int16)
    volume[:, 4:20, 5:30] = rng.integers(-600, 1500, (len(numbers), 16, 25))
    write_slices(folder, dict(zip(numbers, volume, strict=True)))
    return volume
