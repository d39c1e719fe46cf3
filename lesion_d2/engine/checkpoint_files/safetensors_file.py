"""Checkpoints as safetensors files: weights by name, and all other content.

Any reader of safetensors can load the model's weights. Other tensors, such as the optimizer's, are
named by their path: ``trainer/_trainer/optimizer/...``. All other content is JSON in the file's
metadata, with a checksum of the whole file, which the format lacks.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

_REST, _CHECKSUM = "lesion_d2.checkpoint", "lesion_d2.crc32"
_KINDS: dict[str, Callable] = {"list": list, "tuple": tuple}


def read_safetensors(path: str) -> dict[str, Any]:
    """Read a weight file, or a checkpoint of :func:`write_safetensors`.

    Raises:
        ValueError: the checksum does not match.
        SafetensorError: the file is damaged otherwise.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _REST not in metadata and _CHECKSUM not in metadata:
        return {"model": tensors}
    rest = metadata.get(_REST, "")
    if metadata.get(_CHECKSUM) != _checksum(tensors, rest):
        raise ValueError("found a wrong checksum: the file is damaged")
    data = _decoded(json.loads(rest), tensors)
    weights = {name: tensors[name] for name in data.pop("model")}
    return {"model": weights, **data}


def write_safetensors(data: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint.

    Args:
        data: ``model``, names to tensors, and other content: tensors, numbers, text and plain
            containers.
        path: the file.

    Raises:
        TypeError: a value has another type.
        OSError: it cannot be written.
    """
    tensors = {name: _packed(value) for name, value in data["model"].items()}
    others = {key: value for key, value in data.items() if key != "model"}
    tree = _encoded({**others, "model": list(tensors)}, "", tensors)
    rest = json.dumps(tree)
    metadata = {"format": "pt", _REST: rest, _CHECKSUM: _checksum(tensors, rest)}
    path.write_bytes(save(tensors, metadata))


def _packed(tensor: Tensor) -> Tensor:
    """A contiguous tensor that owns its memory, as the library requires."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _checksum(tensors: Mapping[str, Tensor], rest: str) -> str:
    total = zlib.crc32(rest.encode())
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), total)
    return f"{total:08x}"


def _encoded(value: object, place: str, tensors: dict[str, Tensor]) -> object:
    """JSON of a value; its tensors are added to ``tensors``, named by their path."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        place = place if place not in tensors else f"{place}/{len(tensors)}"
        tensors[place] = _packed(value)
        return {"tensor": place}
    if isinstance(value, dict):
        pairs = [
            [_encoded(k, "", tensors), _encoded(v, f"{place}/{k}".lstrip("/"), tensors)]
            for k, v in value.items()
        ]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [_encoded(v, f"{place}/{i}".lstrip("/"), tensors) for i, v in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": items}
    raise TypeError(
        f"{place}: found a {type(value).__name__} in the checkpoint, expected tensors, numbers, "
        "text and plain containers"
    )


def _decoded(value: object, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`_encoded`."""
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_decoded(key, tensors): _decoded(item, tensors) for key, item in content}
    return _KINDS[kind](_decoded(item, tensors) for item in content)
