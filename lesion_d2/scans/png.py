"""DeepLesion's PNG slices, and folders of them."""

import csv
import os
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from ..files import one_line
from ..slice_geometry import EXPECTED_SPACING, is_spacing
from .limits import check_size
from .names import safe_name
from .scan import Scan, SliceSource
from .stacking import plan_slices, stack_slices

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_BYTES = 26  # with size, bit depth and color type
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_COLORS = {0: "grayscale", 2: "RGB", 3: "palette", 4: "grayscale + alpha", 6: "RGB + alpha"}


def read_png_slice(file: str | os.PathLike) -> np.ndarray:
    """Read one slice of DeepLesion's coding, HU = value - 32768.

    Returns:
        H x W int16, HU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a PNG, another bit depth or color type, truncated, or damaged.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such CT slice")
    data = np.fromfile(file, np.uint8)
    _check_header(file, data[:_HEADER_BYTES].tobytes())
    # Some versions of OpenCV decode the first part of a truncated file and only print a warning.
    if data[-len(_END) :].tobytes() != _END:
        raise ValueError(f"{file}: truncated PNG, its end chunk (IEND) is missing")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error:  # a size beyond OpenCV's own limit
        image = None
    if image is None:
        raise ValueError(f"{file}: damaged PNG, its pixels cannot be decoded")
    # Flipping the highest bit of an unsigned value v gives v - 32768 as a signed one.
    return np.bitwise_xor(image, np.uint16(0x8000), out=image).view(np.int16)


def png_size(file: str | os.PathLike) -> tuple[int, int]:
    """Height and width of a slice in pixels, from its header.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_png_slice`.
    """
    try:
        with open(file, "rb", buffering=0) as opened:
            header = opened.read(_HEADER_BYTES)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise FileNotFoundError(f"{file}: no such CT slice") from None
    _check_header(file, header)
    return int.from_bytes(header[20:24]), int.from_bytes(header[16:20])


def numbered_pngs(names: list[str]) -> list[str]:
    """Those of a folder's file names that are ``<slice number>.png``, in the order of numbers."""
    stems = [(name[:-4], name) for name in names if name.endswith(".png")]
    return [n for _, n in sorted((int(s), n) for s, n in stems if s.isascii() and s.isdecimal())]


class PngFolder:
    """A folder of DeepLesion: ``<slice number>.png``, 16 bits.

    Args:
        folder: its path.
        spacing: x, y, z in mm; None for that of the series in a ``DL_info.csv`` in the folder or
            one of the two above it.
        allow_gaps: see :func:`~lesion_d2.scans.read_scan`.

    Raises:
        ValueError: there is no spacing, or slices are damaged, have several sizes or gaps.
    """

    format = "png"

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        spacing: tuple[float, float, float] | None = None,
        allow_gaps: bool = False,
    ):
        self.folder = Path(folder)
        self.name = safe_name(self.folder.resolve().name)
        self.files = [self.folder / name for name in numbered_pngs(os.listdir(folder))]
        if not self.files:
            raise ValueError(f"{folder}: found no <slice number>.png")
        self.spacing = _series_spacing(self.folder) if spacing is None else spacing
        if len(self.spacing) != 3 or not all(map(is_spacing, self.spacing)):
            raise ValueError(
                f"{folder}: found the spacing {self.spacing}, expected for x, y and z "
                f"{EXPECTED_SPACING}"
            )
        self.size = png_size(self.files[0])
        numbers = np.array([int(file.stem) for file in self.files])
        for file, step in zip(self.files[1:], np.diff(numbers), strict=True):
            if step == 0:
                raise ValueError(f"{file}: found another slice of this number beside it")
        self.plan = plan_slices(
            numbers * self.spacing[2],
            [file.name for file in self.files],
            source=str(folder),
            spacing=self.spacing[2],
            allow_gaps=allow_gaps,
        )
        check_size(folder, (len(self.plan.slices), *self.size))

    @property
    def num_slices(self) -> int:
        return len(self.plan.slices)

    def read(self) -> Scan:
        """Read all slices; the first one's first pixel is the origin.

        Raises:
            ValueError: a slice is damaged, or has another size.
        """
        sources = tuple(SliceSource(str(self.files[n])) for n in self.plan.nearest())
        return Scan(
            name=self.name,
            volume=stack_slices(map(self._read_slice, self.files), self.plan, self.size),
            spacing=tuple(self.spacing),
            origin=np.zeros(3),
            direction=np.diag([1.0, 1.0, -1.0]),
            sources=sources,
            format=self.format,
            messages=self.plan.messages,
        )

    def _read_slice(self, file: Path) -> np.ndarray:
        hu = read_png_slice(file)
        if hu.shape != self.size:
            raise ValueError(
                f"{file}: found {hu.shape[1]} x {hu.shape[0]} pixels, expected the "
                f"{self.size[1]} x {self.size[0]} of {self.files[0].name}"
            )
        return hu


def _check_header(file: str | os.PathLike, header: bytes) -> None:
    if len(header) < _HEADER_BYTES or not header.startswith(_SIGNATURE):
        raise ValueError(
            f"{file}: found {os.path.getsize(file)} bytes that are no PNG, expected one of 16 bits"
        )
    depth, color = header[24], header[25]
    if (depth, color) != (16, 0):
        found = f"{depth}-bit {_COLORS.get(color, f'color type {color}')}"
        raise ValueError(f"{file}: found a {found} PNG, expected 16-bit grayscale")


def _series_spacing(folder: Path) -> tuple[float, float, float]:
    """The spacing of a folder's series in the nearest ``DL_info.csv``."""
    series = folder.resolve()
    for above in (series, series.parent, series.parent.parent):
        csv_file = above / "DL_info.csv"
        if csv_file.is_file():
            break
    else:
        raise ValueError(
            f"{folder}: found no DL_info.csv beside it, expected one or a spacing (x, y, z in mm)"
        )
    cells = _spacing_cells(csv_file, csv_file.stat().st_mtime_ns).get(series.name, set())
    if len(cells) != 1:
        found = " and ".join(sorted(cells)) or "no row"
        raise ValueError(
            f"{csv_file}: found {found} as spacing of {series.name}, expected one; or give one"
        )
    (cell,) = cells
    try:
        return tuple(float(number) for number in cell.split(","))
    except ValueError:
        raise ValueError(
            f"{csv_file}: found the spacing {cell!r} of {series.name}, expected 3 numbers of mm"
        ) from None


@lru_cache(4)
def _spacing_cells(csv_file: Path, changed: int) -> dict[str, set[str]]:
    """Series -> what stands in its rows as spacing; of a file that changed, anew."""
    cells = {}
    try:
        with open(csv_file, newline="", encoding="utf-8-sig") as opened:
            for row in csv.DictReader(opened):
                series = row["File_name"].rpartition("_")[0]
                cells.setdefault(series, set()).add(row["Spacing_mm_px_"])
    except (csv.Error, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{csv_file}: found no readable CSV with columns File_name and Spacing_mm_px_ "
            f"({one_line(error)})"
        ) from None
    return cells
