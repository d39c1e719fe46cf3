"""Which format a file of weights has, by its ending."""

import os
from collections.abc import Mapping
from typing import Any

from ...utils.files import atomic_write
from .pth import read_pth, write_pth
from .safetensors_file import read_safetensors, write_safetensors
from .zoo import read_pyth, read_zoo

#: What SOLVER.CHECKPOINT_FORMAT may be; the ending of a checkpoint's name.
FORMATS = ("pth", "safetensors")
#: Of the names of checkpoints, with the dot.
ENDINGS = tuple(f".{name}" for name in FORMATS)

_READERS = {".pkl": read_zoo, ".pyth": read_pyth, ".safetensors": read_safetensors}
_WRITERS = {".pth": write_pth, ".safetensors": write_safetensors}


def read_file(path: str, *, mmap: bool = False) -> dict[str, Any]:
    """Read a file of weights, or a checkpoint, to the CPU, and nothing that could run code.

    ``.pkl`` are the files of Detectron2's model zoo and of Caffe2, ``.pyth`` those of pycls,
    ``.safetensors`` those of that library, and anything else is what ``torch.save`` wrote. Where a
    file has checksums, they are verified.

    Args:
        path: a local file.
        mmap: let the tensors of ``torch.save`` be mapped rather than read.

    Returns:
        ``model``, names to tensors or arrays, and whatever else the file has.

    Raises:
        RefusedFile: the file wants to load anything but tensors, arrays, numbers, text and plain
            containers, which is named.
        ValueError: its checksums do not fit.
        Exception: it is damaged otherwise, as its library tells it.
    """
    ending = os.path.splitext(path)[1]
    if ending in _READERS:
        return _READERS[ending](path)
    loaded = read_pth(path, mmap=mmap)
    if not isinstance(loaded, Mapping):
        raise ValueError(f"found a {type(loaded).__name__}, expected named weights")
    return loaded if "model" in loaded else {"model": loaded}


def write_file(data: Mapping[str, Any], path: str) -> None:
    """Write a checkpoint in the format of its ending; it is there whole or not at all.

    Args:
        data: ``model``, names to tensors, and what else goes with it: tensors, numbers, text and
            plain containers.
        path: ends with one of :data:`ENDINGS`.

    Raises:
        OSError: it cannot be written, such as on a full disk; names the file.
    """
    write = _WRITERS[os.path.splitext(path)[1]]
    with atomic_write(path) as partial:
        write(data, partial)
