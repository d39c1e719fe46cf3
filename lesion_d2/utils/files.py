"""Atomic writes, locks, and checked JSON and CSV input."""

import errno
import fcntl
import hashlib
import itertools
import json
import math
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

# Errors of file systems that cannot fsync files or folders: some network and virtual shares, and
# Windows, which cannot open a folder. A broken or full disk gives other errors.
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
# Open files whose locks this process holds.
_locks: set[FileIO] = set()


@contextmanager
def atomic_write(file: str | os.PathLike, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``file``, and rename it to ``file`` when the block succeeds.

    ``file`` is always the old or the complete new one, even after a kill or a power cut (only after
    a kill, if the file system cannot fsync). Each writing process has its own temporary path. The
    next writer replaces what a killed one leaves behind.

    Args:
        file: its path.
        flush: whether to fsync, some milliseconds per file. For thousands of files in an
            :func:`atomic_folder`, one ``os.sync`` is faster.

    Raises:
        OSError: it cannot be written, such as on a full disk; the message names ``file``.
    """
    file = Path(file)
    partial, lock = _path_beside(file)
    try:
        with named_errors(file, partial):
            yield partial
            if flush:
                _sync(partial, os.O_RDWR)
            os.replace(partial, file)
    except BaseException:  # before the lock is released: then other writers may use this name
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
    """Make OSErrors name the target file: those of open files name none, others ``partial``."""
    try:
        yield
    except OSError as error:
        names_none = error.filename is None or error.filename == os.fspath(partial or place)
        if names_none and error.filename2 is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, os.fspath(place)) from error
        raise


def _path_beside(file: Path) -> tuple[Path, FileIO | None]:
    """A new empty file, and its lock if the file system has locks."""
    for number in itertools.count():
        partial = file.with_name(f".{file.name}{f'.{number}' * (number > 0)}.part")
        try:
            lock = _lock_if_any(partial)
        except BlockingIOError:
            continue
        if lock is None:
            partial.unlink(missing_ok=True)  # each writer has its own name here
            return file.with_name(f".{file.name}.{secrets.token_hex(4)}.part"), None
        lock.truncate(0)
        return partial, lock


@contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty temporary folder that replaces ``folder`` when the block succeeds.

    After a kill, ``folder`` is the old one, the complete new one or, between two renames, missing.
    The next call or :func:`recover_folder` completes or removes what a killed call left beside it.

    Raises:
        BlockingIOError: another process is writing it.
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
    """Move a complete folder to ``folder``, and remove the one that was there, if any.

    The old folder is renamed before it is removed, so that a partial one never has its name.
    """
    folder = Path(os.path.realpath(folder))
    old = _beside(folder, "old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    _sync(folder.parent, os.O_RDONLY)
    _remove_old(folder)


def recover_folder(folder: str | os.PathLike) -> None:
    """Complete or undo a killed :func:`atomic_folder` or :func:`replace_folder`.

    Does nothing if another process is writing it. Afterwards ``folder`` is the old or the new one.
    """
    folder = Path(os.path.realpath(folder))
    if any(os.path.lexists(_beside(folder, kind)) for kind in ("part", "old", "trash", "lock")):
        with suppress(BlockingIOError), _locked_beside(folder):
            _recover(folder)


def _recover(folder: Path) -> None:
    partial, old = (_beside(folder, kind) for kind in ("part", "old"))
    if old.exists() and not folder.exists():  # killed between two renames: both are complete
        os.replace(partial if partial.exists() else old, folder)
    shutil.rmtree(partial, ignore_errors=True)
    _remove_old(folder)


def _remove_old(folder: Path) -> None:
    """Remove a replaced folder; it is renamed first, so that a partial one is not used."""
    old, trash = (_beside(folder, kind) for kind in ("old", "trash"))
    shutil.rmtree(trash, ignore_errors=True)
    if old.exists():
        os.replace(old, trash)
        shutil.rmtree(trash, ignore_errors=True)


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


@contextmanager
def _locked_beside(folder: Path) -> Iterator[None]:
    """Lock a folder that may not exist yet, if the file system has locks."""
    file = _beside(folder, "lock")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = _lock_if_any(file)
    except BlockingIOError:
        raise BlockingIOError(f"{folder}: another process is using this folder") from None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        if lock is not None:
            release_lock(lock)


@contextmanager
def locked(file: str | os.PathLike, *, waits: bool = False) -> Iterator[None]:
    """Lock ``file`` for this process; it is created if missing.

    The lock ends with the block or with the process, even if that is killed; the file remains.
    If the file system has no locks, nothing is locked.

    Args:
        file: its path.
        waits: whether to wait for another process that holds it.

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
    """:func:`take_lock`; None if the file system has no locks, as on some clusters."""
    try:
        return take_lock(file, waits=waits)
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            raise
        return None


def take_lock(file: str | os.PathLike, *, waits: bool = False) -> FileIO:
    """Lock a file as :func:`locked` does, until :func:`release_lock` or the end of this process.

    Forked processes, such as a loader's workers, do not inherit it.

    Raises:
        BlockingIOError: another process holds it, or another call in this one.
        OSError: the file cannot be created, or the file system has no locks.
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
    if not is_held:  # also if its holder has just removed it: others may lock a new file
        held.close()
        raise BlockingIOError(f"{file}: another process has locked this file")
    _locks.add(held)
    return held


def release_lock(lock: FileIO) -> None:
    """Release a lock of :func:`take_lock`."""
    _locks.discard(lock)
    lock.close()


def _forget_locks() -> None:
    """Close inherited locks after a fork: a lock lasts while any process has its file open."""
    while _locks:
        _locks.pop().close()


os.register_at_fork(after_in_child=_forget_locks)


def read_json(file: str | os.PathLike, expected: str, *, allow_nan: bool = False) -> object:
    """Read a JSON file.

    Args:
        file: its path.
        expected: what the file should hold, for the message if it does not exist.
        allow_nan: whether to accept NaN and infinities, which JSON does not have; a check of the
            content can then report them with their keys.

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
        data: UTF-8, 16 or 32, with or without a byte order mark.
        place: beginning of the message.
        allow_nan: see :func:`read_json`.

    Raises:
        ValueError: invalid JSON, too deep nesting, an integer with too many digits, NaN, a
            duplicate key, or text that is not valid Unicode.
    """
    constants = {} if allow_nan else {"parse_constant": _refuse_constant}
    try:
        content = json.loads(data, object_pairs_hook=_object, **constants)
        if b"\\ud" in data or b"\\uD" in data:  # lone surrogates cannot be encoded
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: found no readable JSON ({one_line(error)[:200]})") from None
    return content


def write_json(
    file: str | os.PathLike,
    content: object,
    *,
    indent: int | None = None,
    allow_nan: bool = False,
    flush: bool = True,
) -> None:
    """Write a JSON file atomically.

    Args:
        file: its path.
        content: see :func:`json_text`.
        indent: see :func:`json.dumps`.
        allow_nan: see :func:`json_text`.
        flush: see :func:`atomic_write`.

    Raises:
        OSError: it cannot be written, such as on a full disk.
        ValueError: see :func:`json_text`. Nothing is written then.
    """
    text = json_text(content, file, indent=indent, allow_nan=allow_nan)
    with atomic_write(file, flush=flush) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def json_text(
    content: object,
    place: object,
    *,
    indent: int | None = None,
    allow_nan: bool = False,
    default: Callable[[object], object] | None = None,
) -> str:
    """Format content as JSON, in ASCII.

    Args:
        content: dicts, lists, tuples, text, numbers and None.
        place: prefix of the error message.
        indent, default: see :func:`json.dumps`.
        allow_nan: whether to allow NaN and infinities, which :func:`read_json` then has to allow,
            too. :func:`without_nan` converts NaN to null.

    Raises:
        ValueError: a value cannot be represented in JSON, such as NaN.
    """
    try:
        return json.dumps(content, indent=indent, allow_nan=allow_nan, default=default)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: found a value that JSON cannot represent ({error})") from None


def json_digest(content: object) -> str:
    """SHA-256 of content as JSON; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def without_nan(value: object) -> object:
    """Copy a value with NaN, which JSON does not have, as None; tuples become lists."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"invalid number {text}")


def _object(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object; refuses duplicate keys, as one of the values would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"duplicate key {twice[:60]!r} in an object")
    return found


def check_columns(file: str | os.PathLike, names: Iterable[str]) -> None:
    """Check that no two columns of a table have the same name; empty names are ignored.

    Raises:
        ValueError: a duplicate name; the message names the file and the column.
    """
    for name, count in Counter(names).items():
        if name and count > 1:
            raise ValueError(
                f"{file}: found the column {printable(name)[:60]!r} {count} times, expected it once"
            )


def one_line(text: object) -> str:
    """``str`` of an object, such as an error, with each run of whitespace as a single space."""
    return " ".join(str(text).split())


def printable(text: object) -> str:
    """:func:`one_line`, with ``?`` for characters that cannot be printed.

    File names, and words from damaged files, may hold any bytes, such as terminal escapes.
    """
    return printable_lines(one_line(text))


def printable_lines(text: str) -> str:
    """A text with ``?`` for characters that cannot be printed; line breaks stay."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def _sync(path: Path, flags: int) -> None:
    """Flush a file or folder to disk if the file system supports it."""
    try:
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
