"""Size limits of scans, and optional packages."""

import importlib
import os
from types import ModuleType

from ..utils.values import MAX_SIDE, MAX_SLICES

_MAX_VOXELS = 2**32  # 8 GiB of int16; a scan of 3,000 slices of 1024 x 1024 has 3 * 2**30
#: zlib's maximum expansion per byte; a file that declares more is damaged.
MAX_INFLATION = 1040


def check_size(source: str | os.PathLike, shape: tuple[int, int, int]) -> None:
    """Refuse implausible volume sizes before memory is allocated.

    Args:
        source: beginning of the message.
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
    """Refuse implausible slice sizes before memory is allocated.

    Args:
        source: beginning of the message.
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
    """Refuse a file that is shorter than its header declares.

    Args:
        source: beginning of the message.
        declared, found: bytes of pixels by the header, and bytes of the file.
        packed: whether the file may be compressed with zlib.

    Raises:
        ValueError: the file is too short.
    """
    if declared > found * (MAX_INFLATION if packed else 1):
        raise ValueError(
            f"{source}: found {found} bytes, expected pixels of {declared}: the file is truncated "
            "or damaged"
        )


def require(module: str) -> ModuleType:
    """Import a package of the extra ``scans``.

    Raises:
        ImportError: it cannot be imported; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module.partition('.')[0]} is needed for this and cannot be imported "
            f'({error}): pip install -e ".[scans]"'
        ) from None
