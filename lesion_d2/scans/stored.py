"""Files on disk and in zip archives."""

import io
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import BinaryIO, NamedTuple

#: Errors for archives that are damaged, encrypted or of an unknown compression.
DAMAGED_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)
#: Maximum number of members of an archive, and maximum bytes of one.
MAX_MEMBERS, MAX_MEMBER_BYTES = 200_000, 4 << 30
_BUFFER = 1 << 16


class Stored(NamedTuple):
    """A file, or a member of a zip archive.

    Args:
        path: path of the file or the archive.
        member: name in the archive; None for a file.
        size: bytes; for a member, the uncompressed size that the archive declares.
    """

    path: str
    member: str | None
    size: int

    def __str__(self) -> str:
        text = self.path if self.member is None else f"{self.path}/{self.member}"
        # Names in an archive may have line breaks, and names on disk bytes that are not text.
        return "".join(letter if letter.isprintable() else "?" for letter in text)


class Storage:
    """Opens stored files; archives stay open until the ``with`` block ends.

    Members are never extracted under their names, so that these cannot write elsewhere.
    """

    def __init__(self):
        self._archives: dict[str, zipfile.ZipFile] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Storage":
        return self

    def __exit__(self, *details) -> None:
        self._archives.clear()
        self._stack.close()

    def archive(self, path: str) -> zipfile.ZipFile:
        """Open an archive, or return the open one.

        Raises:
            ValueError: it is damaged.
        """
        if path not in self._archives:
            try:
                self._archives[path] = self._stack.enter_context(zipfile.ZipFile(path))
            except DAMAGED_ARCHIVE as error:
                raise ValueError(f"{path}: found a damaged zip archive ({error})") from None
        return self._archives[path]

    def open(self, stored: Stored) -> BinaryIO:
        """Open a file for reading. A member is limited to its declared size."""
        if stored.member is None:
            return open(stored.path, "rb")
        member = self.archive(stored.path).open(stored.member)
        return io.BufferedReader(member, _BUFFER)

    def open_seekable(self, stored: Stored) -> BinaryIO:
        """Open a file to read parts of it in any order; a member is unpacked to a file without a
        name, which is gone when it is closed."""
        if stored.member is None:
            return open(stored.path, "rb")
        with self.open(stored) as member:
            copy = tempfile.TemporaryFile()  # noqa: SIM115, the caller closes it
            shutil.copyfileobj(member, copy)
        copy.seek(0)
        return copy


def files_below(folder: str, skip: Callable[[str], bool]) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and all folders below it with their file names, sorted by name.

    Hidden files and folders are left out, as are folders for which ``skip`` returns True. Links are
    followed; each folder is visited once.
    """
    visited = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(
            name for name in folders if not _is_hidden(name) and not skip(os.path.join(path, name))
        )
        names = sorted(name for name in names if not _is_hidden(name))
        yield path, [name for name in names if os.path.isfile(os.path.join(path, name))]


def stored_file(path: str) -> Stored:
    """A file on disk with its size."""
    return Stored(path, None, os.path.getsize(path))


def members_of(storage: Storage, path: str) -> list[Stored]:
    """The files in a zip archive, sorted by name.

    Raises:
        ValueError: the archive is damaged, or its uncompressed size is implausible.
    """
    infos = storage.archive(path).infolist()
    if len(infos) > MAX_MEMBERS:
        raise ValueError(f"{path}: found {len(infos)} members, expected at most {MAX_MEMBERS}")
    members = []
    for info in infos:
        parts = info.filename.split("/")
        is_link = stat.S_ISLNK(info.external_attr >> 16)
        if (
            not info.filename
            or info.is_dir()
            or is_link
            or any(map(_is_hidden, parts))
            or "__MACOSX" in parts
        ):
            continue
        if info.file_size > MAX_MEMBER_BYTES:
            raise ValueError(
                f"{path}: found the member {info.filename!r} of {info.file_size} bytes, expected "
                f"at most {MAX_MEMBER_BYTES}"
            )
        members.append(Stored(path, info.filename, info.file_size))
    return sorted(members, key=lambda member: member.member)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")
