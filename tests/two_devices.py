"""A second device for tests on machines that have none.

Tensors of the second device lie in the CPU's memory, but say that they are on "cuda:0". Calls that
mix them with tensors of the CPU, which a GPU refuses, are collected.
"""

import traceback
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda", 0)
_CPU = torch.device("cpu")
_MOVES = ("to", "cuda", "cpu", "type", "copy_")
# Numbers and lists that leave the device.
_LEAVES = ("tolist", "item", "numpy")
# An index on the CPU is welcome on a GPU.
_INDEXING = ("__getitem__", "__setitem__", "index_put_", "index_put")


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def on_gpu(tensor: Tensor) -> bool:
    """Whether a tensor is on the second device."""
    return getattr(tensor, "_is_on_gpu", False)


class TwoDevices(TorchFunctionMode):
    """While it lasts, "cuda" is a device, and what mixes the two is in ``mixed``."""

    def __init__(self):
        super().__init__()
        self.mixed: list[str] = []

    def place(self, module: nn.Module) -> None:
        """Move a module to the second device."""
        for tensor in (*module.parameters(), *module.buffers()):
            tensor._is_on_gpu = True

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", str(func)), dict(kwargs or {})
        inputs = list(_tensors([*args, *kwargs.values()]))
        if name == "__get__":
            return self._get(func, args)
        args, target = self._without_devices(name, args, kwargs)
        here = any(map(on_gpu, inputs))
        if here and name not in (*_MOVES, *_LEAVES) and self._mixes(name, args, inputs):
            frames = [f for f in traceback.extract_stack() if "/lesion_d2/" in f.filename]
            where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
            self.mixed.append(f"{name} at {where}")
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            if any(tensor is one for one in inputs):
                if target is None or on_gpu(tensor) == target:
                    continue
                out = tensor = tensor.clone()  # a move makes a new tensor
            tensor._is_on_gpu = here if target is None else target
        return out

    def _get(self, func, args):
        owner = args[0]
        if func == Tensor.device.__get__ and on_gpu(owner):
            return GPU
        if func in (Tensor.is_cuda.__get__, Tensor.is_cpu.__get__) and on_gpu(owner):
            return func == Tensor.is_cuda.__get__
        out = func(*args)
        if isinstance(out, Tensor) and out is not owner and on_gpu(owner):
            out._is_on_gpu = True
        return out

    def _without_devices(self, name, args, kwargs):
        """The arguments on the CPU, and whether the result is to be on the second device."""
        target = {"cuda": True, "cpu": False}.get(name)
        if kwargs.get("device") is not None:
            target = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = _CPU
        kept = []
        for i, value in enumerate(args):
            if isinstance(value, torch.device) or (name == "to" and isinstance(value, str)):
                target, value = torch.device(value).type == "cuda", _CPU
            elif name == "to" and i > 0 and isinstance(value, Tensor):
                target = on_gpu(value)
            kept.append(value)
        return tuple(kept), target

    def _mixes(self, name, args, inputs) -> bool:
        if name in _INDEXING:
            indexed, index, *value = args
            if not on_gpu(indexed):
                return any(map(on_gpu, _tensors([index, *(v for v in value if v.dim() > 0)])))
            return any(isinstance(v, Tensor) and v.dim() > 0 and not on_gpu(v) for v in value)
        return any(not on_gpu(tensor) and tensor.dim() > 0 for tensor in inputs)
