"""Files of prepared slices: an index, and losslessly compressed slices.

A slice is a chunk of Blosc2 (byte shuffle and LZ4, compressed by LZ4HC). The index has the name,
height and width of each slice, the position and CRC-32 of its chunk, and the size and modification
time of its PNG file. Numbers are little-endian::

    "ld2slic1" | number of slices, CRC-32 of the index: uint32 each | index | chunks
"""

import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...scans.limits import check_picture_size
from ...scans.png import read_png_slice
from ...utils.files import atomic_write, one_line
from ...utils.values import MAX_SLICES

_MAGIC = b"ld2slic1"
_HEAD = struct.Struct("<8sII")
_MAX_NAME = 16
_ENTRY = np.dtype(
    [
        ("name", f"S{_MAX_NAME}"),  # without .png
        ("height", "<u4"),
        ("width", "<u4"),
        ("png_bytes", "<u8"),
        ("png_changed", "<i8"),  # ns since 1970
        ("start", "<u8"),
        ("length", "<u4"),
        ("crc", "<u4"),
    ]
)
_MAX_KEPT = 256  # cached indices per process
_LEVEL = 5  # of LZ4HC; higher levels are slower and save almost nothing
#: Remedy for missing or outdated slices.
REMEDY = "run lesion_d2.tools.prepare_slices again"
_AGAIN = f"remove its file and {REMEDY}"


class PreparedSlice(NamedTuple):
    """Index entry of a slice: size (H, W), bytes and time of its PNG, its chunk and checksum."""

    size: tuple[int, int]
    png: tuple[int, int]
    start: int
    length: int
    crc: int


def write_prepared(file: str | os.PathLike, pngs: Mapping[str, str | os.PathLike]) -> int:
    """Write slices to one file, atomically; creates the folder if it is missing.

    Args:
        file: its path.
        pngs: name of each slice (its number) -> its PNG file in DeepLesion's coding, in order.

    Returns:
        The size of the file in bytes.

    Raises:
        FileNotFoundError, ValueError: a slice is missing, damaged or not such a PNG, two slices
            have the same number, a name has too many digits, or there are no or too many slices.
    """
    if not 0 < len(pngs) <= MAX_SLICES:
        raise ValueError(f"{file}: found {len(pngs)} slices, expected 1 to {MAX_SLICES}")
    numbers: dict[int, str | os.PathLike] = {}
    for name, png in pngs.items():
        if len(name) > _MAX_NAME:
            raise ValueError(f"{png}: found {len(name)} digits, expected {_MAX_NAME} at most")
        if int(name) in numbers:
            raise ValueError(
                f"{png}: found {numbers[int(name)]} files with this number, expected one"
            )
        numbers[int(name)] = png
    entries, chunks, start = [], [], _HEAD.size + len(pngs) * _ENTRY.itemsize
    for name, png in pngs.items():
        state = png_state(png)  # before reading: a file that changes meanwhile is outdated
        hu = read_png_slice(png)
        chunk = _compress(hu)
        if not np.array_equal(_decompress(chunk, hu.shape), hu):
            raise ValueError(f"{png}: found different pixels after compression, expected the same")
        entries.append((name, *hu.shape, *state, start, len(chunk), zlib.crc32(chunk)))
        chunks.append(chunk)
        start += len(chunk)
    index = np.array(entries, _ENTRY).tobytes()
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as partial, open(partial, "wb") as opened:
        opened.write(_HEAD.pack(_MAGIC, len(entries), zlib.crc32(index)) + index)
        opened.writelines(chunks)
    return start


def prepared_index(file: str | os.PathLike) -> dict[str, PreparedSlice]:
    """Return the index entries of a file by slice name, in written order.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another format, is truncated, or its index is damaged.
    """
    try:
        state = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{file}: no such file of prepared slices; {REMEDY}") from None
    return _read_index(os.fspath(file), state.st_size, state.st_mtime_ns)


def read_prepared(file: str | os.PathLike, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read slices by name.

    Returns:
        Name -> H x W int16 in HU, as a copy.

    Raises:
        FileNotFoundError: the file or a slice does not exist.
        ValueError: the file is damaged; the message names the slice.
    """
    index, slices = prepared_index(file), {}
    with open(file, "rb", buffering=0) as opened:
        for name in names:
            place = os.path.join(file, f"{name}.png")
            if name not in index:
                raise FileNotFoundError(f"{place}: no such CT slice")
            entry = index[name]
            opened.seek(entry.start)
            chunk = opened.read(entry.length)
            if zlib.crc32(chunk) != entry.crc:
                raise ValueError(f"{place}: damaged prepared slice, its checksum differs; {_AGAIN}")
            try:
                slices[name] = _decompress(chunk, entry.size)
            except (ValueError, RuntimeError) as error:
                raise ValueError(
                    f"{place}: damaged prepared slice ({one_line(error)}); {_AGAIN}"
                ) from None
    return slices


def png_state(png: str | os.PathLike) -> tuple[int, int]:
    """Return size and modification time (ns) of a PNG file, to detect outdated prepared slices.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    try:
        state = os.stat(png)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{png}: no such CT slice") from None
    return state.st_size, state.st_mtime_ns


@lru_cache(_MAX_KEPT)
def _read_index(file: str, size: int, changed: int) -> dict[str, PreparedSlice]:
    """Read the index; again if the file changes."""
    with open(file, "rb", buffering=0) as opened:
        head = opened.read(_HEAD.size)
        magic, count, crc = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", 0, 0)
        if magic != _MAGIC or not 0 < count <= MAX_SLICES:
            raise ValueError(f"{file}: found no prepared slices; {_AGAIN}")
        index = opened.read(count * _ENTRY.itemsize)
    if zlib.crc32(index) != crc:
        raise ValueError(f"{file}: damaged prepared slices, the index's checksum differs; {_AGAIN}")
    entries = np.frombuffer(index, _ENTRY)
    ends = _HEAD.size + len(index) + np.cumsum(entries["length"], dtype=np.int64)
    if ends[-1] != size or not np.array_equal(entries["start"], ends - entries["length"]):
        raise ValueError(
            f"{file}: found {size} bytes of prepared slices, expected {ends[-1]}; {_AGAIN}"
        )
    slices = {}
    for name, height, width, png_bytes, png_changed, start, length, crc in entries.tolist():
        check_picture_size(file, (height, width))
        entry = PreparedSlice((height, width), (png_bytes, png_changed), start, length, crc)
        slices[name.decode("ascii", "replace")] = entry
    return slices


def _compress(hu: np.ndarray) -> bytes:
    import blosc2  # takes almost a second

    return blosc2.compress2(
        np.ascontiguousarray(hu),
        codec=blosc2.Codec.LZ4HC,
        clevel=_LEVEL,
        filters=[blosc2.Filter.SHUFFLE],
        filters_meta=[0],
        typesize=hu.itemsize,
        nthreads=1,
    )


def _decompress(chunk: bytes, size: tuple[int, int]) -> np.ndarray:
    """Decompress a slice, H x W int16.

    Raises:
        ValueError, RuntimeError: the chunk is not a slice of this size.
    """
    import blosc2

    hu = np.empty(size, np.int16)
    lengths = blosc2.get_cbuffer_sizes(chunk)[:2]
    if lengths != (hu.nbytes, len(chunk)):
        raise ValueError(f"found {lengths[0]} bytes of pixels, expected {hu.nbytes}")
    blosc2.decompress2(chunk, hu, nthreads=1)
    return hu
