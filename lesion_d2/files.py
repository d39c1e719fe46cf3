"""Files that are complete or absent, and what is read from them."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What file systems answer that do not flush on demand, folders above all: some network and virtual
# shares, and Windows, which opens no folder. A broken or full disk answers otherwise.
_CANNOT_SYNC = {
    errno.EACCES,
    errno.EBADF,
    errno.EINVAL,
    errno.EISDIR,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EPERM,
}


@contextmanager
def written_whole(file: str | os.PathLike) -> Iterator[Path]:
    """Give a path beside ``file`` to write to; it becomes ``file`` when the block ends well.

    At every moment, even of a kill or a power cut, ``file`` is the old one or the whole new one;
    where the file system does not flush on demand, even of a kill alone. What a killed process
    leaves beside it has one name, and the next writer of ``file`` replaces it.
    """
    file = Path(file)
    partial = file.with_name(f".{file.name}.part")
    try:
        yield partial
        _sync(partial, os.O_RDWR)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    _sync(file.parent, os.O_RDONLY)


@contextmanager
def locked(file: str | os.PathLike) -> Iterator[None]:
    """Hold ``file``, which is made where it is not there, for this process.

    The lock ends with the block or with the process, however that ends; the file stays.

    Raises:
        BlockingIOError: another process holds it.
    """
    with open(file, "ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = os.path.samestat(os.fstat(held.fileno()), os.stat(file))
        except (BlockingIOError, FileNotFoundError):
            is_held = False
        if not is_held:  # or its holder has just removed it, and others would hold the next one
            raise BlockingIOError(f"{file}: another process is at work here")
        yield


def read_json(file: str | os.PathLike, expected: str) -> object:
    """Read a JSON file.

    Args:
        file: its path.
        expected: what it should hold, for the message where it is not there.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        ValueError: it is no JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(Path(file).read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file, expected {expected}") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{file}: found a folder, expected {expected}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: found no readable JSON ({one_line(error)})") from None


def one_line(text: object) -> str:
    """``str`` of something, such as an error, with single spaces for line breaks and the like."""
    return " ".join(str(text).split())


def printable(text: object) -> str:
    """:func:`one_line`, with ``?`` for bytes and letters that are nothing to show.

    Names of files and words of damaged ones may be any bytes, those that lead a terminal too.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in one_line(text))


def _sync(path: Path, flags: int) -> None:
    """Flush a file or folder to the disk, where that can be done."""
    try:
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
