"""What a file may ask for: sizes that a scan can have, packages that may not be there."""

import importlib
import os
from types import ModuleType

from ..utils.values import MAX_SIDE, MAX_SLICES

_MAX_VOXELS = 2**32  # 8 GiB of int16; a scan of 3,000 slices of 1024 x 1024 has 3 * 2**30
#: zlib makes no more than this many bytes of one; so a file that declares more is damaged.
MAX_INFLATION = 1040


def check_size(source: str | os.PathLike, shape: tuple[int, int, int]) -> None:
    """Refuse sizes that no scan has, before memory is asked for.

    Args:
        source: what begins the message.
        shape: Z, H, W.

    Raises:
        ValueError: an axis is empty or too long, or there are too many voxels.
    """
    depth, height, width = shape
    sizes_fit = 0 < depth <= MAX_SLICES and all(0 < n <= MAX_SIDE for n in (height, width))
    if not sizes_fit or depth * height * width > _MAX_VOXELS:
        raise ValueError(
            f"{source}: found {depth} slices of {width} x {height} pixels, expected at most "
            f"{MAX_SLICES} slices, {MAX_SIDE} x {MAX_SIDE} pixels and 2^32 voxels"
        )


def check_picture_size(source: str | os.PathLike, size: tuple[int, int]) -> None:
    """Refuse heights and widths that no slice has, before memory is asked for.

    Args:
        source: what begins the message.
        size: H, W.

    Raises:
        ValueError: a side is 0 or too long.
    """
    height, width = size
    if not all(0 < side <= MAX_SIDE for side in size):
        raise ValueError(
            f"{source}: found {width} x {height} pixels, expected 1 x 1 to {MAX_SIDE} x {MAX_SIDE}"
        )


def check_declared(source: str | os.PathLike, declared: int, found: int, packed: bool) -> None:
    """Refuse a file that is too short for what its header declares.

    Args:
        source: what begins the message.
        declared, found: bytes of pixels by the header, and of the file.
        packed: whether the file may be compressed by zlib.

    Raises:
        ValueError: it is too short.
    """
    if declared > found * (MAX_INFLATION if packed else 1):
        raise ValueError(
            f"{source}: found {found} bytes, expected pixels of {declared}: the file is truncated "
            "or damaged"
        )


def require(module: str) -> ModuleType:
    """Import a package that is installed with the extra ``scans``.

    Raises:
        ImportError: it is not there; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module.partition('.')[0]} is needed for this and cannot be imported "
            f'({error}): pip install -e ".[scans]"'
        ) from None
