"""A malformed input, what must happen to it, and what happened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: What may happen. The first two are right.
VERDICTS = (
    "right",  # the right value
    "one-line",  # refused with a message that names the file
    "refused",  # a good file is refused
    "unnamed",  # refused, but the message names no file, has several lines or no printable ones
    "traceback",  # an error that no reader tells of
    "crash",  # the process died of a signal
    "hang",  # it took more time than it may
    "memory",  # it took more memory than it may
    "silent",  # another value, and not a word
    "run",  # code in the file was run, or files outside its folder were opened
)
GOOD = VERDICTS[:2]


class _Expected:
    """A mark, told apart by identity."""

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return self.name


#: The file has to be refused.
REFUSED = _Expected("REFUSED")
#: The right value is unknown: any value is accepted.
ANY = _Expected("ANY")


@dataclass(frozen=True)
class Case:
    """One input.

    Args:
        name: what was done to a good file, in few words.
        files: names of files, with ``/`` below the case's folder, to what they hold. A value that
            is a string is the target of a symbolic link.
        read: of the folder with the files, what is to be tried; its value is compared.
        expected: the right value, :data:`REFUSED` or :data:`ANY`.
        may_refuse: whether to refuse the file is right, too.
        heavy: whether it takes a second or more, and is left out of a share.
        place: a part of the message that says where the fault is, such as a row or a key.
        places: others, one of which is as good as the name of a file.
    """

    name: str
    files: Mapping[str, bytes | str]
    read: Callable[[Path], object]
    expected: object = REFUSED
    may_refuse: bool = False
    place: str = ""
    places: tuple[str, ...] = ()
    heavy: bool = False

    def write(self, folder: Path) -> None:
        """Write its files."""
        for name, content in self.files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                file.symlink_to(content)
            else:
                file.write_bytes(content)


class Kind(NamedTuple):
    """Inputs of one reader.

    Args:
        name: of the kind, in the table.
        known: the cases that are always tried: among them the smallest inputs of faults that were
            found.
        draw: one more case, from a random generator.
    """

    name: str
    known: Callable[[], list[Case]]
    draw: Callable[[np.random.Generator], Case]


@dataclass(frozen=True)
class Found:
    """What became of a case."""

    kind: str
    case: str
    verdict: str
    text: str = ""  # the message, or what shows the fault
    seconds: float = 0.0
    megabytes: float = field(default=0.0, compare=False)


def same(a: object, b: object) -> bool:
    """Whether two values are equal, arrays in them by dtype, shape and every element."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return (
            isinstance(a, np.ndarray)
            and isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
        )
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
