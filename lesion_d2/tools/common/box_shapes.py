"""Boxes of lesions in pixels of a network's input, from data sets and CSV files."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.data.catalog import load_records
from lesion_d2.data.dataset_options import DatasetOptions
from lesion_d2.data.formats.csv_files import read_csv_table
from lesion_d2.data.transforms.augmentation import ResizeCT
from lesion_d2.structures.ignore_regions import lesions_of
from lesion_d2.visualization import truth_boxes

import numpy as np
import pandas as pd
from detectron2.config import CfgNode

BOX_COLUMNS = ("x1", "y1", "x2", "y2")
SIZE_COLUMNS = ("height", "width")
IMAGE_SIZE = (512, 512)


class ResizedBoxes(NamedTuple):
    """Boxes (N, 4) XYXY, and height and width (N, 2) of their images: pixels after the resize."""

    boxes: np.ndarray
    image_sizes: np.ndarray

    @property
    def wh(self) -> np.ndarray:
        """(N, 2) widths and heights."""
        return self.boxes[:, 2:] - self.boxes[:, :2]


def dataset_boxes(dataset: str, cfg: CfgNode, *, allow_missing: bool = False) -> ResizedBoxes:
    """Read the boxes of a registered data set, in pixels of the network's input.

    Args:
        dataset: its name in ``DatasetCatalog``.
        cfg: config with the resize of images.
        allow_missing: leave out images whose file is missing.

    Returns:
        The boxes; regions to ignore (``iscrowd``) are left out.

    Raises:
        ValueError: the data set is not registered or has no boxes, a box is empty, an image lacks
            the spacing that the config needs, or the config crops borders
            (``INPUT.CT.CROP_TO_BODY``) and sizes depend on the crop.
    """
    _check_config(cfg)
    found = []
    for record in load_records(dataset, DatasetOptions(allow_missing=allow_missing)):
        annotations = lesions_of(record.get("annotations", ()))
        if not annotations:
            continue
        where = f"data set {dataset!r}, image {record['image_id']}"
        boxes = truth_boxes({"annotations": annotations})
        rows = [a.get("row", number) for number, a in enumerate(annotations)]
        _check_boxes(boxes, rows, where, boxes)
        size, spacing = (record["height"], record["width"]), record.get("spacing")
        found.append(_resized(boxes, size, spacing, cfg, where))
    if not found:
        raise ValueError(f"data set {dataset!r}: found no boxes, expected at least one")
    return ResizedBoxes(*map(np.concatenate, zip(*found, strict=True)))


def csv_boxes(
    file: str | os.PathLike, cfg: CfgNode, *, image_size: Sequence[int] | None = None
) -> ResizedBoxes:
    """Read the boxes of a CSV file, in pixels of the network's input.

    Args:
        file: with the columns x1, y1, x2, y2 in pixels, and optionally height and width of the
            images.
        cfg: config with the resize of images.
        image_size: (height, width) of all images; 512 x 512 if neither this nor the file gives it.

    Returns:
        The boxes, in the order of the rows.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no CSV, a column is missing, no boxes, an empty box, image sizes given twice or
            not above 0, the config needs the spacing of the images, or it crops borders
            (``INPUT.CT.CROP_TO_BODY``) and sizes depend on the crop.
    """
    _check_config(cfg)
    table = _read_csv(file)
    boxes = _numbers(table, BOX_COLUMNS)
    _check_boxes(boxes, table.index, file, table[list(BOX_COLUMNS)].to_numpy())
    sizes = _image_sizes(file, table, image_size)
    resized = ResizedBoxes(np.empty((len(table), 4)), np.empty((len(table), 2)))
    for size in np.unique(sizes, axis=0):
        rows = (sizes == size).all(axis=1)
        found = _resized(boxes[rows], size.astype(int), None, cfg, file)
        for whole, part in zip(resized, found, strict=True):
            whole[rows] = part
    return resized


def _check_config(cfg: CfgNode) -> None:
    """Refuse a resize that depends on crops, because these are known only after reading slices."""
    ct = cfg.INPUT.CT
    if ct.CROP_TO_BODY and (ct.MAX_SIZE or not ct.PIXEL_SPACING):
        raise ValueError(
            "INPUT.CT.CROP_TO_BODY: found True, expected False if image sizes depend on the crop "
            "(INPUT.CT.IMAGE_SIZE, MAX_SIZE), because boxes are resized with whole slices here: "
            "pass INPUT.CT.CROP_TO_BODY False to get the sizes on whole slices"
        )


def _read_csv(file: str | os.PathLike) -> pd.DataFrame:
    """The columns that are read, as text; the index is the line number in the file."""
    expected = f"a CSV with the columns {', '.join(BOX_COLUMNS)}"
    table = read_csv_table(file, BOX_COLUMNS, expected)
    table = table[[c for c in (*BOX_COLUMNS, *SIZE_COLUMNS) if c in table.columns]]
    table = table[(table != "").any(axis=1)]
    if not len(table):
        raise ValueError(f"{file}: found no boxes, expected at least one row")
    return table


def _image_sizes(
    file: str | os.PathLike, table: pd.DataFrame, image_size: Sequence[int] | None
) -> np.ndarray:
    """Height and width of each row's image, (N, 2)."""
    found = [column for column in SIZE_COLUMNS if column in table.columns]
    if len(found) == 1:
        raise ValueError(f"{file}: found only the column {found[0]}, expected height and width")
    if found and image_size is not None:
        raise ValueError(f"{file}: found columns height and width, expected no --image-size")
    given = np.array(image_size or IMAGE_SIZE, dtype=float)
    sizes = _numbers(table, SIZE_COLUMNS) if found else np.tile(given, (len(table), 1))
    for row, size in zip(table.index, sizes, strict=True):
        if not all(side >= 1 and side == round(side) for side in size):
            where = f"{file}, row {row}" if found else "--image-size"
            raise ValueError(
                f"{where}: found an image of height {size[0]:g} and width {size[1]:g}, expected "
                "whole numbers above 0"
            )
    return sizes


def _numbers(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Columns as (N, len(columns)) floats, NaN for cells without a number."""
    numbers = [pd.to_numeric(table[column], errors="coerce") for column in columns]
    return np.stack([column.to_numpy(float) for column in numbers], axis=1)


def _check_boxes(
    boxes: np.ndarray, rows: Sequence[int], where: str | os.PathLike, cells: np.ndarray
) -> None:
    """Raise a ValueError that names the first bad row and shows its cells."""
    is_good = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    bad = np.flatnonzero(~is_good)
    if len(bad):
        raise ValueError(
            f"{where}, row {rows[bad[0]]}: found the box ({', '.join(map(str, cells[bad[0]]))}), "
            f"expected numbers with x1 < x2 and y1 < y2 (bad boxes: {len(bad)} of {len(boxes)})"
        )


def _resized(
    boxes: np.ndarray,
    size: Sequence[int],
    spacing: Sequence[float] | None,
    cfg: CfgNode,
    where: str | os.PathLike,
) -> ResizedBoxes:
    """Boxes (N, 4) XYXY after the resize of their image (H, W)."""
    ct = cfg.INPUT.CT
    if ct.PIXEL_SPACING and spacing is None:
        raise ValueError(
            f"{where}: found no pixel spacing, expected one for the config's "
            f"INPUT.CT.PIXEL_SPACING of {ct.PIXEL_SPACING:g}"
        )
    image = np.broadcast_to(np.int16(0), (*size, 1))  # only its shape counts
    resize = ResizeCT(ct.IMAGE_SIZE, ct.PIXEL_SPACING, max_size=ct.MAX_SIZE)
    transform = resize.get_transform(image, spacing)
    # The corner opposite to the origin gives the size of the resized image.
    size = transform.apply_coords(np.array([size[::-1]], float))[0, ::-1]
    return ResizedBoxes(transform.apply_box(boxes), np.tile(size, (len(boxes), 1)))
