"""The declared size of a compressed image, read before a decoder allocates memory."""

import struct

_J2K_START = b"\xff\x4f\xff\x51"  # SOC, SIZ
_BOXES = 4096  # maximum bytes before it in a JP2 file
_NO_SIZE = {0xC4, 0xC8, 0xCC}  # markers in C0 to CF that do not start a frame
_JPEG_LS = 0xF7


def declared_size(data: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components of a JPEG, JPEG-LS or JPEG 2000 image.

    Returns:
        The tuple, or None if they cannot be read.
    """
    start = data[:_BOXES].find(_J2K_START)
    if start >= 0:
        return _jpeg2000_size(data[start + 4 : start + 42])
    return _jpeg_size(data)


def _jpeg2000_size(header: bytes) -> tuple[int, int, int] | None:
    if len(header) < 38:
        return None
    right, bottom, left, top = struct.unpack(">4I", header[4:20])
    return bottom - top, right - left, int.from_bytes(header[36:38], "big")


def _jpeg_size(data: bytes) -> tuple[int, int, int] | None:
    at = data.find(b"\xff\xd8") + 2
    while 2 <= at <= len(data) - 10:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == _JPEG_LS or (0xC0 <= marker <= 0xCF and marker not in _NO_SIZE):
            rows, columns, components = struct.unpack(">HHB", data[at + 5 : at + 10])
            return rows, columns, components
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
