"""Arrays that one of a loader's processes makes and all of them read."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from ..utils.files import atomic_write, locked

#: Gives an array of a shape and type, to be filled.
Allocate = Callable[[tuple[int, ...], type], np.ndarray]
# Where this process finds the arrays of the others.
_folder: Path | None = None


@contextmanager
def shared_in(folder: str | os.PathLike | None) -> Iterator[None]:
    """Let this process share in a folder what :func:`shared_array` makes; None: with no other.

    The folder is on a disk of this machine, as temporary ones are; who made it removes it.
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
    """What ``make`` gives: made by the first process that asks, while the others wait for it.

    Where nothing is shared, ``make`` is called.

    Args:
        owner: what the array is of, such as a file; see :func:`release`.
        kind: which of the owner's arrays it is.
        make: fills an array that it is to ask for, and returns it.

    Returns:
        The array, which may only be read. Where it is shared, it is mapped from a file: its memory
        is the system's, and there is one of it for all processes.

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
    """Give the disk back that an owner's arrays take; who has mapped them keeps them."""
    for file in Path(folder).glob(f"{_digest(owner)}.*"):
        file.unlink(missing_ok=True)


def _map(file: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    array = np.lib.format.open_memmap(file, "w+", np.dtype(dtype), shape)
    if hasattr(os, "posix_fallocate"):  # else a full disk would kill the process that writes
        with open(file, "r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, os.path.getsize(file))
    return array


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]
