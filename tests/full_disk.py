"""A full disk: writing is an OSError, as beyond a limit on the size of files."""

import contextlib
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SIZE = 500  # bytes


@contextlib.contextmanager
def full_disk(size: int = SIZE) -> Iterator[None]:
    """No file of this process, nor of one that it starts, gets larger.

    What is imported meanwhile is not kept compiled: Python would not see that half of it is
    missing, until the next process imports it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def left(folder: Path) -> list[str]:
    """Names of all that is in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def check_refused(file: Path, write: Callable[[Path], object]) -> None:
    """Check that what is too long leaves the old file, or none, and an error of one line that
    names it; ``file`` is alone in its folder."""
    for before in ([], [file.name]):
        for name in before:
            file.with_name(name).write_bytes(b"old")
        with full_disk(), pytest.raises(OSError, match="File too large") as error:
            write(file)
        assert "\n" not in str(error.value) and str(error.value).endswith(f"/{file.name}'")
        assert left(file.parent) == before
    assert file.read_bytes() == b"old"
