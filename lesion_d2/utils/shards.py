"""Shards of a tool's work, each run by its own call, on any machines that share a disk.

With ``--shard I/N`` a tool processes every N-th item, starting at the I-th, and writes its results
to the shard's file. Then it checks whether the other shards are complete: a call that finds none
missing joins them. It writes before it checks, so the last call finds all of them.
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
    """One shard of a tool's work.

    Args:
        number: from 1 to ``count``.
        count: number of shards; 1 means all of the work.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether this is the only shard."""
        return self.count == 1

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this shard; sizes of shards differ by one item at most."""
        return items[self.number - 1 :: self.count]

    def file(self, whole: str | os.PathLike) -> str:
        """The shard's own file in place of ``whole``."""
        return os.fspath(whole) if self.is_whole else f"{whole}.{self.number}-of-{self.count}"


WHOLE = Shard(1, 1)


def parse_shard(text: str) -> Shard:
    """Parse ``I/N``.

    Raises:
        ValueError: another format, or I is not in 1..N.

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
    """Yield whether this call joins the shards. Enter after all of them were found complete.

    Checking for them inside of the block could keep the last call from joining.

    Args:
        file: locked meanwhile (:func:`~lesion_d2.utils.files.locked`), and created if missing. A
            call for all of the work already holds it.
        shard: the shard of this call.

    Yields:
        False if another call is joining, or has removed the folder of ``file``. If True, another
        call may have been faster: check whether the shards are already joined.
    """
    with ExitStack() as held:
        is_ours = True
        if not shard.is_whole:
            try:
                held.enter_context(locked(file))
            except (BlockingIOError, FileNotFoundError):  # the folder was removed with the shards
                is_ours = False
        yield is_ours
