"""Files that are complete or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(file: str | os.PathLike) -> Iterator[Path]:
    """Give a path beside ``file`` to write to; it becomes ``file`` when the block ends well."""
    file = Path(file)
    partial = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        yield partial
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
