"""Checks of annotations that need no pixels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from ...data.dict_rules import OPTIONAL_NUMBERS, has_numbers, number_problems
from ...data.formats.problems import short_repr
from ...structures.boxes import xyxy_box
from ...structures.ignore_regions import is_region
from ..faults import FaultLog
from ..loading import LoadedSet, volume_key, where
from ..slices import Region
from .volumes import spacing_of

_MIN_SIDE = 2.0  # pixels
_MAX_OVERHANG = 1.0  # pixels; more is not due to rounding
_SAME = 0.5  # pixels on every side
_MIN_LESIONS = 20  # required to estimate the usual size
_MAX_DEVIATION = 7.0  # standard deviations of log size; 5.5 among DeepLesion's 4,885 of validation


def box_of(annotation: Mapping) -> tuple[float, float, float, float] | None:
    """The XYXY box of an annotation; None if it is invalid or has no area."""
    try:
        box = xyxy_box(annotation)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    sides = (box[2] - box[0], box[3] - box[1])
    is_box = all(map(math.isfinite, (*box, *sides))) and min(sides) > 0
    return tuple(box) if is_box else None


def pixel_regions(number: int, image: Mapping) -> list[Region]:
    """The annotations of an image for the check of its pixels."""
    return [
        Region(
            number,
            i,
            box_of(one),
            "segmentation" in one,
            one.get("segmentation"),
            is_region(one),
        )
        for i, one in enumerate(image["annotations"])
    ]


def check_annotations(loaded: LoadedSet, log: FaultLog) -> None:
    """Log invalid, outside and tiny boxes, unknown classes, and repeated lesions."""
    for number, image in loaded.numbered():
        before = np.full((len(image["annotations"]), 4), np.inf)
        categories = []
        for i, annotation in enumerate(image["annotations"]):
            categories.append(annotation.get("category_id"))
            for kind, text in _faults(annotation, image, loaded.classes):
                log.add(kind, f"{where(loaded, image, annotation)}: {text}", number)
            box = box_of(annotation)
            if box is None or is_region(annotation):
                continue
            same = np.flatnonzero(np.abs(before[:i] - box).max(axis=1) <= _SAME)
            if any(categories[j] == categories[i] for j in same):
                text = f"found the box {_text(box)} a second time, expected it once"
                log.add("repeated_lesion", f"{where(loaded, image, annotation)}: {text}", number)
            before[i] = box


def _faults(annotation: Mapping, image: Mapping, classes: Sequence[str]):
    for text in number_problems(annotation, tuple(OPTIONAL_NUMBERS)):
        yield "bad_record", text
    category = annotation.get("category_id")
    if not isinstance(category, Integral) or (classes and not 0 <= category < len(classes)):
        known = f"0 to {len(classes) - 1}" if classes else "a whole number"
        yield "unknown_class", f"found category_id {short_repr(category)}, expected {known}"
    box = box_of(annotation)
    if box is None:
        found = (
            f"{short_repr(annotation.get('bbox'))}, mode {short_repr(annotation.get('bbox_mode'))}"
        )
        yield "bad_box", f"found bbox {found}, expected finite numbers with x1 < x2 and y1 < y2"
        return
    x1, y1, x2, y2 = box
    right, bottom = image["width"] - 0.5, image["height"] - 0.5
    size = f"{image['width']} x {image['height']} pixels"
    if min(x2, y2) <= -0.5 or x1 >= right or y1 >= bottom:
        yield "box_outside", f"found the box {_text(box)}, expected one inside of {size}"
    elif max(-0.5 - x1, -0.5 - y1, x2 - right, y2 - bottom) > _MAX_OVERHANG:
        yield "box_overhang", f"found the box {_text(box)}, expected one inside of {size}"
    if min(x2 - x1, y2 - y1) < _MIN_SIDE:
        yield "tiny_box", f"found the box {_text(box)}, expected sides of 2 pixels or more"


def _text(box: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in box)


@dataclass(frozen=True)
class Lesion:
    """A lesion on one or more slices.

    Args:
        number: number of the image where it is largest.
        category: index of its class.
        size: its long diameter, or else the longer side of its box.
        in_mm: whether the size is in mm; otherwise in pixels.
    """

    number: int
    category: int
    size: float
    in_mm: bool


def all_lesions(loaded: LoadedSet) -> list[Lesion]:
    """The lesions of a data set, each once for all of its slices, without regions to ignore."""
    largest: dict[object, Lesion] = {}
    for number, image in loaded.numbered():
        for i, annotation in enumerate(image["annotations"]):
            if is_region(annotation):
                continue
            lesion = _lesion(annotation, image, number)
            if lesion is None:
                continue
            is_numbered = "lesion_id" in annotation and "volume" in image
            key = (volume_key(image), annotation["lesion_id"]) if is_numbered else (number, i)
            if key not in largest or largest[key].size < lesion.size:
                largest[key] = lesion
    return list(largest.values())


def _lesion(annotation: Mapping, image: Mapping, number: int) -> Lesion | None:
    box, category = box_of(annotation), annotation.get("category_id")
    if box is None or not isinstance(category, Integral):
        return None
    if has_numbers(annotation, "diameters_mm"):
        return Lesion(number, int(category), float(annotation["diameters_mm"][0]), True)
    sides, spacing = np.subtract(box[2:], box[:2]), spacing_of(image)
    if not isinstance(spacing, tuple):
        return Lesion(number, int(category), float(sides.max()), False)
    return Lesion(number, int(category), float((sides * spacing[:2]).max()), True)


def check_sizes(loaded: LoadedSet, lesions: Sequence[Lesion], log: FaultLog) -> None:
    """Log outliers of lesion size, by the median absolute deviation of log size."""
    for in_mm, unit in ((True, "mm"), (False, "pixels")):
        chosen = [one for one in lesions if one.in_mm == in_mm and one.size > 0]
        if len(chosen) < _MIN_LESIONS:
            continue
        logs = np.log([one.size for one in chosen])
        median = np.median(logs)
        spread = max(1.4826 * np.median(np.abs(logs - median)), 0.1)
        for i in np.flatnonzero(np.abs(logs - median) > _MAX_DEVIATION * spread):
            image = loaded.images[chosen[i].number - loaded.first_number]
            text = (
                f"found a lesion of {chosen[i].size:.3g} {unit}, expected about as many as the "
                f"others' median, {math.exp(median):.3g}"
            )
            log.add("odd_lesion_size", f"{where(loaded, image)}: {text}", chosen[i].number)
