"""Computation of the next item in a thread."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_END = object()


def prefetch(items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield items, computing the next one in a thread while the current one is used.

    Two items are in memory at a time. An error of the iterable is raised in place of its item.
    After the iterator is closed, no further item is computed.

    Example:
        >>> for batch in prefetch(map(load, files)):
        ...     model(batch)
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        future = pool.submit(next, iterator, _END)
        while (item := future.result()) is not _END:
            future = pool.submit(next, iterator, _END)
            yield item
