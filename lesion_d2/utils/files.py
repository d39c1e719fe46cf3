"""Files that are complete or absent, and what is read from them."""

import errno
import fcntl
import itertools
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
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
_CANNOT_LOCK = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# Open files whose locks this process has.
_locks: set[FileIO] = set()


@contextmanager
def atomic_write(file: str | os.PathLike, *, flush: bool = True) -> Iterator[Path]:
    """Give a path beside ``file`` to write to; it becomes ``file`` when the block ends well.

    At every moment, even of a kill or a power cut, ``file`` is the old one or the whole new one;
    where the file system does not flush on demand, even of a kill alone. Each process that writes
    has a path of its own. What a killed one leaves beside ``file`` the next writer replaces.

    Args:
        file: its path.
        flush: whether to wait for the disk, some milliseconds a file. Thousands of files of a
            folder that appears as a whole are flushed at once in less time, by ``os.sync``.

    Raises:
        OSError: it cannot be written, such as on a full disk; names ``file``.
    """
    file = Path(file)
    partial, lock = _path_beside(file)
    try:
        with named_errors(file, partial):
            yield partial
            if flush:
                _sync(partial, os.O_RDWR)
            os.replace(partial, file)
    except BaseException:  # afterwards another writer's file may have this name
        partial.unlink(missing_ok=True)
        raise
    finally:
        if lock is not None:
            release_lock(lock)
    if flush:
        _sync(file.parent, os.O_RDONLY)


@contextmanager
def named_errors(
    place: str | os.PathLike, partial: str | os.PathLike | None = None
) -> Iterator[None]:
    """Let errors name what is written: those of open files name nothing, others ``partial``."""
    try:
        yield
    except OSError as error:
        names_none = error.filename is None or error.filename == os.fspath(partial or place)
        if names_none and error.filename2 is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, os.fspath(place)) from error
        raise


def _path_beside(file: Path) -> tuple[Path, FileIO | None]:
    """An empty file that nobody writes to, and its lock, where the file system has locks."""
    for number in itertools.count():
        partial = file.with_name(f".{file.name}{f'.{number}' * (number > 0)}.part")
        try:
            lock = _lock_if_any(partial)
        except BlockingIOError:
            continue
        if lock is None:
            partial.unlink(missing_ok=True)  # all writers have other names here
            return file.with_name(f".{file.name}.{secrets.token_hex(4)}.part"), None
        lock.truncate(0)
        return partial, lock


@contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the place of ``folder`` when the block ends well.

    Whatever moment a kill comes at, ``folder`` is the old one, the whole new one, or, for the
    moment between two renamings, not there. What a killed call leaves beside it is brought to an
    end by the next one and by :func:`recover_folder`.

    Raises:
        BlockingIOError: another process writes it.
        OSError: it cannot be written, such as on a full disk.

    Example:
        >>> with atomic_folder("results") as folder:
        ...     (folder / "a.txt").write_text("all of it")
    """
    folder = Path(os.path.realpath(folder))
    partial = _beside(folder, "part")
    with named_errors(folder), _locked_beside(folder):
        _recover(folder)
        partial.mkdir()
        try:
            yield partial
            replace_folder(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def replace_folder(new: Path, folder: Path) -> None:
    """Let a complete folder take the place of another one, if there is one.

    The other one is renamed before it is removed: a part of it is never taken for all of it.
    """
    folder = Path(os.path.realpath(folder))
    old = _beside(folder, "old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    _sync(folder.parent, os.O_RDONLY)
    _remove_old(folder)


def recover_folder(folder: str | os.PathLike) -> None:
    """Bring to its end what a killed :func:`atomic_folder` or :func:`replace_folder` left.

    Nothing is done where another process is at work. Afterwards ``folder`` is the old or the new
    one.
    """
    folder = Path(os.path.realpath(folder))
    if any(os.path.lexists(_beside(folder, kind)) for kind in ("part", "old", "trash", "lock")):
        with suppress(BlockingIOError), _locked_beside(folder):
            _recover(folder)


def _recover(folder: Path) -> None:
    partial, old = (_beside(folder, kind) for kind in ("part", "old"))
    if old.exists() and not folder.exists():  # killed between two renamings: both are whole
        os.replace(partial if partial.exists() else old, folder)
    shutil.rmtree(partial, ignore_errors=True)
    _remove_old(folder)


def _remove_old(folder: Path) -> None:
    """Remove what was replaced, under a name that no one takes for a whole folder."""
    old, trash = (_beside(folder, kind) for kind in ("old", "trash"))
    shutil.rmtree(trash, ignore_errors=True)
    if old.exists():
        os.replace(old, trash)
        shutil.rmtree(trash, ignore_errors=True)


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


@contextmanager
def _locked_beside(folder: Path) -> Iterator[None]:
    """Hold a folder that may not be there yet, where the file system has locks."""
    file = _beside(folder, "lock")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = _lock_if_any(file)
    except BlockingIOError:
        raise BlockingIOError(f"{folder}: another process is at work here") from None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        if lock is not None:
            release_lock(lock)


@contextmanager
def locked(file: str | os.PathLike, *, waits: bool = False) -> Iterator[None]:
    """Hold ``file``, which is made where it is not there, for this process.

    The lock ends with the block or with the process, however that ends; the file stays. Where the
    file system has no locks, nothing is held.

    Args:
        file: its path.
        waits: whether to wait where another process holds it.

    Raises:
        BlockingIOError: another process holds it.
    """
    lock = _lock_if_any(file, waits=waits)
    try:
        yield
    finally:
        if lock is not None:
            release_lock(lock)


def _lock_if_any(file: str | os.PathLike, *, waits: bool = False) -> FileIO | None:
    """:func:`take_lock`; None where the file system has no locks, as some of clusters."""
    try:
        return take_lock(file, waits=waits)
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            raise
        return None


def take_lock(file: str | os.PathLike, *, waits: bool = False) -> FileIO:
    """As :func:`locked`, until :func:`release_lock` or the end of this process.

    Processes that are forked from this one, such as a loader's, do not have it.

    Raises:
        BlockingIOError: another process holds it, or this one by another call.
        OSError: the file cannot be made, or the file system has no locks.
    """
    held = open(file, "ab", buffering=0)  # noqa: SIM115, release_lock closes it
    try:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        is_held = os.path.samestat(os.fstat(held.fileno()), os.stat(file))
    except (BlockingIOError, FileNotFoundError):
        is_held = False
    except OSError:
        held.close()
        raise
    if not is_held:  # or its holder has just removed it, and others would hold the next one
        held.close()
        raise BlockingIOError(f"{file}: another process is at work here")
    _locks.add(held)
    return held


def release_lock(lock: FileIO) -> None:
    """Give back what :func:`take_lock` took."""
    _locks.discard(lock)
    lock.close()


def _forget_locks() -> None:
    """In a process that was forked: a lock lasts as long as one process has its file open."""
    while _locks:
        _locks.pop().close()


os.register_at_fork(after_in_child=_forget_locks)


def read_json(file: str | os.PathLike, expected: str, *, allow_nan: bool = False) -> object:
    """Read a JSON file.

    Args:
        file: its path.
        expected: what it should hold, for the message where it is not there.
        allow_nan: whether NaN and infinities, which JSON does not have, are numbers: where they
            are what is wrong, a check of the content tells of them by their keys.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        ValueError: see :func:`parse_json`.
    """
    try:
        data = Path(file).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file, expected {expected}") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{file}: found a folder, expected {expected}") from None
    return parse_json(data, file, allow_nan=allow_nan)


def parse_json(data: bytes, place: object, *, allow_nan: bool = False) -> object:
    """Read JSON, such as a line of a file.

    Args:
        data: in UTF-8, 16 or 32, with or without a byte order mark.
        place: what begins the message.
        allow_nan: see :func:`read_json`.

    Raises:
        ValueError: it is no JSON, is nested too deeply to be read, or has a whole number of too
            many digits, NaN, an object with a key twice, or text that is no Unicode.
    """
    constants = {} if allow_nan else {"parse_constant": _refuse_constant}
    try:
        content = json.loads(data, object_pairs_hook=_object, **constants)
        if b"\\ud" in data or b"\\uD" in data:  # halves of pairs that nothing can write or show
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: found no readable JSON ({one_line(error)[:200]})") from None
    return content


def _refuse_constant(text: str) -> None:
    raise ValueError(f"the number {text}")


def _object(pairs: list[tuple[str, object]]) -> dict:
    """An object of JSON; of a key that stands twice one value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:60]!r} twice in one object")
    return found


def check_columns(file: str | os.PathLike, names: Iterable[str]) -> None:
    """Check that no two columns of a table have one name; columns without a name may be many.

    Raises:
        ValueError: names the file and a column.
    """
    for name, count in Counter(names).items():
        if name and count > 1:
            raise ValueError(
                f"{file}: found the column {printable(name)[:60]!r} {count} times, expected it once"
            )


def one_line(text: object) -> str:
    """``str`` of something, such as an error, with single spaces for line breaks and the like."""
    return " ".join(str(text).split())


def printable(text: object) -> str:
    """:func:`one_line`, with ``?`` for bytes and letters that are nothing to show.

    Names of files and words of damaged ones may be any bytes, those that lead a terminal too.
    """
    return printable_lines(one_line(text))


def printable_lines(text: str) -> str:
    """A text with ``?`` for bytes and letters that are nothing to show; its lines stay."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


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
