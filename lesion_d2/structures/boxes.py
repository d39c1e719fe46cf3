"""Boxes of annotations: their mode, their coordinates in files, and invalid boxes."""

from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

_MODES = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)


def xyxy_box(annotation: Mapping) -> list[float]:
    """The box of an annotation in Detectron2's format, as XYXY.

    Args:
        annotation: with ``bbox`` and ``bbox_mode``.

    Returns:
        x1, y1, x2, y2 in pixels.

    Raises:
        ValueError: there is no ``bbox_mode``, or it is neither XYXY_ABS nor XYWH_ABS; or ``bbox``
            is not four numbers.
    """
    mode, box = annotation.get("bbox_mode"), annotation["bbox"]
    if mode not in _MODES:
        found = mode.name if isinstance(mode, BoxMode) else repr(mode)
        raise ValueError(f"found bbox_mode {found}, expected BoxMode.XYXY_ABS or XYWH_ABS")
    if len(box) != 4:
        raise ValueError(f"found bbox {box!r}, expected four numbers")
    x1, y1, x2, y2 = map(float, box)
    return [x1, y1, x2, y2] if mode == BoxMode.XYXY_ABS else [x1, y1, x1 + x2, y1 + y2]


def annotation_boxes(annotations: Iterable[Mapping]) -> np.ndarray:
    """:func:`xyxy_box` of each annotation, (n, 4) float64."""
    boxes = [xyxy_box(annotation) for annotation in annotations]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def mask_extent(mask: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns of the smallest window that has all pixels of a mask.

    Args:
        mask: H x W bool.

    Returns:
        ``mask[extent]`` is the window; None where the mask is empty.
    """
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask, dtype=bool).view(np.uint8))
    return (slice(y, y + height), slice(x, x + width)) if width else None


def first_pixel(dataset: str) -> float:
    """Coordinate of the first pixel's center in a registered data set's files; it is 0 in dicts.

    Known once the data set was loaded: 1 for DeepLesion
    (:data:`lesion_d2.data.deeplesion.csv_rows.FIRST_PIXEL`), and 0 unless its loader sets another.
    """
    return MetadataCatalog.get(dataset).get("first_pixel", 0.0)


def set_first_pixel(dataset: str, first_pixel: float) -> None:
    """Set the coordinate of an image's first pixel center in a data set's files.

    Loaders call this; in the dicts, the coordinate is always 0. Code that writes a data set's boxes
    to files, or reads them, converts coordinates with it.

    Args:
        dataset: its name in Detectron2's catalogs.
        first_pixel: 1 in DeepLesion's files.
    """
    metadata = MetadataCatalog.get(dataset)
    vars(metadata).pop("first_pixel", None)  # Detectron2 refuses to change a value
    metadata.set(first_pixel=first_pixel)


def moved_xywh(box: Sequence[float], offset: float) -> list[float]:
    """A box (x, y, width, height) shifted by an offset in x and y.

    Args:
        box: in pixels.
        offset: :func:`first_pixel` of the data set to convert to the coordinates of its files; the
            negative to convert from them.
    """
    x, y, width, height = box
    return [x + offset, y + offset, width, height]


#: Description of a valid box, for error messages.
EXPECTED_BOX = "finite numbers with no end before its start"


def bad_boxes(boxes: np.ndarray) -> np.ndarray:
    """Indices of invalid boxes: a number is not finite, or an end lies before its start.

    A box without area is valid.

    Args:
        boxes: (N, 4) X1Y1X2Y2 or (N, 6) X1Y1Z1X2Y2Z2.

    Returns:
        (m,) ascending.
    """
    dims = boxes.shape[1] // 2
    is_box = np.isfinite(boxes).all(axis=1) & (boxes[:, dims:] >= boxes[:, :dims]).all(axis=1)
    return np.flatnonzero(~is_box)
