"""NIfTI files: headers, damaged and compressed bytes."""

import gzip
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from lesion_d2.data.slices.nifti import nifti_slices, read_nifti_slice
from lesion_d2.scans import read_scan
from lesion_d2.scans.writing import write_nifti

import numpy as np

from ..case import ANY, Case, Kind
from ..damage import damage, flip_bits

_NAME = "000001_01_01_003-007"
_SPACING = (0.7, 0.8, 2.5)
_HEADER = 352  # bytes before the voxels
_FLOAT_MAX = 3.4e38


@cache
def _volume() -> np.ndarray:
    volume = np.random.default_rng(5).integers(-1000, 1500, (5, 6, 8))
    return volume.astype(np.int16)


@cache
def _plain() -> bytes:
    with TemporaryDirectory() as folder:
        write_nifti(Path(folder) / "a.nii", _volume(), _SPACING)
        return (Path(folder) / "a.nii").read_bytes()


def _packed(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def read(folder: Path) -> list:
    """The file's scan."""
    (file,) = folder.iterdir()
    scan = read_scan(file)
    return [scan.volume, [round(x, 5) for x in scan.spacing]]


def read_subvolume(folder: Path) -> np.ndarray:
    """All slices of a file with a sub-volume's name."""
    (file,) = folder.iterdir()
    return np.stack([read_nifti_slice(path) for path in nifti_slices(file).values()])


def _value() -> list:
    return [_volume(), list(_SPACING)]


def _case(name: str, data: bytes, ending: str = ".nii", **options) -> Case:
    return Case(name, {f"{_NAME}{ending}": data}, read, **options)


def _edited(*edits: tuple[int, str, tuple]) -> bytes:
    data = bytearray(_plain())
    for offset, form, values in edits:
        struct.pack_into("<" + form, data, offset, *values)
    return bytes(data)


_DIM, _TYPE, _BITS, _PIXDIM, _OFFSET, _SLOPE, _INTER = 40, 70, 72, 76, 108, 112, 116
_UNITS, _QFORM, _SFORM, _SROW, _MAGIC = 123, 252, 254, 280, 344

# What has to be refused: words, and edits of the header.
_BAD = (
    ("32767 x 32767 pixels", (_DIM, "4h", (3, 32767, 32767, 5))),
    ("32767 in all dimensions", (_DIM, "8h", (7, *[32767] * 7))),
    ("no dimensions", (_DIM, "h", (0,))),
    ("300 dimensions", (_DIM, "h", (300,))),
    ("a dimension of 0", (_DIM, "4h", (3, 0, 6, 5))),
    ("a dimension of -1", (_DIM, "4h", (3, -1, 6, 5))),
    ("two dimensions", (_DIM, "4h", (2, 8, 6, 1))),
    ("more slices than voxels", (_DIM, "4h", (3, 8, 6, 6))),
    ("a fourth dimension", (_DIM, "5h", (4, 8, 6, 1, 5))),
    ("colors", (_TYPE, "2h", (128, 24))),
    ("complex numbers", (_TYPE, "2h", (32, 64))),
    ("an unknown type", (_TYPE, "2h", (77, 16))),
    ("no type", (_TYPE, "2h", (0, 0))),
    ("voxels past the end", (_OFFSET, "f", (1e9,))),
    ("voxels at infinity", (_OFFSET, "f", (float("inf"),))),
    ("voxels before the start", (_OFFSET, "f", (-352.0,))),
    ("a slope of NaN and values", (_SLOPE, "2f", (1.0, float("nan")))),
    ("an intercept of 3e38", (_SLOPE, "2f", (1.0, _FLOAT_MAX))),
    ("a matrix of NaN", (_SROW, "12f", (float("nan"),) * 12)),
    ("a matrix of zeros", (_SROW, "12f", (0.0,) * 12)),
    ("a matrix of 1e-9", (_SROW, "12f", (1e-9, 0, 0, 0, 0, 1e-9, 0, 0, 0, 0, 1e-9, 0))),
    ("a matrix of 1e9", (_SROW, "12f", (1e9, 0, 0, 0, 0, 1e9, 0, 0, 0, 0, 1e9, 0))),
    ("a matrix of infinity", (_SROW, "12f", (float("inf"), 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0))),
    (
        "an oblique matrix of 45 degrees",
        (_SROW, "12f", (0.7, -0.7, 0, 0, 0.7, 0.7, 0, 0, 0, 0, 1, 0)),
    ),
    ("a sheared matrix", (_SROW, "12f", (1, 0.9, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0))),
    ("no form", (_QFORM, "2h", (0, 0))),
    ("another magic", (_MAGIC, "4s", (b"xyz\0",))),
)


def known() -> list[Case]:
    """What was found."""
    plain, packed = _plain(), _packed(_plain())
    quaternion = (_QFORM, "2h", (1, 0))
    spacings = ((1e-9, 1e-9, 1e-9), (0, 0, 0), (float("nan"), 1, 1), (1e9, 1, 1))
    cases = [
        _case("as it should be", plain, expected=_value()),
        _case("as it should be, packed", packed, ".nii.gz", expected=_value()),
        _case(
            "several members",
            _packed(plain[:500]) + _packed(plain[500:]),
            ".nii.gz",
            expected=_value(),
            may_refuse=True,
        ),
        _case("bytes behind the end", plain + b"more", expected=_value(), may_refuse=True),
        _case(
            "bytes behind the packed end",
            packed + b"more",
            ".nii.gz",
            expected=_value(),
            may_refuse=True,
        ),
        _case("a packed file that is not", plain, ".nii.gz", expected=_value(), may_refuse=True),
        _case("a packed file without its name", packed),
        _case("empty", b""),
        _case("empty, packed", b"", ".nii.gz"),
        _case("only a header", plain[:_HEADER]),
        _case("half", plain[: len(plain) // 2]),
        _case("half, packed", packed[: len(packed) // 2], ".nii.gz"),
        _case("all but the checksum", packed[:-8], ".nii.gz"),
        _case("another checksum", packed[:-8] + b"abcd" + packed[-4:], ".nii.gz"),
        _case("another length", packed[:-4] + b"abcd", ".nii.gz"),
        _case("a bomb of zeros", _packed(_edited(_BAD[0][1]) + bytes(2**25)), ".nii.gz"),
        _case("zero bytes", bytes(len(plain))),
        _case("no air", _edited((_HEADER, "240h", (40,) * 240))),
        _case(
            "NaN as voxels",
            _edited(
                (_TYPE, "2h", (16, 32)), (_DIM, "4h", (3, 8, 3, 5)), (_HEADER, "f", (float("nan"),))
            ),
        ),
        Case("a folder", {f"{_NAME}.nii/x": b""}, read),
    ]
    for name, edit in _BAD:
        cases.append(_case(name, _edited(edit)))
        cases.append(_case(f"{name}, packed", _packed(_edited(edit)), ".nii.gz"))
    for spacing in spacings:
        edit = (_PIXDIM, "4f", (1.0, *spacing))
        cases.append(_case(f"a spacing of {spacing}", _edited(quaternion, edit)))
    named = ("000001_01_01_003-008", "000001_01_01_003-006", "000001_01_01_0-50000000", "x")
    for name in named:
        cases.append(Case(f"the name {name}", {f"{name}.nii": plain}, read_subvolume))
    good = Case("a sub-volume", {f"{_NAME}.nii.gz": packed}, read_subvolume, expected=_volume())
    return [*cases, good]


def draw(rng: np.random.Generator) -> Case:
    """Damaged bytes: of a packed file the checksum tells, of a plain one nothing has to."""
    way = rng.random()
    if way < 0.6:
        good = _packed(_plain())
        data, name = damage(rng, good)
        return _case(f"packed: {name}", data, ".nii.gz", expected=_value(), may_refuse=True)
    if way < 0.8:
        data, name = flip_bits(rng, _plain(), 0, _HEADER)
        ending, data = (".nii.gz", _packed(data)) if way < 0.7 else (".nii", data)
        return _case(f"header: {name}", data, ending, expected=ANY)
    data, name = damage(rng, _plain())
    return _case(name, data, expected=ANY)


KIND = Kind("NIfTI", known, draw)
