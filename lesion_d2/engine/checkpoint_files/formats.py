"""Formats of weight files, by suffix."""

import os
from collections.abc import Mapping
from typing import Any

from ...utils.files import atomic_write
from .pth import read_pth, write_pth
from .safetensors_file import read_safetensors, write_safetensors
from .zoo import read_pyth, read_zoo

#: Values of SOLVER.CHECKPOINT_FORMAT; the suffix of a checkpoint's name.
FORMATS = ("pth", "safetensors")
#: Suffixes of checkpoints, with the dot.
ENDINGS = tuple(f".{name}" for name in FORMATS)

_READERS = {".pkl": read_zoo, ".pyth": read_pyth, ".safetensors": read_safetensors}
_WRITERS = {".pth": write_pth, ".safetensors": write_safetensors}


def read_file(path: str, *, mmap: bool = False) -> dict[str, Any]:
    """Read a weight file or checkpoint to the CPU, without running code from it.

    ``.pkl`` files are from Detectron2's model zoo and Caffe2, ``.pyth`` from pycls,
    ``.safetensors`` from that library, and all others from ``torch.save``. Checksums are verified
    if the file has them.

    Args:
        path: a local file.
        mmap: memory-map the tensors of ``torch.save`` instead of reading them.

    Returns:
        ``model``, names to tensors or arrays, and other content of the file.

    Raises:
        RefusedFile: the file contains anything but tensors, arrays, numbers, text and plain
            containers; the message names it.
        ValueError: a checksum does not match.
        Exception: the file is damaged otherwise; raised by its library.
    """
    ending = os.path.splitext(path)[1]
    if ending in _READERS:
        return _READERS[ending](path)
    loaded = read_pth(path, mmap=mmap)
    if not isinstance(loaded, Mapping):
        raise ValueError(f"found a {type(loaded).__name__}, expected named weights")
    return loaded if "model" in loaded else {"model": loaded}


def write_file(data: Mapping[str, Any], path: str) -> None:
    """Write a checkpoint atomically, in the format of its suffix.

    Args:
        data: ``model``, names to tensors, and other content: tensors, numbers, text and plain
            containers.
        path: path with a suffix of :data:`ENDINGS`.

    Raises:
        OSError: it cannot be written, for example because the disk is full; the message names the
            file.
    """
    write = _WRITERS[os.path.splitext(path)[1]]
    with atomic_write(path) as partial:
        write(data, partial)
