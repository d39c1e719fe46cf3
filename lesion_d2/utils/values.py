"""What a value from a file is, told before anything is computed with it."""

from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real

from .errors import short_repr

#: Beyond these no number of a file means anything; ids of COCO's have up to 13 digits.
MAX_NUMBER, MAX_ID = 1e9, 1e15
#: Pixels of an image's longer side, slices of a volume, and letters of a name.
MAX_SIDE, MAX_SLICES, MAX_TEXT = 8192, 20_000, 1000
#: Slices of all lesions of a volume, each of which is an annotation: a few bytes may ask for many.
MAX_LESION_SLICES = 250_000


def is_whole(value: object, most: float = MAX_ID) -> bool:
    """Whether a value is a whole number from -most to most; true and false are none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and abs(value) <= most


def is_number(value: object, most: float = MAX_NUMBER) -> bool:
    """Whether a value is a number from -most to most; true, false and NaN are none."""
    # Compared, not converted: whole numbers may be beyond what float can be. NaN compares as False.
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= most


def are_numbers(value: object, count: int, most: float = MAX_NUMBER) -> bool:
    """Whether a value is a list or tuple of so many of :func:`is_number`."""
    return (
        isinstance(value, list | tuple)
        and len(value) == count
        and all(is_number(number, most) for number in value)
    )


def are_digits(text: str) -> bool:
    """Whether a text is a whole number from 0, of nine ASCII digits at most."""
    # str.isdecimal knows the digits of all scripts, and int() takes time for long ones.
    return text.isascii() and text.isdecimal() and len(text) <= 9


def is_size(value: object) -> bool:
    """Whether a value is the height and the width of an image, in pixels."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(is_whole(side) and 1 <= side <= MAX_SIDE for side in value)
    )


def is_text(value: object) -> bool:
    """Whether a value is printable text of some length."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and value.isprintable()
        and len(value) <= MAX_TEXT
    )


def is_name(value: object) -> bool:
    """Whether a value is a name, or a number that is one."""
    return is_whole(value) or is_text(value)


def field_problems(
    entry: object, fields: Mapping[str, tuple[Callable[[object], bool], str]]
) -> Iterator[str]:
    """What is wrong with an object of a file: the key, what was found and expected, a line each.

    Args:
        entry: any value.
        fields: key -> whether a value is right, and what is, in words. All have to be there.
    """
    if not isinstance(entry, dict):
        yield f"found {short_repr(entry)}, expected an object with {', '.join(fields)}"
        return
    for key, (is_right, expected) in fields.items():
        if key not in entry:
            yield f"found no {key!r}, expected {expected}"
        elif not is_right(entry[key]):
            yield f"{key}: found {short_repr(entry[key])}, expected {expected}"
