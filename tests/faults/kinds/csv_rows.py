"""``DL_info.csv``: cells, columns and encodings."""

import csv
import io
from functools import cache
from pathlib import Path

from lesion_d2.data.deeplesion.key_slices import load_deeplesion

import cv2
import numpy as np

from ..case import REFUSED, Case, Kind

HEIGHT, WIDTH = 20, 24

_NAMES = ("000001_01_01_010.png", "000001_01_01_012.png", "000002_01_03_007.png")


_GOOD = {
    "File_name": _NAMES[0],
    "Patient_index": "1",
    "Study_index": "1",
    "Series_ID": "1",
    "Key_slice_index": "10",
    "Measurement_coordinates": "6, 8, 14, 8, 10, 5, 10, 11",
    "Bounding_boxes": "3.5, 2.5, 16.5, 13.5",
    "Lesion_diameters_Pixel_": "8, 6",
    "Normalized_lesion_location": "0.4, 0.5, 0.6",
    "Coarse_lesion_type": "3",
    "Possibly_noisy": "0",
    "Slice_range": "8, 12",
    "Spacing_mm_px_": "0.7, 0.7, 2.5",
    "Image_size": f"{WIDTH}, {HEIGHT}",
    "DICOM_windows": "-175, 275",
    "Patient_gender": "F",
    "Patient_age": "62",
    "Train_Val_Test": "1",
}


class CSV:
    """Rows as DeepLesion has them, for slices of 24 x 20 pixels."""

    @staticmethod
    def row(**cells: str) -> dict[str, str]:
        """A good row with other cells; those that its name of a file tells follow it."""
        patient, study, series, slice_number = cells.get("File_name", _NAMES[0])[:-4].split("_")
        told = {"Patient_index": patient, "Study_index": study, "Series_ID": series}
        told = {key: str(int(value)) for key, value in told.items()}
        return {**_GOOD, **told, "Key_slice_index": str(int(slice_number)), **cells}

    @staticmethod
    def text(rows: list[dict[str, str]], **options) -> bytes:
        """The file of rows; a comma list is quoted."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n", **options)
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue().encode()


@cache
def pixels(seed: int = 0) -> np.ndarray:
    """Values of a slice as its PNG has them."""
    hu = np.random.default_rng(seed).integers(-1024, 1500, (HEIGHT, WIDTH))
    return (hu + 32768).astype(np.uint16)


@cache
def png_bytes() -> bytes:
    """The PNG of a slice."""
    return cv2.imencode(".png", pixels())[1].tobytes()


def lesion_mask() -> np.ndarray:
    """The mask of a slice's lesion."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:9, 6:12] = True
    return mask


def good_rows() -> list[dict[str, str]]:
    """Three lesions on two slices of one patient, and one of another."""
    return [
        CSV.row(),
        CSV.row(
            Measurement_coordinates="16, 15, 20, 15, 18, 13, 18, 17", Bounding_boxes="13,10,23,20"
        ),
        CSV.row(File_name=_NAMES[1], Coarse_lesion_type="-1"),
        CSV.row(File_name=_NAMES[2], Spacing_mm_px_="0.8, 0.8, 5", Slice_range="5, 9"),
    ]


def png_files() -> dict[str, bytes]:
    """The slices of all rows, below a data set's folder."""
    return {f"Images_png/{n[:-8]}/{n[-7:]}": png_bytes() for n in _NAMES}


def read(folder: Path) -> list:
    """What training takes of each annotation."""
    return _digest(load_deeplesion(folder / "DL_info.csv", folder / "Images_png", "train"))


def _digest(images: list[dict]) -> list:
    keys = ("image_id", "height", "width", "spacing", "slice_range", "window", "patient")
    parts = ("bbox", "category_id", "recist", "diameters_mm", "coarse_type", "row")
    return [
        [
            [_plain(image[key]) for key in keys],
            [[_plain(a.get(key)) for key in parts] for a in image["annotations"]],
        ]
        for image in images
    ]


def _plain(value: object) -> object:
    if isinstance(value, (list, tuple, np.ndarray)):
        return [round(float(x), 6) for x in value]
    return str(value)


def slow_value(rows: list[dict[str, str]]) -> list:
    """What :func:`read` has to find, worked out cell by cell."""
    images: dict[str, list] = {}
    for line, row in enumerate(rows, start=2):
        if row["Possibly_noisy"].strip() == "1" or row["Train_Val_Test"].strip() != "1":
            continue
        cells = {k: [float(x) for x in v.split(",")] for k, v in row.items() if _is_list(k)}
        spacing = cells["Spacing_mm_px_"]
        image = [
            row["File_name"][:-4],
            str(HEIGHT),
            str(WIDTH),
            spacing,
            cells["Slice_range"],
            cells["DICOM_windows"],
            str(int(row["Patient_index"])),
        ]
        image = [[round(x, 6) for x in v] if isinstance(v, list) else v for v in image]
        box = [x - 1 for x in cells["Bounding_boxes"]]
        low, high = [-0.5] * 4, [WIDTH - 0.5, HEIGHT - 0.5] * 2
        box = [min(max(x, a), b) for x, a, b in zip(box, low, high, strict=True)]
        mean = (spacing[0] + spacing[1]) / 2
        annotation = [
            [round(x, 6) for x in box],
            "0",
            [round(x - 1, 6) for x in cells["Measurement_coordinates"]],
            [round(x * mean, 6) for x in cells["Lesion_diameters_Pixel_"]],
            str(int(float(row["Coarse_lesion_type"]))),
            str(line),
        ]
        images.setdefault(row["File_name"], [image, []])[1].append(annotation)
    return list(images.values())


def _is_list(column: str) -> bool:
    return column in (
        "Measurement_coordinates",
        "Bounding_boxes",
        "Lesion_diameters_Pixel_",
        "Slice_range",
        "Spacing_mm_px_",
        "DICOM_windows",
    )


def _case(name: str, content: bytes, **options) -> Case:
    files = {"DL_info.csv": content, **png_files(), "outside/010.png": png_bytes()}
    return Case(name, files, read, **options)


# column -> cells that are none of its; told with the row.
_BAD = {
    "File_name": (
        "",
        "x",
        "../outside/010.png",
        "/etc/passwd",
        "000001_01_01_999.png",
        "1_1_1_\u0663.png",
    ),
    "Patient_index": ("", "x", "1.5", "nan", "1e400", "9" * 5000),
    "Key_slice_index": ("", "11", "-1", "1e30"),
    "Measurement_coordinates": ("1,2", "a,b,c,d,e,f,g,h", "nan," * 7 + "nan", "1e9," * 7 + "1e9"),
    "Bounding_boxes": (
        "",
        "1,2,3",
        "5,5,5,5",
        "9,9,1,1",
        "inf,1,2,3",
        "500,500,600,600",
        "1" * 5000,
    ),
    "Lesion_diameters_Pixel_": ("-1,-2", "1", "1e9,1", "x,y"),
    "Coarse_lesion_type": ("", "0", "9", "2.5", "bone"),
    "Possibly_noisy": ("", "2", "yes"),
    "Slice_range": ("", "12,8", "1", "a,b"),
    "Spacing_mm_px_": (
        "",
        "0,0,0",
        "-1,-1,1",
        "1e-9,1e-9,1",
        "nan,1,1",
        "0.7,0.7,1e6",
        "0.7,0.7,0",
    ),
    "Image_size": ("", "0,0", "-24,20", "20,24", "48,40", "1e9,1e9", "24"),
    "DICOM_windows": ("", "5,5", "9,1", "nan,1"),
    "Train_Val_Test": ("", "0", "4", "train"),
}
# Cells that say the same, and their column.
_SAME = {
    "Bounding_boxes": ("3.5,2.5,16.5,13.5", " 3.5 , 2.50, 16.5,13.5 ", "35e-1,2.5,1.65e1,13.5"),
    "Spacing_mm_px_": ("0.7,0.7,2.5", "+0.70,0.7,2.50"),
    "Possibly_noisy": ("0", " 0", "0.0"),
    "Normalized_lesion_location": ("", "x", "nan,nan,nan"),
    "Patient_age": ("", "old"),
}


def known() -> list[Case]:
    """Each bad cell, and files as other programs write them."""
    rows = good_rows()
    good, value = CSV.text(rows), slow_value(rows)
    cases = [_case("as it should be", good, expected=value)]
    for column, cells in _BAD.items():
        cases += [_bad_cell(column, cell, 1) for cell in cells]
    for column, cells in _SAME.items():
        for cell in cells:
            changed = [{**rows[0], column: cell}, *rows[1:]]
            cases.append(_case(f"{column} {cell[:20]!r}", CSV.text(changed), expected=value))
    header, _, body = good.decode().partition("\n")
    doubled = header.replace("Patient_age", "Bounding_boxes")
    other = [dict(reversed(list(row.items()))) for row in rows]
    two_splits = [*rows, CSV.row(Train_Val_Test="2", Bounding_boxes="4,4,9,9")]
    two_sizes = [rows[0], {**rows[1], "Image_size": "20, 24"}, *rows[2:]]
    semicolons = CSV.text(rows, delimiter=";")
    return [
        *cases,
        _case("columns in another order", CSV.text(other), expected=value),
        _case("CRLF", good.replace(b"\n", b"\r\n"), expected=value),
        _case("a byte order mark", b"\xef\xbb\xbf" + good, expected=value, may_refuse=True),
        _case("blank lines at the end", good + b"\n\n", expected=value),
        _case("duplicate columns", f"{doubled}\n{body}".encode()),
        _case(
            "a column without a name twice",
            f"{header.replace('Patient_age', '')}\n{body}".encode(),
            expected=value,
            may_refuse=True,
        ),
        _case("semicolons", semicolons),
        _case("no header", body.encode()),
        _case("only a header", f"{header}\n".encode()),
        _case("empty", b""),
        _case("zero bytes", bytes(100)),
        _case("UTF-16", good.decode().encode("utf-16")),
        _case("an open quote", good + b'"' + b"x" * 1000),
        _case("longer rows", good.replace(b"\n", b",1,2\n").replace(b",1,2", b"", 1)),
        _case(
            "a letter of Latin-1",
            good.replace(b"F,62", b"\xe4,62"),
            expected=value,
            may_refuse=True,
        ),
        _case("one image in two splits", CSV.text(two_splits), place="row"),
        _case("a second row of another size", CSV.text(two_sizes), place="row"),
        _case("a PNG", png_bytes()),
        Case("a folder", {"DL_info.csv/x": b"", "Images_png/x": b""}, read),
    ]


def _bad_cell(column: str, cell: str, index: int) -> Case:
    rows = good_rows()
    rows[index] = {**rows[index], column: cell}
    name = f"{column} {cell[:20]!r} in row {index + 2}"
    return _case(name, CSV.text(rows), place=f"row {index + 2}")


def draw(rng: np.random.Generator) -> Case:
    """A bad cell, a good one of another value, or a file that is cut off."""
    rows = good_rows()
    way = rng.random()
    if way < 0.4:
        column = list(_BAD)[int(rng.integers(len(_BAD)))]
        cell = _BAD[column][int(rng.integers(len(_BAD[column])))]
        return _bad_cell(column, cell, int(rng.integers(len(rows))))
    if way < 0.7:
        index = int(rng.integers(len(rows)))
        x, y = rng.integers(1, 12, 2).tolist()
        width, height = (rng.integers(4, 36, 2) / 4).tolist()
        box = f"{x},{y},{x + width:g},{y + height:g}"
        spacing = f"{rng.uniform(0.4, 1):.3f}"
        rows[index] = {**rows[index], "Bounding_boxes": box, "Possibly_noisy": str(int(way < 0.45))}
        for row in rows:
            if row["File_name"] == rows[index]["File_name"]:
                row["Spacing_mm_px_"] = f"{spacing},{spacing},5"
        return _case(f"row {index + 2} with {box}", CSV.text(rows), expected=slow_value(rows))
    good = CSV.text(rows)
    length = int(rng.integers(len(good)))
    kept = good[:length]
    ends = [n for n in range(1, len(rows) + 1) if kept.rstrip(b"\n") == _first(rows, n)]
    expected = slow_value(rows[: ends[0]]) if ends else REFUSED
    return _case(f"cut to {length} bytes", kept, expected=expected)


def _first(rows: list[dict[str, str]], number: int) -> bytes:
    return CSV.text(rows[:number]).rstrip(b"\n")


KIND = Kind("CSV", known, draw)
