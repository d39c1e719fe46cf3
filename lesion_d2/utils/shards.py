"""Parts of a tool's work, each a call of its own, on any machines that share a disk.

A tool that takes ``--shard I/N`` does every N-th item, from the I-th on, and writes to a file of
its part what it has done. Then it looks whether the other parts are done, too: a call that finds
nothing missing joins them. It writes before it looks, so that the last one finds all of them.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from .files import locked

Item = TypeVar("Item")
_MAX_PARTS = 100_000


@dataclass(frozen=True)
class Shard:
    """One of the parts of a tool's work.

    Args:
        number: of the part, from 1.
        count: of all parts; the only one of 1 is the whole work.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether there are no other parts."""
        return self.count == 1

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Its share of the work; the shares of all parts differ by one item at most."""
        return items[self.number - 1 :: self.count]

    def file(self, whole: str | os.PathLike) -> str:
        """Where this part writes what a call for the whole work would write to ``whole``."""
        return os.fspath(whole) if self.is_whole else f"{whole}.{self.number}-of-{self.count}"


WHOLE = Shard(1, 1)


def parse_shard(text: str) -> Shard:
    """Read ``I/N``.

    Raises:
        ValueError: it is something else, or I is not from 1 to N.

    Example:
        >>> parse_shard("3/16").of(range(32))
        range(2, 32, 16)
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count <= _MAX_PARTS:
        raise ValueError(f"found {text!r}, expected I/N such as 1/4, 2/4, 3/4 and 4/4")
    return Shard(number, count)


@contextmanager
def joining(file: str | os.PathLike, shard: Shard) -> Iterator[bool]:
    """Say whether this call is to join the parts; for one that has found all of them done.

    A call that looks for them within would keep the last one from joining.

    Args:
        file: held meanwhile (:func:`~lesion_d2.utils.files.locked`), and made where it is not
            there. A call for the whole work holds it already.
        shard: of this call.

    Yields:
        False where another call is at it, or has removed the folder of ``file``. Where it is True,
        that call may have been faster: look whether the parts are joined.
    """
    with ExitStack() as held:
        is_ours = True
        if not shard.is_whole:
            try:
                held.enter_context(locked(file))
            except (BlockingIOError, FileNotFoundError):  # its folder is gone with the parts
                is_ours = False
        yield is_ours
