"""``DL_info.csv`` of DeepLesion: parsing and checking of its cells."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd

from ...structures.slice_geometry import SPACING_RANGE, is_spacing
from ..formats.csv_files import read_csv_table
from ..formats.problems import raise_problems

#: The columns of DL_info.csv, in its order.
CSV_COLUMNS = (
    "File_name",
    "Patient_index",
    "Study_index",
    "Series_ID",
    "Key_slice_index",
    "Measurement_coordinates",
    "Bounding_boxes",
    "Lesion_diameters_Pixel_",
    "Normalized_lesion_location",
    "Coarse_lesion_type",
    "Possibly_noisy",
    "Slice_range",
    "Spacing_mm_px_",
    "Image_size",
    "DICOM_windows",
    "Patient_gender",
    "Patient_age",
    "Train_Val_Test",
)
#: DeepLesion's coordinate of the center of an image's first pixel.
#:
#: The paper does not say so, but the authors' detectors (3DCE, MULAN, LesaNet) subtract 1 from
#: boxes and RECIST end points. Real slices confirm that they do not count from 0: the contrast
#: between the ellipses of 28 lesions (12 patients, 4 with RECIST diameters and 24 with boxes and
#: their inscribed ellipses) and the 3 pixels around them is highest if they are moved by
#: -0.90 in x and -0.54 in y, on average -0.72 (95 % interval over patients: -0.82 to -0.59). In
#: standard deviations it is 0.97 at 0, and 1.06 at -0.5 and at -1 (difference 0.00, -0.02 to 0.02).
#: The slices do not decide between these two, so the authors' code does. The measurement is
#: described in ``datasets/README.md``.
FIRST_PIXEL = 1.0
#: File next to the ``DL_info.csv`` of generated data sets, whose coordinates start at 0.
GENERATED_FILE = "phantom.json"
# Boxes are the RECIST end points plus 5 px per side, so they may extend beyond the image a bit.
_MAX_OVERHANG = 10.0
# Cached tables of each active read_once, by file and columns; the first entry is outside of any.
_kept: list[dict[tuple, pd.DataFrame]] = [{}]


def first_pixel_of(csv_file: str | os.PathLike) -> float:
    """Return a file's coordinate of the center of the first pixel, by default :data:`FIRST_PIXEL`.

    It is 0 if there is a ``phantom.json`` of :func:`~lesion_d2.data.phantoms.phantom.write_phantom`
    next to it.
    """
    folder = os.path.dirname(csv_file)
    return 0.0 if os.path.isfile(os.path.join(folder, GENERATED_FILE)) else FIRST_PIXEL


def read_csv(csv_file: str | os.PathLike, columns: Sequence[str]) -> pd.DataFrame:
    """Read columns of ``DL_info.csv``, without empty rows.

    Returns:
        All cells as text, "" if empty; the index is the line number in the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not CSV, or columns are missing or duplicate.
    """
    key = os.path.abspath(csv_file), tuple(columns)
    if key in _kept[-1]:
        return _kept[-1][key]
    frame = read_csv_table(csv_file, columns, "DL_info.csv's columns, with quoted lists")
    frame = frame[list(columns)]
    frame = frame[(frame != "").any(axis=1)]
    if len(_kept) > 1:
        _kept[-1][key] = frame
    return frame


@contextmanager
def read_once() -> Iterator[None]:
    """Context manager in which :func:`read_csv` reads each file once, for example for all splits.

    The tables are shared, and must not be modified.
    """
    _kept.append({})
    try:
        yield
    finally:
        _kept.pop()


class BadCells:
    """Collects the errors in a CSV file, at most one per cell, and raises them together."""

    def __init__(self, csv_file: str | os.PathLike):
        self.csv_file = csv_file
        self._problems: dict[tuple[int, str], str] = {}

    def add(self, cells: pd.Series, is_bad: np.ndarray, expected: str, found=repr) -> None:
        """Add the cells of a column where ``is_bad``; ``found`` formats their content."""
        for row, cell in cells[is_bad].items():
            text = f"row {row}, column {cells.name}: found {found(cell)}, expected {expected}"
            self._problems.setdefault((row, cells.name), text)

    def problems(self) -> list[str]:
        """Return the errors, one line per cell, in the order of rows."""
        return [self._problems[cell] for cell in sorted(self._problems)]

    def raise_if_any(self) -> None:
        """Raise one ValueError with all errors, if there are any."""
        num_rows = len({row for row, _ in self._problems})
        counted = f"{len(self._problems)} bad cells in {num_rows} rows"
        raise_problems(self.csv_file, self.problems(), counted)


def numbers(
    frame: pd.DataFrame,
    column: str,
    count: int,
    bad: BadCells,
    expected: str | None = None,
    *,
    optional: bool = False,
) -> np.ndarray:
    """Parse a column of comma-separated lists to an N x count float array; NaN for bad rows.

    ``expected`` describes valid values; None for only the count. Empty cells are NaN, too, if
    ``optional``.
    """
    if not len(frame):
        return np.empty((0, count))
    nothing = ",".join(["nan"] * count)
    lists = [cell if cell.count(",") == count - 1 else nothing for cell in frame[column]]
    cells = np.array(",".join(lists).split(","), dtype=object)
    values = pd.to_numeric(cells, errors="coerce").astype(float).reshape(-1, count)
    is_bad = ~np.isfinite(values).all(axis=1)
    if optional:
        is_bad &= ~are_empty(frame[column])
    expected = expected or ("1 number" if count == 1 else f"{count} numbers")
    bad.add(frame[column], is_bad, expected)
    return values


def are_empty(cells: pd.Series) -> np.ndarray:
    """Return whether cells are empty or blank, N bool."""
    return (cells.str.strip() == "").to_numpy(bool)


def integers(frame: pd.DataFrame, column: str, count: int, bad: BadCells) -> np.ndarray:
    """As :func:`numbers`, but N x count int64, with 0 for bad rows."""
    values = numbers(frame, column, count, bad)
    is_integer = (values == np.round(values)) & (np.abs(values) < 2**53)
    bad.add(
        frame[column],
        ~is_integer.all(axis=1),
        "1 integer" if count == 1 else f"{count} integers",
    )
    # Placeholders of bad cells are never used, as bad cells are an error.
    return np.where(is_integer, values, 0).astype(np.int64)


def spacings(frame: pd.DataFrame, bad: BadCells) -> np.ndarray:
    """Parse the voxel spacing, N x 3 (x, y, z) in mm."""
    column, expected = "Spacing_mm_px_", "3 numbers of mm from {:g} to {:g}".format(*SPACING_RANGE)
    values = numbers(frame, column, 3, bad, expected)
    bad.add(frame[column], ~is_spacing(values).all(axis=1), expected)
    return values


def windows(frame: pd.DataFrame, bad: BadCells) -> np.ndarray:
    """Parse the display windows, N x 2 (low, high) in HU."""
    column, expected = "DICOM_windows", "low < high, HU"
    values = numbers(frame, column, 2, bad, expected)
    bad.add(frame[column], values[:, 0] >= values[:, 1], expected)
    return values


def are_near(points: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return whether points are inside their images, with a tolerance of 10 pixels.

    Args:
        points: N x P x 2 (x, y) in pixels; integers are pixel centers.
        sizes: N x 2 (width, height) in pixels; infinite for no limit.

    Returns:
        N bool, whether all P points are inside; False if one is not finite.
    """
    low, high = -0.5 - _MAX_OVERHANG, sizes[:, None] - 0.5 + _MAX_OVERHANG
    return ((points >= low) & (points <= high)).all(axis=(1, 2))


def cut_boxes(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to their images.

    Args:
        boxes: N x 4 XYXY in pixels; integers are pixel centers.
        sizes: N x 2 (width, height) in pixels; infinite for no limit.

    Returns:
        The clipped boxes, N x 4; and whether each is inside its image, N bool, with a tolerance of
        10 pixels, and not empty after clipping.
    """
    cut = np.clip(boxes, -0.5, np.tile(sizes, 2) - 0.5)
    overhangs = (np.abs(cut - boxes) > _MAX_OVERHANG).any(axis=1)
    is_empty = (cut[:, 2:] <= cut[:, :2]).any(axis=1)
    return cut, ~(overhangs | is_empty)
