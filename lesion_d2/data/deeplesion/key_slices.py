"""DeepLesion in Detectron2's catalog (Yan et al., JMI 2018): one dict per key slice."""

import logging
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

import numpy as np
import pandas as pd
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..._programs import uncollected
from ...scans.png import png_size
from ...structures.boxes import set_first_pixel
from ...structures.lesion_types import COARSE_TYPES
from ..roots import resolve_root
from .csv_rows import (
    CSV_COLUMNS,
    FIRST_PIXEL,
    BadCells,
    are_empty,
    are_near,
    cut_boxes,
    first_pixel_of,
    integers,
    numbers,
    read_csv,
    spacings,
    windows,
)

logger = logging.getLogger(__name__)

#: Colors of the types in pictures.
COLORS = (
    (230, 25, 75),
    (245, 130, 48),
    (255, 225, 25),
    (60, 180, 75),
    (70, 240, 240),
    (0, 130, 200),
    (145, 30, 180),
    (240, 50, 230),
)
_SPLITS = {"train": 1, "val": 2, "test": 3}
_FOLDERS = {
    "deeplesion": "DeepLesion",
    "phantom": "phantom",
    "phantom_columns": "phantom_columns",
    "phantom_clinical": "phantom_clinical",
}
_UNUSED = ("Normalized_lesion_location", "Patient_gender", "Patient_age")
_LESION_COLUMNS = ("File_name", "Measurement_coordinates", "Bounding_boxes")
_COLUMNS = tuple(column for column in CSV_COLUMNS if column not in _UNUSED)
_THREADS, _PIECE = 16, 64  # threads that read headers, and files per task
_FILE_NAME = re.compile(r"([0-9]{1,9}_[0-9]{1,9}_[0-9]{1,9})_([0-9]{1,9})\.png")


@uncollected()  # all dicts are kept
def load_deeplesion(
    csv_file: str | os.PathLike,
    image_root: str | os.PathLike,
    split: str | None,
    *,
    coarse_types: bool = False,
    allow_missing: bool = False,
    first_pixel: float | None = None,
) -> list[dict]:
    """Read DeepLesion's annotations into Detectron2's dicts, one per key slice, in file order.

    In addition to Detectron2's ``file_name, image_id, height, width, annotations`` a dict has
    ``spacing`` (x, y, z) mm, ``slice_range`` (first, last), ``slice_index``, ``patient``,
    ``study``, ``series``, and ``window`` (low, high) HU. An annotation has ``bbox`` (XYXY_ABS,
    clipped to the image), ``bbox_mode``, ``category_id``, ``recist`` (x11, y11, x12, y12 of the
    long diameter, x21, y21, x22, y22 of the short one; pixels), ``diameters_mm`` (long, short),
    ``coarse_type`` (1..8, -1 unknown), and ``row``, its line number in the file, where the header
    is line 1.

    In all of these the center of an image's first pixel is (0, 0). In the file it is (1, 1), see
    :data:`~lesion_d2.data.deeplesion.csv_rows.FIRST_PIXEL`, which is subtracted from boxes and end
    points.

    Pixels are assumed to be square, as in DeepLesion: a diameter in mm is that in pixels times the
        mean of the x and y spacing. ``Image_size`` is read as width, height, the order of the
        file's other lists. Values of an image are taken from its first row. Rows marked as possibly
        noisy are dropped; those that repeat another row's slice, end points and box are kept. Rows
        without end points or diameters have no ``recist`` or ``diameters_mm``. All of these are
        counted in the log.

    Args:
        csv_file: DeepLesion's ``DL_info.csv``.
        image_root: the folder that contains ``<patient>_<study>_<series>/<slice>.png``.
        split: "train", "val" or "test"; None for all rows.
        coarse_types: use ``category_id`` 0..7 for the coarse types 1..8 instead of 0 for every
            lesion. Rows of unknown type are then skipped and counted in the log.
        allow_missing: skip images whose file is missing, and log their number.
        first_pixel: the file's coordinate of the center of the first pixel. None for 1 as in
            DeepLesion, or 0 if there is a ``phantom.json`` of a generated data set next to the
            file.

    Raises:
        FileNotFoundError: csv_file or image_root does not exist.
        ValueError: the split is unknown or empty, columns are missing or duplicate, or rows are
            invalid, including those whose image is also in another split. All errors are collected,
            also missing files, and the first 20 are shown.
    """
    _check_split(split)
    _check_exist(csv_file, image_root)
    frame = read_csv(csv_file, _COLUMNS)
    bad = BadCells(csv_file)
    frame, num_noisy = _select_rows(frame, split, bad)
    if first_pixel is None:
        first_pixel = first_pixel_of(csv_file)
    table = _parse_rows(frame, os.fspath(image_root), first_pixel, bad)
    found = _find_files(frame, table, bad, allow_missing)
    bad.raise_if_any()

    known = table["coarse_type"] > 0 if coarse_types else np.full(len(frame), True)
    left_out = f"{num_noisy} noisy rows"
    if coarse_types:
        left_out += f", {(~known).sum()} rows of unknown type"
    if allow_missing:
        left_out += f", {len(set(table['path'][~found]))} images whose files are missing"
    dicts = _to_dicts({name: values[found & known] for name, values in table.items()}, coarse_types)
    source = f"{csv_file}, split {split!r}"
    if not dicts:
        raise ValueError(f"{source}: no lesions left, expected at least one (left out: {left_out})")
    kept = frame[found & known]
    num_repeated = kept.duplicated(list(_LESION_COLUMNS)).sum()
    alone = np.isnan([table[key][found & known, 0] for key in ("recist", "diameters_mm")])
    logger.info(
        f"{source}: {len(kept)} lesions on {len(dicts)} key slices, without {left_out}; "
        f"{num_repeated} rows repeat an earlier one; coordinates start at {first_pixel:g}"
        + (f"; {alone.any(axis=0).sum()} rows have boxes without diameters" if alone.any() else "")
    )
    return dicts


def register_deeplesion(
    name: str,
    root: str,
    split: str | None,
    *,
    coarse_types: bool = False,
    first_pixel: float | None = None,
) -> None:
    """Register a data set in DeepLesion's layout with Detectron2; it is read on first use.

    It supports all options of :mod:`lesion_d2.data.dataset_options`.

    Args:
        name: its name in ``DatasetCatalog``.
        root: the folder with ``DL_info.csv`` and ``Images_png``. ``$DETECTRON2_DATASETS`` in it is
            expanded when the data set is read; it defaults to "datasets".
        split: "train", "val" or "test"; None for all rows.
        coarse_types: use eight categories instead of one, see :func:`load_deeplesion`.
        first_pixel: see :func:`load_deeplesion`: None for DeepLesion and generated data sets, a
            number for your own file with other coordinates. Result files use the coordinates of
            this file.

    Raises:
        ValueError: the split is unknown.
        AssertionError: the name is already registered (Detectron2's check).
    """
    _check_split(split)
    load = partial(_load_registered, name, root, split, coarse_types, first_pixel)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        **lesion_classes(coarse_types),
        evaluator_type="lesion",
        can_miss_images=True,
        can_hide_annotations=True,
        can_exclude_volumes=True,
        can_be_prepared=True,
    )


def _load_registered(
    name: str,
    root: str,
    split: str | None,
    coarse_types: bool,
    first_pixel: float | None,
    *,
    allow_missing: bool = False,
) -> list[dict]:
    root = resolve_root(root)
    csv_file = os.path.join(root, "DL_info.csv")
    if first_pixel is None:
        first_pixel = first_pixel_of(csv_file)
    dicts = load_deeplesion(
        csv_file,
        os.path.join(root, "Images_png"),
        split,
        coarse_types=coarse_types,
        allow_missing=allow_missing,
        first_pixel=first_pixel,
    )
    set_first_pixel(name, first_pixel)
    return dicts


def lesion_classes(coarse_types: bool) -> dict[str, list]:
    """Return metadata of the categories: the eight coarse types, or one for all lesions."""
    return {
        "thing_classes": list(COARSE_TYPES) if coarse_types else ["lesion"],
        "thing_colors": list(COLORS) if coarse_types else [COLORS[2]],
    }


def _register_builtin() -> None:
    for split in _SPLITS:
        for name, folder in _FOLDERS.items():
            first_pixel = FIRST_PIXEL if name == "deeplesion" else 0.0
            _register_once(f"{name}_{split}", folder, split, first_pixel)
    _register_once("deeplesion_sample", "deeplesion_sample", None, FIRST_PIXEL)


def _register_once(name: str, folder: str, split: str | None, first_pixel: float) -> None:
    if name not in DatasetCatalog:  # may be registered if this module is imported again
        root = f"$DETECTRON2_DATASETS/{folder}"
        register_deeplesion(name, root, split, first_pixel=first_pixel)


def _check_split(split: str | None) -> None:
    if split is not None and split not in _SPLITS:
        raise ValueError(f"found split {split!r}, expected one of {[*_SPLITS, None]}")


def _check_exist(csv_file: str | os.PathLike, image_root: str | os.PathLike) -> None:
    hint = (
        "DETECTRON2_DATASETS (currently "
        f"{os.getenv('DETECTRON2_DATASETS', 'not set: datasets')}) is the folder of data sets"
    )
    if not os.path.isfile(csv_file):
        raise FileNotFoundError(f"{csv_file}: no such annotation file; {hint}")
    if not os.path.isdir(image_root):
        raise FileNotFoundError(f"{image_root}: no such folder of images; {hint}")


def _select_rows(frame: pd.DataFrame, split: str | None, bad: BadCells) -> tuple[pd.DataFrame, int]:
    """The split's rows without noisy ones, and the number of noisy ones."""
    code = numbers(frame, "Train_Val_Test", 1, bad)[:, 0]
    bad.add(frame["Train_Val_Test"], ~np.isin(code, list(_SPLITS.values())), "1, 2 or 3")
    noisy = numbers(frame, "Possibly_noisy", 1, bad)[:, 0]
    bad.add(frame["Possibly_noisy"], ~np.isin(noisy, (0, 1)), "0 or 1")
    in_split = np.full(len(frame), True) if split is None else code == _SPLITS[split]
    _check_one_split(frame[noisy != 1], code[noisy != 1], in_split[noisy != 1], bad)
    return frame[in_split & (noisy != 1)], int((in_split & (noisy == 1)).sum())


def _check_one_split(
    frame: pd.DataFrame, code: np.ndarray, in_split: np.ndarray, bad: BadCells
) -> None:
    """Report rows whose image is in the wanted split and in another one."""
    names = frame["File_name"]
    wanted = names.isin(set(names[in_split])).to_numpy(bool)
    first = pd.Series(code).groupby(names.to_numpy(), sort=False).transform("first").to_numpy()
    for row in np.flatnonzero(wanted & (code != first) & np.isfinite(code)):
        expected = f"{first[row]:g}, the split of an earlier row of its image"
        bad.add(frame["Train_Val_Test"].iloc[[row]], np.array([True]), expected)


def _parse_rows(
    frame: pd.DataFrame, image_root: str, first_pixel: float, bad: BadCells
) -> dict[str, np.ndarray]:
    """Parse and check columns; returns arrays with one entry per row."""
    table = {
        "row": frame.index.to_numpy(),
        "patient": integers(frame, "Patient_index", 1, bad)[:, 0],
        "study": integers(frame, "Study_index", 1, bad)[:, 0],
        "series": integers(frame, "Series_ID", 1, bad)[:, 0],
        "slice_index": integers(frame, "Key_slice_index", 1, bad)[:, 0],
        "coarse_type": integers(frame, "Coarse_lesion_type", 1, bad)[:, 0],
        "slice_range": integers(frame, "Slice_range", 2, bad),
        "size": integers(frame, "Image_size", 2, bad),
        "recist": numbers(frame, "Measurement_coordinates", 8, bad, optional=True) - first_pixel,
        "spacing": spacings(frame, bad),
        "window": windows(frame, bad),
    }
    table["diameters_mm"] = _parse_diameters(frame, table, bad)
    _check_values(frame, table, bad)
    table["path"] = _parse_file_names(frame, table["slice_index"], image_root, bad)
    table["bbox"] = _parse_boxes(frame, table["size"], first_pixel, bad)
    return table


def _parse_diameters(
    frame: pd.DataFrame, table: dict[str, np.ndarray], bad: BadCells
) -> np.ndarray:
    """Long and short diameter, N x 2 in mm; NaN if missing."""
    diameters = numbers(frame, "Lesion_diameters_Pixel_", 2, bad, optional=True)
    diagonal = np.hypot(*_limits(table["size"]).T)[:, None]
    is_bad = ((diameters < 0) | (diameters > diagonal)).any(axis=1)
    bad.add(
        frame["Lesion_diameters_Pixel_"],
        is_bad,
        "2 lengths in pixels, none below 0 or above the image's diagonal",
    )
    return diameters * table["spacing"][:, :2].mean(axis=1, keepdims=True)


def _limits(size: np.ndarray) -> np.ndarray:
    """N x 2 (width, height) as limits; none for invalid sizes, which are reported separately."""
    return np.where(size > 0, size, np.inf)


def _check_values(frame: pd.DataFrame, table: dict[str, np.ndarray], bad: BadCells) -> None:
    first, last = table["slice_range"].T
    bad.add(frame["Slice_range"], first > last, "first <= last")
    bad.add(frame["Image_size"], (table["size"] <= 0).any(axis=1), "a positive width and height")
    ends = table["recist"].reshape(-1, 4, 2)
    cells = frame["Measurement_coordinates"]
    are_ends = are_near(ends, _limits(table["size"])) | are_empty(cells)
    bad.add(cells, ~are_ends, "end points inside the image")
    is_type = np.isin(table["coarse_type"], (-1, *range(1, len(COARSE_TYPES) + 1)))
    bad.add(frame["Coarse_lesion_type"], ~is_type, "-1 or 1 to 8")


def _parse_boxes(
    frame: pd.DataFrame, size: np.ndarray, first_pixel: float, bad: BadCells
) -> np.ndarray:
    """Bounding boxes, N x 4 XYXY in pixels, clipped to the image."""
    cells = frame["Bounding_boxes"]
    boxes = numbers(frame, "Bounding_boxes", 4, bad) - first_pixel
    bad.add(cells, (boxes[:, 2:] <= boxes[:, :2]).any(axis=1), "x1 < x2 and y1 < y2")
    cut, is_inside = cut_boxes(boxes, _limits(size))
    bad.add(cells, ~is_inside, "a box inside the image")
    return cut


def _parse_file_names(
    frame: pd.DataFrame, slice_index: np.ndarray, image_root: str, bad: BadCells
) -> np.ndarray:
    """Paths of the key slices' files, N."""
    names = frame["File_name"]
    matches = [_FILE_NAME.fullmatch(name) for name in names]
    bad.add(names, np.array([m is None for m in matches], bool), "<p>_<s>_<r>_<slice>.png")
    numbers = [
        index if m is None else int(m[2]) for m, index in zip(matches, slice_index, strict=True)
    ]
    bad.add(frame["Key_slice_index"], numbers != slice_index, "the slice number of File_name")
    paths = ["" if m is None else os.path.join(image_root, m[1], f"{m[2]}.png") for m in matches]
    return np.array(paths, dtype=object)


def _find_files(
    frame: pd.DataFrame, table: dict[str, np.ndarray], bad: BadCells, allow_missing: bool
) -> np.ndarray:
    """Whether each row's file exists, N bool; each distinct file's header is read once."""
    names, paths = frame["File_name"], table["path"]
    size_of = _file_sizes({path for path in paths if path})
    sizes = [size_of.get(path) for path in paths]
    path_of = dict(zip(names, paths, strict=True))
    found = np.array([size is not None for size in sizes], dtype=bool)
    if not allow_missing:
        bad.add(names, ~found, "the key slice's PNG", lambda name: f"no file {path_of[name]}")
    is_read = np.array([isinstance(size, tuple) for size in sizes], dtype=bool)
    bad.add(names, found & ~is_read, "a slice", lambda name: size_of[path_of[name]])
    rows = np.flatnonzero(is_read)
    actual = np.array([sizes[row] for row in rows]).reshape(-1, 2)
    for row in rows[(actual != table["size"][rows]).any(axis=1)]:
        expected = "{}, {}, the size of {}".format(*sizes[row], paths[row])
        bad.add(frame["Image_size"].iloc[[row]], np.array([True]), expected)
    return found


def _file_sizes(paths: set[str]) -> dict[str, tuple[int, int] | str | None]:
    """The result of :func:`_file_size` for each path.

    Reading a header takes no more CPU time than checking the file's existence. Threads overlap the
    latency of network disks.
    """
    paths = sorted(paths)
    pieces = [paths[i : i + _PIECE] for i in range(0, len(paths), _PIECE)]
    with ThreadPoolExecutor(_THREADS) as threads:
        sizes = threads.map(lambda piece: [_file_size(path) for path in piece], pieces)
        return dict(zip(paths, chain.from_iterable(sizes), strict=True))


def _file_size(path: str) -> tuple[int, int] | str | None:
    """Width and height of a slice, the error of its file, or None if it does not exist."""
    try:
        height, width = png_size(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        return str(error)
    return width, height


def _to_dicts(table: dict[str, np.ndarray], coarse_types: bool) -> list[dict]:
    images: dict[str, dict] = {}
    names = list(table)
    for values in zip(*(column.tolist() for column in table.values()), strict=True):
        row = dict(zip(names, values, strict=True))
        if row["path"] not in images:
            images[row["path"]] = _image_dict(row)
        images[row["path"]]["annotations"].append(_annotation(row, coarse_types))
    return list(images.values())


def _image_dict(row: dict) -> dict:
    folder, name = os.path.split(row["path"])
    width, height = row["size"]
    return {
        "file_name": row["path"],
        "image_id": f"{os.path.basename(folder)}_{os.path.splitext(name)[0]}",
        "height": height,
        "width": width,
        "spacing": tuple(row["spacing"]),
        "slice_range": tuple(row["slice_range"]),
        "slice_index": row["slice_index"],
        "patient": row["patient"],
        "study": row["study"],
        "series": row["series"],
        "window": tuple(row["window"]),
        "annotations": [],
    }


def _annotation(row: dict, coarse_types: bool) -> dict:
    annotation = {
        "bbox": row["bbox"],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": row["coarse_type"] - 1 if coarse_types else 0,
        "recist": row["recist"],
        "diameters_mm": tuple(row["diameters_mm"]),
        "coarse_type": row["coarse_type"],
        "row": row["row"],
    }
    for key in ("recist", "diameters_mm"):
        if math.isnan(annotation[key][0]):
            del annotation[key]
    return annotation


_register_builtin()
