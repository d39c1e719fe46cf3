"""Errors that tell of all that is wrong in a file, and of what was found in few words."""

import reprlib
from collections.abc import Sequence

import numpy as np

from ..files import one_line

_MAX_SHOWN = 20
_MAX_LENGTH = 60
_MAX_BITS = 256


class ProblemsError(ValueError):
    """What is wrong in a file or folder.

    Args:
        source: what begins the message.
        problems: all of them, one line each.
        text: the rest of the message; of many problems it has the first ones.
    """

    def __init__(self, source: object, problems: Sequence[str], text: str):
        super().__init__(source, tuple(problems), text)
        self.source, self.problems, self.text = str(source), tuple(problems), text

    def __str__(self) -> str:
        return f"{self.source}: {self.text}"


def raise_problems(source: object, problems: Sequence[str], counted: str | None = None) -> None:
    """Raise one :class:`ProblemsError` with all that is wrong in a file or folder, if anything is.

    Args:
        source: what begins the message.
        problems: one line each; the first 20 are shown.
        counted: how a message of several counts them; None for "<n> problems".

    Raises:
        ProblemsError: there is a problem.
    """
    if len(problems) == 1:
        raise ProblemsError(source, problems, problems[0])
    if problems:
        counted = counted or f"{len(problems)} problems"
        shown = f", the first {_MAX_SHOWN}" if len(problems) > _MAX_SHOWN else ""
        lines = "".join(f"\n  {text}" for text in problems[:_MAX_SHOWN])
        raise ProblemsError(source, problems, f"{counted}{shown}{lines}")


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
