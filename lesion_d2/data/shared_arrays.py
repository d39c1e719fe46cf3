"""Arrays that one of a loader's processes computes and all of them read."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from ..utils.files import atomic_write, locked

#: Allocates an array of a shape and type.
Allocate = Callable[[tuple[int, ...], type], np.ndarray]
# Folder with the shared arrays.
_folder: Path | None = None


@contextmanager
def shared_in(folder: str | os.PathLike | None) -> Iterator[None]:
    """Context manager: share arrays of :func:`shared_array` through a folder; None to not share.

    The folder has to be on a local disk, for example a temporary folder; its creator removes it.
    """
    global _folder
    before, _folder = _folder, None if folder is None else Path(folder)
    try:
        yield
    finally:
        _folder = before


def shares_arrays() -> bool:
    """Whether this process shares arrays with others."""
    return _folder is not None


def shared_array(owner: str, kind: str, make: Callable[[Allocate], np.ndarray]) -> np.ndarray:
    """Return the result of ``make``, computed by the first process while the others wait.

    Without sharing, ``make`` is always called.

    Args:
        owner: identifies the source of the array, such as a file; see :func:`release`.
        kind: identifies the array among those of the owner.
        make: allocates an array with its argument, fills and returns it.

    Returns:
        The array, read-only. If shared, it is memory-mapped, with a single copy in memory for all
        processes.

    Raises:
        OSError: the folder is full.
    """
    if _folder is None:
        return make(np.empty)
    file = _folder / f"{_digest(owner)}.{_digest(kind)}.npy"
    if not file.exists():
        with locked(file.with_suffix(".lock"), waits=True):
            if not file.exists():
                with atomic_write(file, flush=False) as path:
                    make(partial(_map, path))
    return np.load(file, mmap_mode="r")


def release(folder: str | os.PathLike, owner: str) -> None:
    """Delete the files of an owner's arrays; existing mappings stay valid."""
    for file in Path(folder).glob(f"{_digest(owner)}.*"):
        file.unlink(missing_ok=True)


def _map(file: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    array = np.lib.format.open_memmap(file, "w+", np.dtype(dtype), shape)
    if hasattr(os, "posix_fallocate"):  # otherwise a full disk would kill the writing process
        with open(file, "r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, os.path.getsize(file))
    return array


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]
