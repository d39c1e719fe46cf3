from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_END = object()


def prefetch(items: Iterable[_Item]) -> Iterator[_Item]:
    """Give items, the next one being made in a thread while the last one is worked with.

    So two of them are in memory at a time. What the iterable raises is raised where its item would
    be given. When the iterator is closed, the item in work is the last one to be made.

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
