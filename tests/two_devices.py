"""A second device for tests on machines that have none.

Tensors of the second device lie in the CPU's memory, but say that they are on "cuda:0". Calls that
mix them with tensors of the CPU, which a GPU refuses, are collected, and so are those at which the
host would wait for a GPU: it asks for a number, for a shape that depends on numbers, or brings
something over that is not pinned.
"""

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda", 0)
_CPU = torch.device("cpu")
_CURRENT_STREAM = torch.cuda.current_stream
_MOVES = ("to", "cuda", "cpu", "type", "copy_")
# Numbers and lists that leave the device.
_LEAVES = ("tolist", "item", "numpy")
# An index on the CPU is welcome on a GPU.
_INDEXING = ("__getitem__", "__setitem__", "index_put_", "index_put")
# What gives a number to the host, or has a shape that depends on numbers.
_WAITS = (
    *("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"),
    *("equal", "is_nonzero", "nonzero", "masked_select", "unique", "unique_consecutive"),
    *("bincount", "argwhere"),
)
# Tensors of lists and numbers, which lie in memory that is not pinned.
_FROM_LISTS = ("tensor", "as_tensor", "new_tensor")
# Frames that ask in the name of whoever called them.
_HELPERS = ("/torch/", "/torchvision/", "/fvcore/", "two_devices.py", "contextlib.py", "events.py")


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
    """While it lasts, "cuda" is a device.

    Attributes:
        mixed: calls that mix the two devices, and where this project made them.
        waits: places that make the host wait, and how often: the innermost line that is not
            torch's, nor Detectron2's indexing.
    """

    def __init__(self):
        super().__init__()
        self.mixed: list[str] = []
        self.waits: Counter[str] = Counter()
        self._patches = contextlib.ExitStack()

    def own_waits(self) -> Counter[str]:
        """The waits at lines of this project."""
        return Counter({at: n for at, n in self.waits.items() if "/lesion_d2/" in at})

    def place(self, *values: object) -> None:
        """Move modules to the second device, and tensors, also those of samples."""
        for value in values:
            if isinstance(value, nn.Module):
                self.place(*value.parameters(), *value.buffers())
            elif isinstance(value, Tensor):
                value._is_on_gpu = True
            elif isinstance(value, dict):
                self.place(*value.values())
            elif hasattr(value, "get_fields"):
                self.place(value.get_fields())
            elif isinstance(getattr(value, "tensor", None), Tensor):
                self.place(value.tensor)

    def __enter__(self):
        nms = torchvision.ops.boxes.nms

        def waiting_nms(boxes: Tensor, *args) -> Tensor:
            kept = nms(boxes, *args)
            if on_gpu(boxes):
                self._wait("nms")
                kept._is_on_gpu = True
            return kept

        self._patches.enter_context(mock.patch("torchvision.ops.boxes.nms", waiting_nms))
        self._patches.enter_context(mock.patch("torch.cuda.Event", lambda: _Event(self)))
        self._patches.enter_context(mock.patch("torch.cuda.is_available", lambda: True))
        if torch.cuda.current_stream is _CURRENT_STREAM:  # else a test has streams of its own
            self._patches.enter_context(
                mock.patch("torch.cuda.current_stream", lambda device: device)
            )
        return super().__enter__()

    def __exit__(self, *exception):
        self._patches.close()
        return super().__exit__(*exception)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", str(func)), dict(kwargs or {})
        inputs = list(_tensors([*args, *kwargs.values()]))
        if name == "__get__":
            return self._get(func, args)
        args, target = self._without_devices(name, args, kwargs)
        here = any(map(on_gpu, inputs))
        if self._waits(name, args, kwargs, here, target):
            self._wait(name)
        if here and name not in (*_MOVES, *_LEAVES) and self._mixes(name, args, inputs):
            frames = [f for f in traceback.extract_stack() if "/lesion_d2/" in f.filename]
            where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
            self.mixed.append(f"{name} at {where}")
        out = func(*args, **kwargs)
        if name == "copy_":
            target = on_gpu(args[0])
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
        kwargs.pop("pin_memory", None)
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

    def _waits(self, name, args, kwargs, here, target) -> bool:
        """Whether the host waits in a call."""
        if name in ("to", "copy_"):
            source, goal = args[-1] if name == "copy_" else args[0], target
            goal = on_gpu(args[0]) if name == "copy_" else target
            moves = goal is not None and isinstance(source, Tensor) and on_gpu(source) != goal
            return moves and not kwargs.get("non_blocking", False)
        if name in _FROM_LISTS:
            made_there = here if name == "new_tensor" and target is None else target
            return bool(made_there) and not isinstance(args[-1], Tensor)
        if name == "repeat_interleave":
            return here and "output_size" not in kwargs
        is_mask = name in _INDEXING and any(
            t.dtype == torch.bool and t.dim() > 0 and on_gpu(t) for t in _tensors(args[1:2])
        )
        return here and (name in _WAITS or is_mask)

    def _wait(self, name: str) -> None:
        for frame in reversed(traceback.extract_stack()):
            is_index = frame.name == "__getitem__" and "/structures/" in frame.filename
            if not is_index and not any(helper in frame.filename for helper in _HELPERS):
                self.waits[f"{name} at {frame.filename}:{frame.lineno}"] += 1
                return

    def _mixes(self, name, args, inputs) -> bool:
        if name in _INDEXING:
            indexed, index, *value = args
            value = list(_tensors(value))
            if not on_gpu(indexed):
                return any(map(on_gpu, _tensors([index, *(v for v in value if v.dim() > 0)])))
            return any(v.dim() > 0 and not on_gpu(v) for v in value)
        return any(not on_gpu(tensor) and tensor.dim() > 0 for tensor in inputs)


class _Event:
    """What was given to a GPU before it is done when the host has waited for something since."""

    def __init__(self, devices: TwoDevices):
        self._devices, self._before = devices, -1

    def record(self, stream: object) -> None:
        """As in torch, on the stream of the tensors' own device."""
        assert stream == GPU
        self._before = self._devices.waits.total()

    def query(self) -> bool:
        """As in torch."""
        return self._devices.waits.total() > self._before

    def synchronize(self) -> None:
        """As in torch."""
        if not self.query():
            self._devices._wait("synchronize")
