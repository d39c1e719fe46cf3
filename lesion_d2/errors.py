"""What users are told where their inputs cannot be used."""

import reprlib

import numpy as np

from .files import one_line

_MAX_LENGTH = 60
_MAX_BITS = 256


class InputError(ValueError):
    """What a run was given cannot be used; the message is one line for its user."""


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
