"""Type and range checks of values from files, before anything is computed with them."""

from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real

from .errors import short_repr

#: Limits beyond which no number in a file is plausible; COCO's ids have up to 13 digits.
MAX_NUMBER, MAX_ID = 1e9, 1e15
#: Limits: pixels of an image's longer side, slices of a volume, and characters of a name.
MAX_SIDE, MAX_SLICES, MAX_TEXT = 8192, 20_000, 1000
#: Limit of a volume's annotations, one per lesion and slice: a few bytes can request many.
MAX_LESION_SLICES = 250_000


def is_whole(value: object, most: float = MAX_ID) -> bool:
    """Whether a value is an integer from -most to most, and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool) and abs(value) <= most


def is_number(value: object, most: float = MAX_NUMBER) -> bool:
    """Whether a value is a number from -most to most, and not a bool or NaN."""
    # Compared, not converted: integers may exceed float's range. NaN compares as False.
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= most


def are_numbers(value: object, count: int, most: float = MAX_NUMBER) -> bool:
    """Whether a value is a list or tuple of ``count`` numbers (:func:`is_number`)."""
    return (
        isinstance(value, list | tuple)
        and len(value) == count
        and all(is_number(number, most) for number in value)
    )


def are_digits(text: str) -> bool:
    """Whether a text is one to nine ASCII digits."""
    # str.isdecimal accepts the digits of all scripts, and int() is slow for long ones.
    return text.isascii() and text.isdecimal() and len(text) <= 9


def is_size(value: object) -> bool:
    """Whether a value is an image size: height and width in pixels."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(is_whole(side) and 1 <= side <= MAX_SIDE for side in value)
    )


def is_text(value: object) -> bool:
    """Whether a value is a non-empty printable text."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and value.isprintable()
        and len(value) <= MAX_TEXT
    )


def is_name(value: object) -> bool:
    """Whether a value is a name or a number used as one."""
    return is_whole(value) or is_text(value)


def field_problems(
    entry: object, fields: Mapping[str, tuple[Callable[[object], bool], str]]
) -> Iterator[str]:
    """Yield the problems of an object from a file, one line each: key, found, expected.

    Args:
        entry: any value.
        fields: key -> (check of the value, description of valid values). All are required.
    """
    if not isinstance(entry, dict):
        yield f"found {short_repr(entry)}, expected an object with {', '.join(fields)}"
        return
    for key, (is_right, expected) in fields.items():
        if key not in entry:
            yield f"found no {key!r}, expected {expected}"
        elif not is_right(entry[key]):
            yield f"{key}: found {short_repr(entry[key])}, expected {expected}"
