"""Checks of single fields of ``volume_set.json``."""

import re
from collections.abc import Callable

import numpy as np

from ...scans.names import safe_name
from ...structures.slice_geometry import EXPECTED_SPACING, is_spacing
from ...utils.values import MAX_NUMBER, MAX_TEXT, are_numbers, is_number, is_whole
from .records import SPLITS

_IMAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


def is_int(value: object) -> bool:
    """Whether a value is a whole number that a field may have."""
    return is_whole(value, MAX_NUMBER)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable()


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value == safe_name(value)


def _is_image(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and bool(_IMAGE.fullmatch(value))


def _is_direction(value: object) -> bool:
    if not _numbers(9)(value):
        return False
    matrix = np.array(value, float).reshape(3, 3)
    lengths = np.linalg.norm(matrix, axis=0)
    return bool(np.all(np.abs(lengths - 1) < 1e-3) and abs(np.linalg.det(matrix)) > 1e-3)


def _is_spacings(value: object) -> bool:
    return _numbers(3)(value) and all(map(is_spacing, value))


def _is_diameters(value: object) -> bool:
    return _numbers(2)(value) and value[0] >= value[1] > 0


def _is_window(value: object) -> bool:
    return _numbers(2)(value) and value[0] < value[1]


def _is_attributes(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_text(key) and (is_number(entry) or _is_text(entry) or entry == "")
        for key, entry in value.items()
    )


def _is_splits(value: object) -> bool:
    return isinstance(value, dict) and all(
        key in SPLITS and isinstance(names, list) and all(map(_is_text, names))
        for key, names in value.items()
    )


def _is_classes(value: object) -> bool:
    are_texts = isinstance(value, list) and len(value) > 0 and all(map(_is_text, value))
    return are_texts and len(set(value)) == len(value)


def _numbers(count: int) -> Callable[[object], bool]:
    def is_right(value: object) -> bool:
        return isinstance(value, list) and are_numbers(value, count)

    return is_right


def _by_slice(is_right: Callable[[object], bool]) -> Callable[[object], bool]:
    def are_right(value: object) -> bool:
        return isinstance(value, dict) and all(
            re.fullmatch("0|[1-9][0-9]{0,8}", number) is not None and is_right(entry)
            for number, entry in value.items()
        )

    return _optional(are_right)


def _optional(is_right: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or is_right(value)


#: Default values of the fields of a volume or a lesion.
VOLUME_DEFAULTS = {
    "spacing": None,
    "origin": None,
    "direction": None,
    "window": None,
    "lesions": [],
}
LESION_DEFAULTS = {
    "boxes": None,
    "masks": None,
    "recist": None,
    "diameters_mm": None,
    "ignore": False,
    "attributes": {},
}
# Key -> check of the value, and a description of valid values for messages.
SET_FIELDS = {
    "schema": (lambda value: True, "a name"),
    "version": (lambda value: True, "a number"),
    "classes": (_is_classes, "a list of one or more unique names"),
    "source": (lambda value: isinstance(value, dict), "an object"),
    "splits": (_is_splits, f"patients of {', '.join(SPLITS)}"),
    "folds": (
        lambda value: isinstance(value, list) and all(map(_is_splits, value)),
        f"a list of folds, each with the patients of {', '.join(SPLITS)}",
    ),
    "volumes": (lambda value: isinstance(value, list), "a list"),
}
VOLUME_FIELDS = {
    "name": (
        _is_name,
        "up to 100 letters, digits, '.', '_' and '-' that begin and end with a letter or digit",
    ),
    "patient": (_is_text, "printable text"),
    "image": (_is_image, "a path in the data set's folder, of letters, digits, '.', '_' and '-'"),
    "shape": (
        lambda value: _numbers(3)(value) and all(map(is_int, value)),
        "3 whole numbers: slices, height and width",
    ),
    "spacing": (_optional(_is_spacings), f"null, or x, y and z, each {EXPECTED_SPACING}"),
    "origin": (_optional(_numbers(3)), "null or 3 numbers of mm"),
    "direction": (_optional(_is_direction), "null or 9 numbers whose columns are unit vectors"),
    "window": (_optional(_is_window), "null, or two HU, low < high"),
    "lesions": (lambda value: isinstance(value, list), "a list"),
}
LESION_FIELDS = {
    "id": (lambda value: is_int(value) and value > 0, "a whole number from 1"),
    "category": (lambda value: is_int(value) and value >= 0, "a whole number from 0"),
    "box": (_numbers(6), "6 finite numbers"),
    "boxes": (_by_slice(_numbers(4)), "null, or 4 finite numbers per slice"),
    "masks": (_by_slice(lambda value: isinstance(value, str)), "null, or an RLE per slice"),
    "recist": (_by_slice(_numbers(8)), "null, or 8 finite numbers per slice"),
    "diameters_mm": (_optional(_is_diameters), "null, or the long and the short diameter in mm"),
    "ignore": (lambda value: isinstance(value, bool), "true or false"),
    "attributes": (_is_attributes, "names with numbers or texts"),
}
