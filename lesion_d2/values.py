"""What a value from a file is, before anything is computed with it, and how messages show it."""

import reprlib
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real

import numpy as np

from .files import one_line

#: Beyond these no number of a file means anything; ids of COCO's have up to 13 digits.
MAX_NUMBER, MAX_ID = 1e9, 1e15
#: Pixels of an image's longer side, and letters of a name.
MAX_SIDE = 8192
MAX_TEXT = 1000
# Of what messages show.
_MAX_LENGTH = 60
_MAX_BITS = 256


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
        yield f"found {short(entry)}, expected an object with {', '.join(fields)}"
        return
    for key, (is_right, expected) in fields.items():
        if key not in entry:
            yield f"found no {key!r}, expected {expected}"
        elif not is_right(entry[key]):
            yield f"{key}: found {short(entry[key])}, expected {expected}"


def short(value: object) -> str:
    """``repr`` on one line of at most 60 characters.

    What a file holds may be nested without an end, or small and of endless text (a list that holds
    one list many times, and so on): only its outermost parts are looked at.
    """
    text = one_line(_SHORT.repr(value))
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 3]}..."


class _Short(reprlib.Repr):
    """Cut before it is written; of containers that pickles hold, too."""

    def __init__(self):
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxset = self.maxfrozenset = 6
        self.maxstring = self.maxother = _MAX_LENGTH + 2
        self.repr_OrderedDict = self.repr_defaultdict = self.repr_dict

    def repr_int(self, value: int, level: int) -> str:
        """Python refuses to write very long numbers."""
        bits = value.bit_length()
        return repr(value) if bits <= _MAX_BITS else f"<integer of {bits} bits>"

    def repr_instance(self, value: object, level: int) -> str:
        """NumPy writes the objects in an array whole."""
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.hasobject:
            return f"<{type(value).__name__} of objects, shape {value.shape}>"
        return super().repr_instance(value, level)


_SHORT = _Short()
