"""Reading of DICOM files, with one-line errors."""

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from ...utils.files import printable
from ..limits import require

if TYPE_CHECKING:
    import pydicom

_DEFLATED = b"1.2.840.10008.1.2.1.99"
#: Maximum bytes of a deflated file once inflated.
MAX_INFLATED = 2 << 30
_META_BYTES = 4096
_MAX_WORDS = 1000
_CHUNK = 1 << 20
# Headers of 5,000 frames need fewer; each element takes a few reads.
_MAX_READINGS = 2_000_000
# A file without preamble starts with an element of one of these groups, little endian.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")


def is_dicom(opened: BinaryIO) -> bool:
    """Whether a file's first bytes are those of DICOM, with or without preamble."""
    start = opened.read(136)
    opened.seek(0)
    if start[128:132] == b"DICM":
        return True
    # Element numbers are small, followed by a VR of two capitals or a short length.
    return (
        len(start) > 8
        and start[:2] in _FIRST_GROUPS
        and start[3] == 0
        and start[7] in b"\0ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    )


def read_dataset(opened: BinaryIO, **options) -> "pydicom.Dataset":
    """Read a dataset from an open file, as :func:`pydicom.dcmread` does.

    Raises:
        ValueError: the file is damaged; the message has no file name.
    """
    pydicom = require("pydicom")
    _check_inflated(opened)
    try:
        dataset = pydicom.dcmread(_Bounded(opened), force=True, **options)
        if not dataset.file_meta.get("TransferSyntaxUID"):
            dataset.file_meta.TransferSyntaxUID = _guessed_syntax(dataset)
    except Exception as error:  # pydicom raises any kind of error for damaged files
        raise ValueError(f"found a damaged DICOM file ({describe(error)})") from None
    return dataset


class _Bounded:
    """An open file with a limit on reads, as a small archive may hold 10^8 elements."""

    def __init__(self, opened: BinaryIO):
        self._opened, self._left = opened, _MAX_READINGS

    def __getattr__(self, name: str):
        return getattr(self._opened, name)

    def read(self, *size: int) -> bytes:
        """Read as the file's method does.

        Raises:
            ValueError: the limit is exceeded.
        """
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"more elements than {_MAX_READINGS} readings take")
        return self._opened.read(*size)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress pydicom's many warnings, which are about values that are not used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")
        yield


def describe(error: BaseException) -> str:
    """An error's message on one line, or its class if it has none.

    Messages may contain any bytes of a damaged file, and be long.
    """
    return printable(error)[:_MAX_WORDS] or type(error).__name__


def _guessed_syntax(dataset: "pydicom.Dataset") -> str:
    from pydicom import uid

    implicit, little = dataset.original_encoding
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _check_inflated(opened: BinaryIO) -> None:
    """Refuse a deflated dataset that would fill the memory, as pydicom inflates it as a whole."""
    start = opened.read(_META_BYTES)
    opened.seek(0)
    at = start.find(_DEFLATED)
    if at < 0:
        return
    # The meta information has its own length; what follows is deflated.
    if start[132:136] != b"\x02\x00\x00\x00":
        raise ValueError("found a deflated DICOM file without the length of its meta information")
    opened.seek(144 + int.from_bytes(start[140:144], "little"))
    inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while chunk := opened.read(_CHUNK):
            while chunk:
                total += len(inflate.decompress(chunk, _CHUNK))
                chunk = inflate.unconsumed_tail
                if total > MAX_INFLATED:
                    raise ValueError(
                        f"found a deflated DICOM file of more than {MAX_INFLATED} bytes"
                    )
    except zlib.error as error:
        raise ValueError(f"found a damaged deflated DICOM file ({error})") from None
    opened.seek(0)
