"""Files that are complete or absent, and what is read from them."""

import json
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


def read_json(file: str | os.PathLike, expected: str) -> object:
    """Read a JSON file.

    Args:
        file: its path.
        expected: what it should hold, for the message where it is not there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(Path(file).read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file, expected {expected}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: found no readable JSON ({one_line(error)})") from None


def one_line(text: object) -> str:
    """``str`` of something, such as an error, with single spaces for line breaks and the like."""
    return " ".join(str(text).split())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
