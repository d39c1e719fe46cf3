"""Annotations of COCO's format: boxes and masks."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ...structures.rle import check_mask
from ...utils.values import are_numbers, is_name, is_whole
from .records import (
    FIRST_PIXEL,
    MAX_OVERHANG,
    BadEntryError,
    CocoAnnotation,
    CocoImage,
)

_SEGMENTATION = "segmentation"
_MAX_LENGTH = 100  # of outlines, in units of an image's height + width


def read_annotation(
    entry: Mapping, annotation_id: int, image: CocoImage, count_empty: Callable[[], None]
) -> CocoAnnotation:
    """Read an annotation, of category 0. Raises BadEntryError.

    Args:
        entry: the entry in the file.
        annotation_id: its id.
        image: the image that it belongs to.
        count_empty: called if its mask is empty, and thus ignored.
    """
    flags = {}
    for key in ("iscrowd", "ignore"):
        flags[key] = entry.get(key, 0)
        if not isinstance(flags[key], Integral) or flags[key] not in (0, 1):
            raise BadEntryError(key, flags[key], "0 or 1")
    mask = _read_mask(entry.get("segmentation"), (image.height, image.width))
    if mask is not None and not coco_mask.area(mask):
        mask = None
        count_empty()
    box = entry.get("bbox")
    if box is None and mask is not None:
        box = coco_mask.toBbox(mask).tolist()
    return CocoAnnotation(
        annotation_id,
        0,
        _read_box(box, image),
        None if mask is None else mask["counts"],
        bool(flags["iscrowd"] or flags["ignore"]),
        _read_lesion_id(entry),
        _read_recist(entry.get("recist")),
        _read_diameters(entry.get("diameters_mm")),
    )


def _read_lesion_id(entry: Mapping) -> int | str | None:
    """Its key was "lesion" before version 0.1: files that have that are read."""
    key = "lesion" if entry.get("lesion_id") is None else "lesion_id"
    found = entry.get(key)
    if found is not None and not is_name(found):
        raise BadEntryError(key, found, "a name or number")
    if entry.get("lesion") not in (None, found):
        raise BadEntryError("lesion", entry["lesion"], f"{found!r} as lesion_id, or no such key")
    return found


def _read_box(box: Any, image: CocoImage) -> tuple[float, float, float, float]:
    if not are_numbers(box, 4) or min(box[2:]) <= 0:
        raise BadEntryError(
            "bbox", box, "x, y, width, height: finite numbers, width and height above 0"
        )
    x, y, width, height = map(float, box)
    found = np.array([x, y, x + width, y + height])
    cut = np.clip(found, 0, [image.width, image.height] * 2)
    if (np.abs(cut - found) > MAX_OVERHANG).any() or (cut[2:] <= cut[:2]).any():
        size = f"{image.width} x {image.height} pixels"
        raise BadEntryError("bbox", box, f"x, y, width, height in the image of {size}")
    return tuple((cut - FIRST_PIXEL).tolist())


def _read_mask(segmentation: Any, size: tuple[int, int]) -> dict | None:
    """COCO's compressed RLE of a mask; None if there is no mask, as in an empty list."""
    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, list):
        return _mask_of_polygons(segmentation, size)
    if not isinstance(segmentation, Mapping):
        raise BadEntryError(_SEGMENTATION, segmentation, "polygons or RLE")
    counts, found_size = segmentation.get("counts"), segmentation.get("size")
    if not are_numbers(found_size, 2) or tuple(found_size) != size:
        raise BadEntryError(f"{_SEGMENTATION}, size", found_size, f"the image's {list(size)}")
    if isinstance(counts, str) and counts.isascii():
        rle = {"size": list(size), "counts": counts}
        try:
            check_mask(rle)
        except ValueError as error:
            raise ValueError(f"{_SEGMENTATION}: {error}") from None
        return rle
    if not isinstance(counts, list) or not all(is_whole(n) and n >= 0 for n in counts):
        raise BadEntryError(f"{_SEGMENTATION}, counts", counts, "a string or a list of run lengths")
    if sum(counts) != size[0] * size[1]:
        raise BadEntryError(
            f"{_SEGMENTATION}, sum of counts",
            sum(counts),
            f"{size[0] * size[1]}, the pixels of {size[0]} x {size[1]}",
        )
    return _as_text(coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size))


def _mask_of_polygons(polygons: Sequence, size: tuple[int, int]) -> dict:
    limit = np.add([size[1], size[0]], MAX_OVERHANG)
    length = 0.0
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            count = f" (here {len(polygon)})" if isinstance(polygon, list) else ""
            raise BadEntryError(
                _SEGMENTATION,
                polygon,
                f"a list of polygons, each a list of 6 or more numbers x, y, x, y, ...{count}",
            )
        if not are_numbers(polygon, len(polygon)):
            raise BadEntryError(_SEGMENTATION, polygon, "a polygon of finite numbers")
        points = np.reshape(polygon, (-1, 2))
        outside = ((points < -MAX_OVERHANG) | (points > limit)).any(axis=1)
        if outside.any():
            point = points[outside][0].tolist()
            raise BadEntryError(
                _SEGMENTATION, point, f"points inside the image of {size[1]} x {size[0]} pixels"
            )
        length += np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
        # pycocotools allocates memory for each pixel of an outline.
        if length > _MAX_LENGTH * sum(size):
            raise BadEntryError(
                f"{_SEGMENTATION}, length of the outlines in pixels",
                round(length),
                f"at most {_MAX_LENGTH * sum(size)}, {_MAX_LENGTH} times height plus width",
            )
    return _as_text(coco_mask.merge(coco_mask.frPyObjects(polygons, *size)))


def _as_text(rle: dict) -> dict:
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def _read_recist(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not are_numbers(value, 8):
        raise BadEntryError("recist", value, "8 numbers: x, y of four end points")
    return tuple(float(number) - FIRST_PIXEL for number in value)


def _read_diameters(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not are_numbers(value, 2) or not value[0] >= value[1] > 0:
        raise BadEntryError("diameters_mm", value, "the long and the short diameter in mm")
    return float(value[0]), float(value[1])
