"""DeepLesion's PNG slices, and folders of them."""

import csv
import os
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from ..structures.slice_geometry import EXPECTED_SPACING, is_spacing
from ..utils.files import atomic_write, check_columns, one_line
from .limits import check_picture_size, check_size
from .names import safe_name
from .scan import Scan, SliceSource
from .stacking import plan_slices, stack_slices

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_BYTES = 26  # up to size, bit depth and color type
_FIRST_CHUNK = (13).to_bytes(4) + b"IHDR"
_FRAME_BYTES = 12  # of a chunk besides its data: length, name and checksum
_COLORS = {0: "grayscale", 2: "RGB", 3: "palette", 4: "grayscale + alpha", 6: "RGB + alpha"}


def read_png_slice(file: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a slice in DeepLesion's encoding, HU = value - 32768.

    Args:
        file: its path.
        size: required height and width; None for any up to 8192.

    Returns:
        H x W int16, HU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a PNG, animated, another bit depth, color type or size, truncated, or
            damaged. Sizes and checksums are verified before decoding.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such CT slice")
    data = np.fromfile(file, np.uint8)
    found = _check_header(file, data[:_HEADER_BYTES].tobytes())
    if size is not None:
        check_same_size(file, found, size)
    check_chunks(file, data)
    image = decode_grey(file, data, found, np.uint16)
    # Flipping the highest bit of an unsigned value v gives v - 32768 as signed.
    return np.bitwise_xor(image, np.uint16(0x8000), out=image).view(np.int16)


def png_size(file: str | os.PathLike) -> tuple[int, int]:
    """Height and width of a slice in pixels, from its header.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_png_slice`.
    """
    try:
        opened = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))  # half of open()'s time
        try:
            header = os.read(opened, _HEADER_BYTES)
        finally:
            os.close(opened)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise FileNotFoundError(f"{file}: no such CT slice") from None
    return _check_header(file, header)


def check_same_size(
    file: str | os.PathLike, found: tuple[int, int], expected: tuple[int, int]
) -> None:
    """Refuse a slice of another (height, width) than expected.

    Raises:
        ValueError: the sizes differ.
    """
    if tuple(found) != tuple(expected):
        raise ValueError(
            f"{file}: found {found[1]} x {found[0]} pixels, expected {expected[1]} x {expected[0]}"
        )


def check_chunks(file: str | os.PathLike, data: bytes | np.ndarray) -> None:
    """Check all chunks of a PNG, as decoders do not verify all checksums.

    Args:
        file: beginning of the message.
        data: all of the file's bytes; bytes after the end chunk are ignored.

    Raises:
        ValueError: the file is truncated, a checksum is wrong, or it is animated.
    """
    data, start, kind = memoryview(data), len(_SIGNATURE), b""
    while kind != b"IEND":
        kind = bytes(data[start + 4 : start + 8])
        end = start + _FRAME_BYTES + int.from_bytes(data[start : start + 4])
        if end > len(data) or len(kind) < 4:
            raise ValueError(f"{file}: truncated PNG, its end chunk (IEND) is missing")
        if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise ValueError(
                f"{file}: damaged PNG, the checksum of a chunk at byte {start} is wrong"
            )
        if kind == b"acTL":
            raise ValueError(f"{file}: found an animated PNG, expected one image")
        if kind == b"IHDR" and start != len(_SIGNATURE):
            raise ValueError(f"{file}: damaged PNG, it has two headers")
        start = end


def decode_grey(
    file: str | os.PathLike, data: np.ndarray, size: tuple[int, int], dtype: type
) -> np.ndarray:
    """Decode a grayscale PNG of a known size.

    Args:
        file: beginning of the message.
        data: all of the file's bytes, uint8, checked by :func:`check_chunks`.
        size: H, W from its header.
        dtype: NumPy's uint8 or uint16, from its header.

    Raises:
        ValueError: it cannot be decoded, or has another size or type.
    """
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None or image.shape != size or image.dtype != dtype:
        raise ValueError(f"{file}: damaged PNG, its pixels cannot be decoded")
    return image


def write_png(
    file: str | os.PathLike,
    image: np.ndarray,
    options: Sequence[int] = (),
    *,
    flush: bool = True,
) -> None:
    """Write a picture atomically.

    OpenCV's writer reports success on a full disk and leaves a truncated file.

    Args:
        file: its path.
        image: (H, W) uint8 or uint16, or (H, W, 3) uint8, RGB.
        options: options of OpenCV's ``imencode``.
        flush: see :func:`~lesion_d2.utils.files.atomic_write`.

    Raises:
        OSError: it cannot be written.
    """
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".png", image, list(options))
    with atomic_write(file, flush=flush) as partial:
        partial.write_bytes(data)


def numbered_pngs(names: list[str]) -> list[str]:
    """The file names of the form ``<slice number>.png``, in the order of numbers."""
    stems = [(name[:-4], name) for name in names if name.endswith(".png")]
    return [n for _, n in sorted((int(s), n) for s, n in stems if s.isascii() and s.isdecimal())]


class PngFolder:
    """A folder of DeepLesion: 16-bit ``<slice number>.png``.

    Args:
        folder: its path.
        spacing: x, y, z in mm; None for the series' spacing in a ``DL_info.csv`` in the folder or
            one of its two parents.
        allow_gaps: see :func:`~lesion_d2.scans.read_scan`.

    Raises:
        ValueError: the spacing is unknown, or slices are damaged, have different sizes or gaps.
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
        """Number of slices of the volume, including interpolated ones."""
        return len(self.plan.slices)

    def read(self) -> Scan:
        """Read all slices; the first pixel of the first slice is the origin.

        Raises:
            ValueError: a slice is damaged, or has another size.
        """
        sources = tuple(SliceSource(str(self.files[n])) for n in self.plan.nearest())
        return Scan(
            name=self.name,
            volume=stack_slices(
                (read_png_slice(file, self.size) for file in self.files), self.plan, self.size
            ),
            spacing=tuple(self.spacing),
            origin=np.zeros(3),
            direction=np.diag([1.0, 1.0, -1.0]),
            sources=sources,
            format=self.format,
            messages=self.plan.messages,
        )


def _check_header(file: str | os.PathLike, header: bytes) -> tuple[int, int]:
    """Height and width from the first bytes of a file."""
    is_png = header.startswith(_SIGNATURE + _FIRST_CHUNK)
    if len(header) < _HEADER_BYTES or not is_png:
        raise ValueError(
            f"{file}: found {os.path.getsize(file)} bytes that are no PNG, expected one of 16 bits"
        )
    depth, color = header[24], header[25]
    if (depth, color) != (16, 0):
        found = f"{depth}-bit {_COLORS.get(color, f'color type {color}')}"
        raise ValueError(f"{file}: found a {found} PNG, expected 16-bit grayscale")
    size = int.from_bytes(header[20:24]), int.from_bytes(header[16:20])
    check_picture_size(file, size)
    return size


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
    """Series -> spacings in its rows; cached until the file changes."""
    cells = {}
    try:
        with open(csv_file, newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            check_columns(csv_file, reader.fieldnames or [])
            for row in reader:
                series = row["File_name"].rpartition("_")[0]
                cells.setdefault(series, set()).add(row["Spacing_mm_px_"])
    except (csv.Error, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{csv_file}: found no readable CSV with columns File_name and Spacing_mm_px_ "
            f"({one_line(error)})"
        ) from None
    return cells
