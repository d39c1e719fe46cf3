"""Image entries of COCO's format: file, size, and our additional keys."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import PureWindowsPath
from typing import Any

from ...structures.slice_geometry import EXPECTED_SPACING, is_spacing
from ...utils.values import MAX_SIDE, are_numbers, is_name, is_whole
from ..slices.pictures import is_stored_volume
from .records import BadEntryError, CocoImage

_SLICE = re.compile(r"(.+)#([0-9]{1,6})", re.DOTALL)


def read_image(entry: Mapping, image_id: int) -> CocoImage:
    """Read an image without its annotations. Raises BadEntryError."""
    file_name, stored_slice = _read_file_name(entry.get("file_name"))
    sides = []
    for key in ("height", "width"):
        side = entry.get(key)
        if not is_whole(side) or not 1 <= side <= MAX_SIDE:
            raise BadEntryError(key, side, f"1 to {MAX_SIDE} pixels")
        sides.append(int(side))
    optional = {key: entry[key] for key in _IMAGE_KEYS if entry.get(key) is not None}
    for key, value in optional.items():
        is_good, expected, convert = _IMAGE_KEYS[key]
        if not is_good(value):
            raise BadEntryError(key, value, expected)
        optional[key] = convert(value)
    if ("volume" in optional) != ("slice" in optional):
        found, missing = ("volume", "slice") if "volume" in optional else ("slice", "volume")
        raise BadEntryError(missing, None, f"a value, as there is a {found}")
    return CocoImage(image_id, file_name, stored_slice, *sides, **optional)


def _read_file_name(name: Any) -> tuple[str, int | None]:
    """A path relative to the folder of images, and the ``k`` of ``file#k``."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise BadEntryError("file_name", name, "a file path")
    is_absolute = os.path.isabs(name) or PureWindowsPath(name).anchor
    path = os.path.normpath(name)
    if is_absolute or path == ".." or path.startswith(f"..{os.sep}"):
        raise BadEntryError("file_name", name, "a path below the folder of images")
    match = _SLICE.fullmatch(path)
    if match is not None and is_stored_volume(match[1]):
        return match[1].replace(os.sep, "/"), int(match[2])
    if is_stored_volume(path):
        raise BadEntryError("file_name", name, "<file>#<number>, a slice of the volume")
    return path.replace(os.sep, "/"), None


def _is_spacing(value: Any) -> bool:
    return are_numbers(value, 3) and all(map(is_spacing, value))


def _is_window(value: Any) -> bool:
    return are_numbers(value, 2) and -32768 <= value[0] < value[1] <= 32767


def _floats(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value))


_EXPECTED_WINDOW = "two HU, low < high, from -32768 to 32767"
# Key -> check of the value, description of valid values, and conversion.
_IMAGE_KEYS: dict[str, tuple[Callable[[Any], bool], str, Callable]] = {
    "spacing": (_is_spacing, f"x, y and z, each {EXPECTED_SPACING}", _floats),
    "patient": (is_name, "a name or number", str),
    "volume": (is_name, "a name or number", str),
    "slice": (lambda value: is_whole(value) and value >= 0, "a whole number from 0", int),
    "hu_offset": (
        lambda value: is_whole(value) and 0 <= value <= 65535,
        "a whole number from 0 to 65535",
        int,
    ),
    "hu_window": (_is_window, _EXPECTED_WINDOW, _floats),
    "window": (_is_window, _EXPECTED_WINDOW, _floats),
}


def check_image_options(**options: Any) -> dict[str, Any]:
    """Check default values for images whose entries lack them.

    Args:
        options: values by keys of image entries; None if not given.

    Returns:
        The given ones, as in :class:`CocoImage`.

    Raises:
        ValueError: a value is invalid.
    """
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        is_good, expected, convert = _IMAGE_KEYS[key]
        if not is_good(value):
            raise BadEntryError(key, value, expected)
        given[key] = convert(value)
    return given
