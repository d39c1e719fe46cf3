"""Voxels of a volume in one file, with fast access to slices and patches.

The files are Blosc2's n-dimensional arrays (``.b2nd``), readable by any program with blosc2: chunks
with lossless compression, made of blocks that are decompressed separately. Blosc2 detects little
corruption; so CRC-32 checksums follow the array, where Blosc2 ignores them: one for each compressed
chunk, and one for the rest.
"""

import os
import struct
import threading
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...scans.limits import check_size
from ...utils.files import atomic_write, one_line

if TYPE_CHECKING:
    import blosc2

#: Suffix of the files.
EXTENSION = ".b2nd"
#: Size of chunks (compressed together) and of blocks (decompressed together), z, y, x in voxels.
CHUNKS, BLOCKS = (4, 256, 256), (2, 64, 128)

# The trailer of a file: magic bytes, the lengths of Blosc2's header and of its chunks, the CRC-32
# of the array's other bytes (and of those of the chunks), and the number of chunks.
_FOOTER = struct.Struct("<8sQQII")
_MAGIC = b"ld2crc32"
_HEADER_LENGTH = slice(11, 15)  # position in a Blosc2 frame, big-endian
_MAX_OPEN = 8  # open files per process
_MAX_CHUNK = 2**24  # voxels


def write_voxels(file: str | os.PathLike, volume: np.ndarray) -> None:
    """Write a volume losslessly and atomically; creates the folder if it is missing.

    Args:
        file: path with suffix ``.b2nd``.
        volume: (Z, H, W) int16, HU.

    Raises:
        ValueError: the volume has another type or shape, or is too large, or the suffix is
            different.
    """
    file = Path(file)
    if file.suffix != EXTENSION:
        raise ValueError(f"{file}: found the suffix {file.suffix!r}, expected {EXTENSION!r}")
    if volume.ndim != 3 or volume.dtype != np.int16:
        raise ValueError(
            f"{file}: found voxels {volume.dtype} of shape {volume.shape}, expected int16 of "
            "slices x height x width"
        )
    check_size(file, volume.shape)
    import blosc2

    chunks = tuple(map(min, CHUNKS, volume.shape))
    array = blosc2.asarray(
        np.ascontiguousarray(volume),
        chunks=chunks,
        blocks=tuple(map(min, BLOCKS, chunks)),
        cparams=blosc2.CParams(
            codec=blosc2.Codec.ZSTD,
            clevel=1,
            filters=[blosc2.Filter.SHUFFLE],
            filters_meta=[0],
            nthreads=1,
        ),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as partial:
        partial.write_bytes(array.to_cframe() + _sums(array))


def _sums(array: "blosc2.NDArray") -> bytes:
    """The checksums that follow an array."""
    frame, schunk = array.to_cframe(), array.schunk
    header = int.from_bytes(frame[_HEADER_LENGTH], "big")
    chunks = [schunk.get_chunk(number) for number in range(schunk.nchunks)]
    length = sum(map(len, chunks))
    sums = np.array(list(map(zlib.crc32, chunks)), "<u4").tobytes()
    rest = zlib.crc32(frame[:header] + frame[header + length :] + sums)
    return sums + _FOOTER.pack(_MAGIC, header, length, rest, len(chunks))


def _read_sums(file: str) -> np.ndarray:
    """Verify all but the chunks of a file; returns the CRC-32 of each chunk, (n,) uint32.

    Raises:
        ValueError: the file is damaged.
    """
    with open(file, "rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - _FOOTER.size))
        end = opened.read(_FOOTER.size)
        magic, header, chunks, expected, number = (
            _FOOTER.unpack(end) if len(end) == _FOOTER.size else (b"", 0, 0, 0, 0)
        )
        if magic != _MAGIC or header + chunks + 4 * number > size - _FOOTER.size:
            raise ValueError("no checksums at the end")
        opened.seek(0)
        found = zlib.crc32(opened.read(header))
        opened.seek(header + chunks)
        rest = opened.read(size - _FOOTER.size - header - chunks)
    if zlib.crc32(rest, found) != expected:
        raise ValueError("the checksum of the header differs")
    return np.frombuffer(rest[len(rest) - 4 * number :], "<u4")


def read_voxels(
    file: str | os.PathLike,
    z0: int = 0,
    z1: int | None = None,
    y0: int = 0,
    y1: int | None = None,
    x0: int = 0,
    x1: int | None = None,
) -> np.ndarray:
    """Read a patch of a volume, by default all of it.

    Safe in worker processes, also forked ones: it starts no threads and shares no open files.

    Args:
        file: a file by :func:`write_voxels`.
        z0, z1, y0, y1, x0, x1: first voxel and end (exclusive) along each axis; None for the end of
            the volume.

    Returns:
        (z1 - z0, y1 - y0, x1 - x0) int16 in HU, as a copy.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged or of another format, or the patch is empty or outside the
            volume.
    """
    array = _open(file)
    sizes = array.shape
    ends = [
        size if end is None else end for end, size in zip((z1, y1, x1), array.shape, strict=True)
    ]
    patch = tuple(zip((z0, y0, x0), ends, strict=True))
    if any(not 0 <= a < b <= size for (a, b), size in zip(patch, sizes, strict=True)):
        asked = " x ".join(f"{a}:{b}" for a, b in patch)
        raise ValueError(
            f"{file}: found a request for voxels {asked}, expected a patch within {sizes}"
        )
    return array.read(patch)


def voxels_shape(file: str | os.PathLike) -> tuple[int, int, int]:
    """Return number of slices, height and width of a volume, from its file's header.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_voxels`.
    """
    return _open(file).shape


def _open(file: str | os.PathLike) -> "_Array":
    file = os.path.abspath(file)
    try:
        state = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{file}: no such voxel file") from None
    return _opened(file, (state.st_mtime_ns, state.st_size), os.getpid())


@lru_cache(_MAX_OPEN)
def _opened(file: str, state: tuple[int, int], process: int) -> "_Array":
    """Open a file; cached per process, as forked processes would share the file position."""
    return _Array(file)


class _Array:
    """An open file. Chunks are verified on first access."""

    def __init__(self, file: str):
        import blosc2  # takes almost a second, and starts threads

        self.file = file
        self._lock = threading.Lock()
        if not file.endswith(EXTENSION):
            raise ValueError(f"{file}: found another suffix, expected {EXTENSION!r}")
        self._sums = self._guarded(_read_sums, file)
        self.array = self._guarded(
            blosc2.open,
            file,
            mode="r",
            deserialize="safe",  # no references to other files or hosts, no expressions
            dparams=blosc2.DParams(nthreads=1),
        )
        self._check(blosc2.NDArray)
        self.shape = tuple(map(int, self.array.shape))
        self._checked = np.zeros(len(self._sums), bool)
        self._grid = [-(-n // c) for n, c in zip(self.shape, self.array.chunks, strict=True)]

    def _check(self, kind: type) -> None:
        array = self.array
        if type(array) is not kind or list(array.schunk.meta) != ["b2nd"]:
            raise ValueError(f"{self.file}: found a {type(array).__name__}, expected plain voxels")
        if array.ndim != 3 or array.dtype != np.int16:
            raise ValueError(
                f"{self.file}: found {array.dtype} of shape {array.shape}, expected int16 of "
                "slices x height x width"
            )
        check_size(self.file, array.shape)
        if array.schunk.nchunks != len(self._sums):
            raise self._damaged(f"{len(self._sums)} checksums of {array.schunk.nchunks} chunks")
        if np.prod(array.chunks, dtype=float) > _MAX_CHUNK:
            raise ValueError(
                f"{self.file}: found chunks of {array.chunks}, expected at most 2^24 voxels"
            )

    def read(self, patch: tuple[tuple[int, int], ...]) -> np.ndarray:
        """Voxels from the first to the end (exclusive) of each axis."""
        ranges = [
            np.arange(a // c, -(-b // c))
            for (a, b), c in zip(patch, self.array.chunks, strict=True)
        ]
        with self._lock:  # threads share the file position
            for number in np.ravel_multi_index(np.ix_(*ranges), self._grid).ravel().tolist():
                if not self._checked[number]:
                    self._check_chunk(number)
            return self._guarded(self.array.__getitem__, tuple(slice(a, b) for a, b in patch))

    def _check_chunk(self, number: int) -> None:
        chunk = self._guarded(self.array.schunk.get_chunk, number)
        if zlib.crc32(chunk) != self._sums[number]:
            raise self._damaged(f"the checksum of chunk {number} differs")
        self._checked[number] = True

    def _guarded(self, call, *args, **kwargs):
        """Call blosc2, which raises various exceptions for damaged files."""
        try:
            return call(*args, **kwargs)
        except Exception as error:
            raise self._damaged(one_line(error)) from None

    def _damaged(self, why: str) -> ValueError:
        return ValueError(
            f"{self.file}: found damaged voxels ({why}), expected an intact .b2nd file"
        )
