"""Crops a CT slice to the body, without the black borders."""

import math
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache

import cv2
import numpy as np

from ..slices.ct import read_slice
from ..slices.slice_formats import format_of

#: Threshold of the body in HU: 32000 in DeepLesion's files, as in 3DCE's published code.
BODY_THRESHOLD = -768
# Side of the morphological opening in mm: the 7 pixels of 3DCE's published code, at 0.8 mm per
# pixel. Table rails in DeepLesion are up to 5.2 mm thick.
_OPENING = 5.6
_MARGIN = 5  # pixels, the margin of DeepLesion's boxes around lesions
_MAX_VOLUMES = 1024  # number of cached extents


def body_extent(hu: np.ndarray, pixel_spacing: tuple[float, float]) -> tuple[int, int, int, int]:
    """Find the body on a slice (3DCE's preprocessing, "black borders cut").

    The papers give no details. As in 3DCE's published code, we threshold at ``BODY_THRESHOLD``,
    remove thin structures such as the table by a morphological opening, and take the bounding box.
    That code opens by 7 pixels at any resolution, we by the same length in mm; and we add a margin,
    so that boxes of skin lesions are not cut. Thicker parts of a table remain in both.

    Args:
        hu: (H, W) int16, in HU.
        pixel_spacing: x and y, in mm.

    Returns:
        (x0, y0, x1, y1) in integer pixels, ends exclusive; the whole slice if there is no body.
    """
    return _with_margin(_extent(hu, pixel_spacing), hu.shape)


@lru_cache(_MAX_VOLUMES)
def volume_extent(
    folder: str, slice_range: tuple[int, int] | None, pixel_spacing: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Find one crop for all slices of a volume: the union of their body extents.

    The extents of the last 1,024 volumes are cached, as slices of a volume are requested one by
    one. Each process (worker of a data loader) reads every volume once in full, in addition to the
    reads for its samples, and does not notice files that change later: data sets must not change
    during a run.

    Args:
        folder: folder of the slices, ``<slice number>.png``, or the volume's file.
        slice_range: first and last slice number to use; None for all.
        pixel_spacing: x and y, in mm.

    Returns:
        The union of :func:`body_extent` over the slices that show a body; the whole slice if none
        does.

    Raises:
        FileNotFoundError: the range contains no slice.
        ValueError: a file is damaged (see :func:`read_slice`), or slices differ in size.
    """
    first, last = slice_range if slice_range is not None else (0, math.inf)
    files = {n: file for n, file in slice_files(folder).items() if first <= n <= last}
    if not files:
        raise FileNotFoundError(f"{folder}: found no slice of {first} to {last}, expected one")
    return common_extent(_read_same_size(files.values()), pixel_spacing)


def common_extent(
    slices: Iterable[np.ndarray], pixel_spacing: tuple[float, float]
) -> tuple[int, int, int, int]:
    """The union of :func:`body_extent` over one or more slices, each (H, W) int16 in HU.

    Slices without a body are ignored; the whole slice if none shows one.
    """
    found = np.empty((0, 4), dtype=int)
    for hu in slices:
        extent = _extent(hu, pixel_spacing)
        if extent is not None:
            found = np.vstack([found, extent])
    if len(found) == 0:
        return _with_margin(None, hu.shape)
    return _with_margin((*found[:, :2].min(axis=0), *found[:, 2:].max(axis=0)), hu.shape)


def _read_same_size(files: Iterable[str]) -> Iterator[np.ndarray]:
    shape = None
    for file in files:
        hu = read_slice(file, shape)
        shape = hu.shape
        yield hu


def slice_files(folder: str | os.PathLike) -> dict[int, str]:
    """Slice number -> path for all files ``<slice number>.png`` in a series' folder, sorted.

    For a volume's file or a picture instead of a folder, see
    :mod:`lesion_d2.data.slices.slice_formats`.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    return format_of(folder).files(folder)


def find_body(hu: np.ndarray, opening: int = 7) -> np.ndarray:
    """Segment the body: the largest component above -300 HU, with its holes filled.

    Args:
        hu: H x W.
        opening: side in pixels of the square of a morphological opening.

    Returns:
        H x W bool; empty if no pixel is above the threshold.
    """
    kernel = np.ones((opening, opening), np.uint8)
    dense = cv2.morphologyEx(np.uint8(hu > -300), cv2.MORPH_OPEN, kernel)
    number, labels, stats, _ = cv2.connectedComponentsWithStats(dense)
    body = np.zeros(hu.shape, np.uint8)
    if number > 1:
        largest = np.uint8(labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        outlines, _ = cv2.findContours(largest, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(body, outlines, -1, 1, cv2.FILLED)
    return body.astype(bool)


def _extent(hu: np.ndarray, pixel_spacing: tuple[float, float]) -> tuple[int, int, int, int] | None:
    """The bounding box of the body without a margin, ends exclusive; None without a body."""
    kernel = np.ones([_odd_number(_OPENING / s) for s in (pixel_spacing[1], pixel_spacing[0])])
    # Pad, so that the opening treats structures at the slice's border like all others.
    body = cv2.morphologyEx(
        (hu > BODY_THRESHOLD).view(np.uint8),
        cv2.MORPH_OPEN,
        kernel.astype(np.uint8),
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    x, y, width, height = cv2.boundingRect(body)
    return (x, y, x + width, y + height) if width else None


def _odd_number(length: float) -> int:
    """The smallest odd integer >= length: OpenCV's opening by an even one shifts the result."""
    return 2 * max(0, math.ceil((length - 1) / 2 - 1e-6)) + 1


def _with_margin(
    extent: tuple[int, int, int, int] | None, shape: tuple[int, int]
) -> tuple[int, int, int, int]:
    height, width = shape
    if extent is None:
        return 0, 0, width, height
    x0, y0, x1, y1 = map(int, extent)
    return (
        max(0, x0 - _MARGIN),
        max(0, y0 - _MARGIN),
        min(width, x1 + _MARGIN),
        min(height, y1 + _MARGIN),
    )
