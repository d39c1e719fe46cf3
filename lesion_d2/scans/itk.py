"""MetaImage and NRRD files, with SimpleITK."""

import bz2
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..utils.files import one_line
from .limits import check_declared, require
from .volume_file import VolumeFile, check_numbers

#: File extension -> format, ITK's name of its reader.
ITK_FORMATS = {
    ".mha": ("metaimage", "MetaImageIO"),
    ".mhd": ("metaimage", "MetaImageIO"),
    ".nrrd": ("nrrd", "NrrdImageIO"),
    ".nhdr": ("nrrd", "NrrdImageIO"),
}
_HEADER_BYTES = 1 << 16
_NRRD_PACKINGS = {"gz": "gzip", "gzip": "gzip", "bz2": "bz2", "bzip2": "bz2"}
_PIECE = 1 << 20  # bytes
_SLAB = 8  # slices read at once


def is_itk(path: str | os.PathLike) -> bool:
    """Whether a path names a MetaImage or an NRRD file."""
    return os.path.splitext(path)[1].lower() in ITK_FORMATS


def open_itk(file: str | os.PathLike) -> VolumeFile:
    """Read the header of a MetaImage (``.mha``, ``.mhd``) or NRRD file (``.nrrd``, ``.nhdr``).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is not a volume of numbers, or its voxels are in files
            outside of its folder.
        ImportError: SimpleITK is not installed.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such image file")
    sitk = require("SimpleITK")
    format, reader_name = ITK_FORMATS[os.path.splitext(file)[1].lower()]
    header = _header_lines(file)
    data_files = _data_files(file, header)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(reader_name)
    reader.SetFileName(os.fspath(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{file}: found no readable header ({_reason(error)})") from None
    shape, dimension = reader.GetSize(), reader.GetDimension()
    kind = _kind(sitk, reader.GetPixelID())
    check_numbers(file, kind, shape, reader.GetNumberOfComponents())
    affine = np.eye(4)
    direction = np.reshape(reader.GetDirection(), (dimension, dimension))[:3, :3]
    affine[:3, :3] = direction * reader.GetSpacing()[:3]
    affine[:3, 3] = reader.GetOrigin()[:3]
    packing, packed_size = _packing(file, header, format, data_files)
    whole = format == "nrrd" or packing is not None
    declared = int(np.prod(shape, dtype=object)) * np.dtype(kind).itemsize

    def slabs() -> Iterator[np.ndarray]:
        if packing is not None:
            start = _data_start(file, format)
            _check_packed(file, data_files, start, packing, packed_size, declared)
        yield from _slabs(file, sitk, reader, shape, whole)

    volume_file = VolumeFile(file, format, shape, affine, slabs, files=(file, *data_files))
    check_declared(file, declared, sum(map(os.path.getsize, data_files)), whole)
    return volume_file


def _slabs(file, sitk, reader, shape: tuple[int, ...], whole: bool) -> Iterator[np.ndarray]:
    """Slabs of all x, y and some z; a single slab if the file cannot be read in parts."""
    step = shape[2] if whole else _SLAB
    for start in range(0, shape[2], step):
        size = (*shape[:2], min(step, shape[2] - start), *shape[3:])
        reader.SetExtractIndex((0, 0, start, *(0 for _ in shape[3:])))
        reader.SetExtractSize(size)
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise ValueError(f"{file}: found damaged voxels ({_reason(error)})") from None
        yield sitk.GetArrayViewFromImage(image).T.reshape(size[:3])


def _check_packed(
    file: str | os.PathLike,
    data_files: list[Path],
    start: int,
    packing: str,
    packed_size: int,
    declared: int,
) -> None:
    """Decompress voxels to check checksums and size; ITK silently accepts truncated data.

    Args:
        file: beginning of the message.
        data_files: files with the voxels, each compressed separately.
        start: offset of the voxels if they are in ``file`` itself.
        packing, packed_size: see :func:`_packing`.
        declared: number of bytes of all voxels.

    Raises:
        ValueError: a file is damaged, or has more or fewer bytes.
    """
    found = 0
    try:
        for path in data_files:
            with open(path, "rb") as opened:
                opened.seek(start if os.path.samefile(path, file) else 0)
                for size in _unpacked_sizes(opened, packing, packed_size):
                    found += size
                    if found > declared:
                        raise ValueError("there are more than the header says")
    except (zlib.error, OSError, EOFError, ValueError) as error:
        raise ValueError(f"{file}: found damaged voxels ({one_line(error)})") from None
    if found < declared:
        raise ValueError(f"{file}: found voxels of {found} bytes, expected {declared}")


def _unpacked_sizes(opened: BinaryIO, packing: str, packed_size: int) -> Iterator[int]:
    """Yield the sizes of decompressed chunks; no data is kept."""
    if packing != "zlib":
        stream = bz2.BZ2File(opened) if packing == "bz2" else gzip.GzipFile(fileobj=opened)
        while piece := stream.read(_PIECE):
            yield len(piece)
        return
    unpacker = zlib.decompressobj(32 + zlib.MAX_WBITS)  # zlib or gzip header
    while not unpacker.eof:
        data = unpacker.unconsumed_tail
        if not data:
            data = opened.read(min(_PIECE, packed_size))
            packed_size -= len(data)
        if not data:
            raise EOFError("their end is missing")
        yield len(unpacker.decompress(data, _PIECE))


def _kind(sitk, pixel_id: int) -> str:
    """NumPy's name of a pixel type, or else ITK's."""
    names = {
        sitk.sitkInt8: "int8",
        sitk.sitkUInt8: "uint8",
        sitk.sitkInt16: "int16",
        sitk.sitkUInt16: "uint16",
        sitk.sitkInt32: "int32",
        sitk.sitkUInt32: "uint32",
        sitk.sitkInt64: "int64",
        sitk.sitkUInt64: "uint64",
        sitk.sitkFloat32: "float32",
        sitk.sitkFloat64: "float64",
    }
    return names.get(pixel_id) or sitk.GetPixelIDValueAsString(pixel_id)


def _reason(error: RuntimeError) -> str:
    """ITK's message without the location in its source code."""
    return one_line(str(error).strip().splitlines()[-1])


def _header_lines(file: str | os.PathLike) -> list[str]:
    with open(file, "rb") as opened:
        return opened.read(_HEADER_BYTES).decode("latin-1").splitlines()


def _packing(
    file: str | os.PathLike, header: list[str], format: str, data_files: list[Path]
) -> tuple[str | None, int]:
    """The compression of voxels ("zlib", "gzip", "bz2" or none) and the compressed size in bytes.

    If the header has no size, it is an upper bound; it is 0 for NRRD.
    """
    lines = [re.split(r"\s*[:=]\s*", line.strip(), maxsplit=1) for line in header]
    values = {line[0]: line[1] for line in reversed(lines) if len(line) == 2}  # the first wins
    if format == "nrrd":
        encodings = [value.lower() for key, value in values.items() if key.lower() == "encoding"]
        return _NRRD_PACKINGS.get("".join(encodings)), 0
    if not values.get("CompressedData", "").lower().startswith("t"):
        return None, 0
    size = values.get("CompressedDataSize", "")
    if size.isascii() and size.isdecimal():
        return "zlib", int(size)
    # Without it, ITK reads separate files as a whole, and the wrong part of this file.
    if any(os.path.samefile(path, file) for path in data_files):
        raise ValueError(f"{file}: found compressed voxels, expected a CompressedDataSize")
    return "zlib", max(map(os.path.getsize, data_files))


def _data_start(file: str | os.PathLike, format: str) -> int:
    """Offset of the voxels after a header in the same file."""
    with open(file, "rb") as opened:
        for line in iter(lambda: opened.readline(_HEADER_BYTES), b""):
            is_last = line.strip().lower().startswith(b"elementdatafile")
            if not line.strip() if format == "nrrd" else is_last:
                break
        return opened.tell()


def _data_files(file: str | os.PathLike, header: list[str]) -> list[Path]:
    """The files with the voxels: this one, or others in its folder.

    A header must not refer to arbitrary files on the disk.
    """
    names = []
    for number, line in enumerate(header):
        key, _, value = line.partition("=" if "=" in line else ":")
        if key.strip().lower() in ("elementdatafile", "data file", "datafile"):
            names = [value.strip()]
            if names[0].upper().startswith("LIST"):
                names = [line.strip() for line in header[number + 1 :] if line.strip()]
            break
        if not line.strip():
            break  # the end of an NRRD header
    if not names or names[0].upper() == "LOCAL":
        return [Path(file)]
    folder = Path(file).resolve().parent
    found = []
    for name in names:
        path = (folder / name).resolve()
        if path.parent != folder or not path.is_file():
            raise ValueError(
                f"{file}: found the data file {name!r}, expected the name of a file in its folder"
            )
        found.append(path)
    return found
