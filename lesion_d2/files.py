"""Files that are complete or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(file: str | os.PathLike) -> Iterator[Path]:
    """Give a path beside ``file`` to write to; it becomes ``file`` when the block ends well.

    At every moment, even of a kill or a power cut, ``file`` is the old one or the whole new one.
    What a killed process leaves beside it has one name, and the next writer of ``file`` replaces
    it.
    """
    file = Path(file)
    partial = file.with_name(f".{file.name}.part")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(file.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
