"""Requirements of training and evaluation on the dicts of any registered data set."""

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real

import numpy as np

from .formats.problems import short_repr

#: Required keys of an image; ``spacing`` and ``slice_range`` may be None.
KEYS = (
    "file_name",
    "image_id",
    "height",
    "width",
    "spacing",
    "slice_range",
    "annotations",
)
#: Optional keys of annotations, and the length of their values; unknown values have no key.
OPTIONAL_NUMBERS = {"recist": 8, "diameters_mm": 2}
# For these types, checking an abstract base class would take most of the time.
_PLAIN = (float, int)
_NAMES = ("image_id", "patient", "study", "series", "volume")


def image_problems(image: Mapping) -> Iterator[str]:
    """Yield errors of an image's dict, except spacing and annotations: found, expected."""
    for key in KEYS:
        if key not in image:
            yield f"found no {key!r}"
    for key in ("height", "width"):
        if key in image and not (isinstance(image[key], Integral) and image[key] > 0):
            yield f"found {key} {short_repr(image[key])}, expected a whole number of pixels"
    slice_range = image.get("slice_range")
    if slice_range is not None and not are_numbers(slice_range, 2):
        yield (
            f"found slice_range {short_repr(slice_range)}, expected the first and last "
            f"slice, or None"
        )
    yield from _bad_names(image, _NAMES)


def annotation_problems(annotation: Mapping) -> Iterator[str]:
    """Yield errors of an annotation, except box, class and mask: found, expected."""
    is_crowd = annotation.get("iscrowd", 0)
    is_number = type(is_crowd) in _PLAIN or isinstance(is_crowd, Real | np.bool_)
    if not is_number or is_crowd not in (0, 1):
        yield f"found iscrowd {short_repr(is_crowd)}, expected 1 (to be ignored) or 0"
    yield from _bad_names(annotation, ("lesion_id", "row"))
    yield from old_key_problems(annotation)


def old_key_problems(annotation: Mapping) -> Iterator[str]:
    """Yield an error if an annotation has an old key, whose value would be ignored."""
    if "lesion" in annotation and "lesion_id" not in annotation:
        yield "found the key 'lesion', expected 'lesion_id', its name from version 0.1 on"


def number_problems(annotation: Mapping, keys: Sequence[str]) -> Iterator[str]:
    """Yield errors in those :data:`OPTIONAL_NUMBERS` that an annotation has."""
    for key in keys:
        if key in annotation and not has_numbers(annotation, key):
            yield (
                f"found {key} {short_repr(annotation[key])}, expected "
                f"{OPTIONAL_NUMBERS[key]} finite "
                "numbers, or no such key"
            )


def has_numbers(annotation: Mapping, key: str) -> bool:
    """Whether an annotation has a key of :data:`OPTIONAL_NUMBERS`, with finite values."""
    found = annotation.get(key)
    if type(found) in (list, tuple) and all(type(v) is float for v in found):
        return len(found) == OPTIONAL_NUMBERS[key] and all(map(math.isfinite, found))
    try:
        values = np.asarray(found, dtype=float)
    except (TypeError, ValueError):
        return False
    return values.shape == (OPTIONAL_NUMBERS[key],) and bool(np.isfinite(values).all())


def are_numbers(values: object, count: int) -> bool:
    """Whether this is a list or array of ``count`` numbers, which need not be finite."""
    return (
        isinstance(values, list | tuple | np.ndarray)
        and len(values) == count
        and all(type(v) in _PLAIN or isinstance(v, Real) for v in values)
    )


def _bad_names(record: Mapping, keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        if type(record.get(key)).__hash__ is None:
            yield f"found {key} {short_repr(record[key])}, expected text or a number"
