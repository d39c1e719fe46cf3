"""PNG files of slices, read alone and as key slices of a data set."""

import struct
import zlib
from functools import partial
from pathlib import Path

from lesion_d2.data.deeplesion.key_slices import load_deeplesion
from lesion_d2.data.slices.ct import read_slice

import cv2
import numpy as np

from ..case import Case, Kind
from ..damage import damage
from .csv_rows import CSV, HEIGHT, WIDTH, pixels

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NAME = "000001_01_01_010.png"
_FILE = "Images_png/000001_01_01/010.png"


def _chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _header(width: int, height: int, depth: int = 16, color: int = 0, *rest: int) -> bytes:
    rest = (*rest, 0, 0, 0)[:3]  # compression, filter, interlace
    return _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, *rest))


def _rows(values: np.ndarray) -> bytes:
    lines = values.astype(">u2")
    return b"".join(b"\x00" + line.tobytes() for line in lines)


def _png(*middle: bytes, header: bytes | None = None, end: bytes = _chunk(b"IEND")) -> bytes:
    return _SIGNATURE + (header or _header(WIDTH, HEIGHT)) + b"".join(middle) + end


def _data(raw: bytes) -> bytes:
    return _chunk(b"IDAT", zlib.compress(raw, 9))


def _interlaced(values: np.ndarray) -> bytes:
    """Adam7's seven passes."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
    parts = [values[y::dy, x::dx] for y, x, dy, dx in (*passes, (1, 0, 2, 1))]
    raw = b"".join(_rows(part) for part in parts if part.size)
    return _png(_data(raw), header=_header(WIDTH, HEIGHT, 16, 0, 0, 0, 1))


def _encoded(values: np.ndarray) -> bytes:
    return cv2.imencode(".png", values)[1].tobytes()


def _bomb(side: int) -> bytes:
    """Zeros, a thousandth of their size."""
    packer, size = zlib.compressobj(9), 2**20
    first = packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH)
    count, rest = divmod(side * (1 + 2 * side), size)
    last = packer.compress(bytes(rest)) + packer.flush()
    total = (count * size + rest) % 65521  # Adler-32 of zeros, whose own end is of other ones
    packed = first + again * (count - 1) + last[:-4] + struct.pack(">HH", total, 1)
    return _png(_chunk(b"IDAT", packed), header=_header(side, side))


def read_alone(folder: Path) -> np.ndarray:
    """One slice, without a data set."""
    return read_slice(folder / _FILE)


def read_in_set(folder: Path) -> np.ndarray:
    """The key slice of a data set, which says how large it is."""
    (image,) = load_deeplesion(folder / "DL_info.csv", folder / "Images_png", "train")
    hu = read_slice(image["file_name"])
    assert hu.shape == (image["height"], image["width"])
    return hu


def _case(name: str, data: bytes, *, in_set: bool = False, **options) -> Case:
    files = {_FILE: data}
    if in_set:
        files["DL_info.csv"] = CSV.text([CSV.row(File_name=_NAME)])
        name += ", in a data set"
    return Case(name, files, read_in_set if in_set else read_alone, **options)


def known() -> list[Case]:
    """What was found, and what the format has."""
    values = pixels()
    hu = (values.astype(np.int32) - 32768).astype(np.int16)
    good, body = _encoded(values), _data(_rows(values))
    one, unless = partial(_case, expected=hu), partial(_case, expected=hu, may_refuse=True)
    animated = (_chunk(b"acTL", struct.pack(">II", 1, 0)), _frame(0))
    second = (_frame(1), _chunk(b"fdAT", struct.pack(">I", 2) + zlib.compress(_rows(values))))
    cases = [
        one("as OpenCV writes it", good),
        one("as OpenCV writes it", good, in_set=True),
        one("without a filter", _png(body)),
        one("two IDAT", _split_png(_rows(values))),
        unless("interlaced", _interlaced(values)),
        unless("an APNG of one frame", _png(*animated, body)),
        unless("an APNG of two frames", _png(*animated, body, *second)),
        unless("a comment of 64 MB", _png(_text_bomb(2**26), body)),
        unless("a color profile of 64 MB", _png(_profile_bomb(2**26), body)),
        unless("gamma", _png(_chunk(b"gAMA", struct.pack(">I", 100000)), body)),
        unless("bytes behind the end", good + b"more"),
        unless("an unknown critical chunk", _png(_chunk(b"ABCD", b"x"), body)),
        unless("a transparent grey", _png(_chunk(b"tRNS", b"\x00\x07"), body)),
        _case("a header of 60000 x 60000", _png(body, header=_header(60000, 60000))),
        _case("a header of 0 x 0", _png(body, header=_header(0, 0))),
        _case("a header of 2^31 x 1", _png(body, header=_header(2**31, 1))),
        _case("20000 x 20000 zeros", _bomb(20000)),
        _case("20000 x 20000 zeros", _bomb(20000), in_set=True),
        _case("another size", _encoded(values[:, :-1]), in_set=True),
        _case("8 bits", _encoded((values >> 8).astype(np.uint8))),
        _case("colors", _encoded(np.stack([values] * 3, axis=2))),
        _case("no pixels", _png()),
        _case("half of the pixels", _png(_data(_rows(values[: HEIGHT // 2])))),
        _case("no end", _png(body, end=b"")),
        _case("empty", b""),
        _case("only a signature", _SIGNATURE),
        _case("a JPEG", cv2.imencode(".jpg", (values >> 8).astype(np.uint8))[1].tobytes()),
        _case("text", b"not a picture\n"),
        _case("an unknown filter", _png(_data(_rows(values).replace(b"\x00", b"\x09", 1)))),
        _case("two headers", _png(_header(WIDTH, HEIGHT + 1), body), may_refuse=True, expected=hu),
    ]
    return [*cases, Case("a folder", {f"{_FILE}/x": b""}, read_alone)]


def draw(rng: np.random.Generator) -> Case:
    """Damaged bytes: the checksums of PNG tell."""
    values = pixels(int(rng.integers(4)))
    hu = (values.astype(np.int32) - 32768).astype(np.int16)
    good = _encoded(values) if rng.random() < 0.5 else _png(_data(_rows(values)))
    data, name = damage(rng, good)
    in_set = bool(rng.random() < 0.3)
    if data == good:
        return _case(name, data, expected=hu, in_set=in_set)
    return _case(name, data, expected=hu, may_refuse=True, in_set=in_set)


def _frame(number: int) -> bytes:
    return _chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0))


def _split_png(raw: bytes) -> bytes:
    packed = zlib.compress(raw)
    return _png(_chunk(b"IDAT", packed[:50]), _chunk(b"IDAT", packed[50:]))


def _text_bomb(size: int) -> bytes:
    return _chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(size), 9))


def _profile_bomb(size: int) -> bytes:
    return _chunk(b"iCCP", b"profile\x00\x00" + zlib.compress(bytes(size), 9))


KIND = Kind("PNG", known, draw)
