"""Files of ``torch.save``, read with ``weights_only`` and verified checksums."""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...data.formats.pickle_opcodes import Refused, check_opcodes
from ...utils.files import printable

# Names of refused globals in torch's messages.
_WANTED = re.compile(r"GLOBAL (\S+)|(?:function|class|type) <?(?:class )?'?([\w.]+)")
_DETAILS = "WeightsUnpickler error:"
_PICKLE = "/data.pkl"
_FOLDER = 0x10  # MS-DOS attribute of a ZIP member
_MAX_WORDS = 200  # characters in a message


class RefusedFile(ValueError):
    """A file contains something that could run code, or needs far more memory than its size."""


def read_pth(path: str, *, mmap: bool = False) -> object:
    """Read a file of ``torch.save`` with ``weights_only``.

    Raises:
        RefusedFile: it contains anything but tensors and plain containers; the message names it.
        ValueError: a checksum does not match.
        Exception: the file is damaged otherwise.
    """
    is_zip = check_zip(path)
    try:
        return torch.load(path, map_location="cpu", mmap=mmap and is_zip, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise _in_short(str(error)) from error


def check_zip(path: str) -> bool:
    """Verify the CRC-32 of all members of a file of ``torch.save``; torch does not.

    Files of torch before 1.6 are not ZIP files and have no checksums.

    Returns:
        Whether it is a ZIP file.

    Raises:
        RefusedFile: its pickle needs far more memory or time than its size suggests.
        ValueError: a checksum does not match; or members are compressed, marked as folders, have
            the same name or overlap, which torch never writes.
        zipfile.BadZipFile: the file is damaged otherwise.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    with zipfile.ZipFile(path) as parts:
        infos = parts.infolist()
        names = {info.filename for info in infos}
        if len(names) < len(infos) or sum(i.file_size for i in infos) > os.path.getsize(path):
            raise ValueError("found parts with the same name or overlapping")
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"found {printable(info.filename)[:100]} compressed")
            if info.is_dir() or info.external_attr & _FOLDER:  # torch reads them as empty
                raise ValueError(f"found {printable(info.filename)[:100]} marked as a folder")
        has_sums = any(info.CRC for info in infos)  # none with set_crc32_options(False)
        damaged = parts.testzip() if has_sums else None
        if damaged is not None:
            raise ValueError(
                f"found a wrong checksum of {printable(damaged)[:100]}: the file is damaged"
            )
        for info in infos:
            if info.filename.endswith(_PICKLE):
                if not has_sums:
                    del info.CRC  # then zipfile does not compare it
                try:
                    check_opcodes(parts.read(info))
                except Refused as error:
                    raise RefusedFile(str(error)) from None
    return True


def _in_short(text: str) -> ValueError:
    """Shorten torch's message, without its advice to load the file anyway."""
    if "TorchScript" in text:
        return RefusedFile("found a TorchScript program, expected weights")
    text = text.partition(_DETAILS)[2] or text
    if wanted := _WANTED.search(text):
        name = printable(wanted[1] or wanted[2])[:100].rstrip(".")
        return RefusedFile(
            f"found {name} in the pickle, expected tensors, numbers, text and plain containers"
        )
    return ValueError(printable(text.strip().partition("\n")[0])[:_MAX_WORDS])


def write_pth(data: Mapping[str, Any], path: Path) -> None:
    """Write with ``torch.save``, with checksums.

    Raises:
        OSError: it cannot be written.
    """
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        with open(path, "wb") as file:
            torch.save(dict(data), file)
    except RuntimeError as error:  # torch's, about its own position in the file
        if (cause := _os_error(error)) is None:
            raise
        raise OSError(cause.errno, os.strerror(cause.errno)) from error
    finally:
        torch.serialization.set_crc32_options(before)


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError with an errno in the context of another error."""
    while error is not None and not (isinstance(error, OSError) and error.errno):
        error = error.__cause__ or error.__context__
    return error
