"""DICOM series: elements, pixels, damaged bytes."""

import io
import zipfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from lesion_d2.scans import read_scan
from lesion_d2.scans.writing import write_dicom

import numpy as np
import pydicom

from ..case import ANY, Case, Kind
from ..damage import damage

_SPACING = (0.7, 0.8, 2.5)


@cache
def _volume() -> np.ndarray:
    volume = np.random.default_rng(7).integers(-1000, 1500, (4, 6, 8))
    return volume.astype(np.int16)


@cache
def _files() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        files = write_dicom(Path(folder), _volume(), _SPACING)
        return {f"scan/{file.name}": file.read_bytes() for file in files}


def read(folder: Path) -> list:
    """The folder's scan."""
    scan = read_scan(folder / "scan")
    return [scan.volume, [round(x, 5) for x in scan.spacing]]


def _read_archive(folder: Path) -> list:
    scan = read_scan(folder / "scan.zip")
    return [scan.volume, [round(x, 5) for x in scan.spacing]]


def _value() -> list:
    return [_volume(), list(_SPACING)]


def _case(name: str, files: dict[str, bytes], **options) -> Case:
    return Case(name, files, read, **options)


def _edited(number: int | None, edit) -> dict[str, bytes]:
    """The files with one slice, or all, edited."""
    files = dict(_files())
    for index, (name, data) in enumerate(files.items()):
        if number in (None, index):
            dataset = pydicom.dcmread(io.BytesIO(data))
            edit(dataset)
            stream = io.BytesIO()
            dataset.save_as(stream)
            files[name] = stream.getvalue()
    return files


def _set(keyword: str, value: object):
    def edit(dataset: pydicom.Dataset) -> None:
        if value is None:
            del dataset[keyword]
        else:
            dataset[keyword].value = value

    return edit


# Elements of all slices that make no scan.
_BAD_SERIES = (
    ("Rows", 0),
    ("Rows", 65535),
    ("Rows", None),
    ("Columns", 65535),
    ("Columns", 7),
    ("BitsAllocated", 7),
    ("BitsAllocated", 64),
    ("BitsStored", 40),
    ("SamplesPerPixel", 3),
    ("PixelSpacing", [0, 0]),
    ("PixelSpacing", [-1, -1]),
    ("PixelSpacing", [1e-9, 1e-9]),
    ("PixelSpacing", None),
    ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0]),
    ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
    ("ImageOrientationPatient", None),
    ("ImagePositionPatient", None),
    ("PixelData", b""),
    ("PixelData", b"\x00\x01" * 10),
    ("PixelData", None),
    ("RescaleSlope", 0),
    ("RescaleSlope", 1e30),
    ("Modality", "MR"),
)
# Of one slice alone.
_BAD_SLICE = (
    ("Rows", 5),
    ("PixelSpacing", [9, 9]),
    ("ImagePositionPatient", [500, 500, 500]),
    ("ImageOrientationPatient", [0, 1, 0, 1, 0, 0]),
    ("PixelData", b"\x00"),
    ("RescaleSlope", 0),
)


def known() -> list[Case]:
    """What was found."""
    files = _files()
    names = list(files)
    cases = [
        _case("as it should be", files, expected=_value()),
        _case("another order", dict(reversed(files.items())), expected=_value()),
        _case("a note beside", {**files, "scan/note.txt": b"x"}, expected=_value()),
        _case(
            "a slice twice",
            {**files, "scan/again.dcm": files[names[1]]},
            expected=_value(),
            may_refuse=True,
        ),
        _case("no slices", {"scan/note.dcm": b"x"}),
        _case("empty files", dict.fromkeys(names, b"")),
        _case("a gap", {n: d for n, d in files.items() if n != names[1]}, expected=ANY),
        # One is read, and the scan's messages tell of the others.
        _case("one place", _edited(None, _set("ImagePositionPatient", [0, 0, 0])), expected=ANY),
        _case("only preambles", dict.fromkeys(names, bytes(128) + b"DICM")),
        _archive("an archive", files, expected=_value()),
        _archive(
            "an archive of paths above",
            {f"../../{n}": d for n, d in files.items()},
            expected=_value(),
            may_refuse=True,
        ),
        Case("no archive", {"scan.zip": b"PK\x03\x04x"}, _read_archive),
        Case("an archive of zeros", {"scan.zip": _bomb()}, _read_archive, heavy=True),
    ]
    for keyword, value in _BAD_SERIES:
        name = f"{keyword} {'removed' if value is None else str(value)[:20]}"
        cases.append(_case(name, _edited(None, _set(keyword, value))))
    for keyword, value in _BAD_SLICE:
        name = f"{keyword} {str(value)[:20]} in one slice"
        cases.append(_case(name, _edited(1, _set(keyword, value))))
    for index in range(4):
        half = {**files, names[index]: files[names[index]][:-40]}
        cases.append(_case(f"slice {index} cut off", half))
    return cases


def _archive(name: str, files: dict[str, bytes], **options) -> Case:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return Case(name, {"scan.zip": stream.getvalue()}, _read_archive, **options)


@cache
def _bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(128) + b"DICM" + bytes(2**27))
    return stream.getvalue()


def draw(rng: np.random.Generator) -> Case:
    """Damaged bytes of one slice: nothing has to tell, but nothing breaks either."""
    files = dict(_files())
    name = list(files)[int(rng.integers(len(files)))]
    if rng.random() < 0.3:
        keyword, value = _BAD_SERIES[int(rng.integers(len(_BAD_SERIES)))]
        text = f"{keyword} {'removed' if value is None else str(value)[:20]} in {name}"
        number = list(files).index(name)
        return _case(text, _edited(number, _set(keyword, value)), expected=ANY)
    data, text = damage(rng, files[name])
    return _case(f"{name}: {text}", {**files, name: data}, expected=ANY)


KIND = Kind("DICOM", known, draw)
