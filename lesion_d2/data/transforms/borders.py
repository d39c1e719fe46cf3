"""The part of a CT slice that shows the body, without the black borders around it."""

import math
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache

import cv2
import numpy as np

from ..slices.ct import read_slice
from ..slices.slice_formats import format_of

#: Body is what lies above this, in HU: 32000 in DeepLesion's files, as in 3DCE's published code.
BODY_THRESHOLD = -768
# Side of the opening's square, in mm: the 7 pixels of 3DCE's published code at its 0.8 mm a pixel.
# Rails of a table in DeepLesion are up to 5.2 mm thick.
_OPENING = 5.6
_MARGIN = 5  # pixels, as DeepLesion's boxes lie around lesions
_MAX_VOLUMES = 1024  # of which the extents are kept


def body_extent(hu: np.ndarray, pixel_spacing: tuple[float, float]) -> tuple[int, int, int, int]:
    """Find the part of a slice that shows the body (3DCE's preprocessing, "black borders cut").

    The papers say no more than that. We take the bounding box of what a morphological opening
    leaves of the pixels above ``BODY_THRESHOLD``, without thin things such as the table, as 3DCE's
    published code does. That code opens slices of any resolution by 7 pixels, where we open by the
    same length in mm; and it has no margin, where ours keeps boxes around lesions of the skin
    whole. A thicker part of a table stays, in either.

    Args:
        hu: (H, W) int16, in HU.
        pixel_spacing: x and y, in mm.

    Returns:
        (x0, y0, x1, y1) in whole pixels, ends exclusive; the whole slice where there is no body.
    """
    return _with_margin(_extent(hu, pixel_spacing), hu.shape)


@lru_cache(_MAX_VOLUMES)
def volume_extent(
    folder: str, slice_range: tuple[int, int] | None, pixel_spacing: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Find the part that shows the body on any slice of a volume: one crop for all of them.

    The extents of the last 1,024 volumes are kept, as a volume's slices come one by one: each
    process (worker of a data loader) that sees a volume reads all of it once, beside the reading
    for its samples, and takes no notice of files that are rewritten afterwards. Data sets are
    written whole before they are read and stay as they are while a run lasts.

    Args:
        folder: of the slices, ``<slice number>.png``; or their volume's file.
        slice_range: first and last slice number that count; None for all.
        pixel_spacing: x and y, in mm.

    Returns:
        The union of :func:`body_extent` of the slices. Those without a body add nothing to it; the
        whole slice where none has one.

    Raises:
        FileNotFoundError: there is no such slice.
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
    """The union of :func:`body_extent` of slices, (H, W) int16 in HU each, one at least.

    Those without a body add nothing to it; the whole slice where none has one.
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
    """Slice number -> path of all files ``<slice number>.png`` in a series' folder, in order.

    Of a volume's file or a picture in place of a folder, see
    :mod:`lesion_d2.data.slices.slice_formats`.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    return format_of(folder).files(folder)


def find_body(hu: np.ndarray, opening: int = 7) -> np.ndarray:
    """The largest thing that is denser than -300 HU, with what it encloses.

    Args:
        hu: H x W.
        opening: side in pixels of a square; what it does not fit into is left out.

    Returns:
        H x W bool; nothing where no pixel is as dense.
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
    # What touches the slice's border has to be as thick inside as anything else.
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
    """The first odd number from a length on: OpenCV's opening by an even one moves what is left."""
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
