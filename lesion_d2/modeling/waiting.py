"""Avoids synchronization of the host with a GPU.

Reading a number from a GPU, or a shape that depends on one (rows selected by a mask), makes the
host wait until the GPU has finished all queued work, and then the GPU waits for the host.
"""

from weakref import WeakKeyDictionary

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor


class HostCopy:
    """An asynchronous copy of a tensor to the host; on a CPU, the tensor itself.

    Args:
        tensor: a tensor without gradient.
    """

    def __init__(self, tensor: Tensor):
        self._event = None
        if tensor.is_cuda:
            # A fake GPU, as in tests, has neither pinned memory nor events.
            is_real = torch.cuda.is_available()
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_real)
            self._array = buffer.numpy()
            buffer.copy_(tensor, non_blocking=True)
            self._event = _record_event(tensor.device) if is_real else None
        else:
            self._array = tensor.numpy()

    def has_arrived(self) -> bool:
        """Whether :meth:`read` returns without waiting."""
        return self._event is None or self._event.query()

    def read(self) -> np.ndarray:
        """Return the numbers on the host; waits if they have not arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._array


def _record_event(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))  # of the copy, on the tensor's GPU
    return event


def to_host(*tensors: Tensor) -> list[Tensor]:
    """Copy tensors to the host, with one synchronization for all of them.

    Args:
        tensors: tensors of numbers that float64 represents exactly, with or without gradient.
    """
    moved = [tensor for tensor in tensors if tensor.is_cuda]
    if not moved:
        return list(tensors)
    packed = torch.cat([tensor.detach().flatten().double() for tensor in moved]).cpu()
    parts = iter(packed.split([tensor.numel() for tensor in moved]))
    return [
        next(parts).view(tensor.shape).to(tensor.dtype) if tensor.is_cuda else tensor
        for tensor in tensors
    ]


def upload(instances: Instances, device: torch.device) -> Instances:
    """Copy instances from the host to a device, without synchronization."""
    uploaded = Instances(instances.image_size)
    for name, value in instances.get_fields().items():
        tensor = value.tensor if isinstance(value, Boxes) else value
        tensor = tensor.to(device, non_blocking=True)
        uploaded.set(name, type(value)(tensor) if isinstance(value, Boxes) else tensor)
    return uploaded


# Event storage -> scalars of the last step.
_on_their_way: WeakKeyDictionary[EventStorage, dict[str, HostCopy]] = WeakKeyDictionary()


def put_scalar(name: str, value: Tensor) -> None:
    """Put a scalar into the event storage; on a GPU, the one of the previous step.

    That one is available without waiting. The first step puts none.

    Args:
        name: name of the scalar.
        value: tensor with a single element.
    """
    storage = get_event_storage()
    copy = HostCopy(value.detach())
    if value.is_cuda:
        waiting = _on_their_way.setdefault(storage, {})
        waiting[name], copy = copy, waiting.get(name)
    if copy is not None:
        storage.put_scalar(name, copy.read().item())


def rows_that_count(
    counts: Tensor, *values: Tensor, at_most: int | None = None
) -> tuple[Tensor | None, list[Tensor]]:
    """Select the rows for a loss; on a GPU, with additional rows instead of a synchronization.

    Args:
        counts: (N, R) bool.
        values: (N, R, ...) each.
        at_most: upper limit of the number of rows of all images, which is selected on a GPU; by
            default all rows are.

    Returns:
        Which of the returned rows count (None for all), and the rows (n, ...) of each value. Use
        :func:`sum_of_rows` to sum their losses.
    """
    if not counts.is_cuda:
        return None, [value[counts] for value in values]
    rows = [value.flatten(0, 1) for value in values]
    if at_most is None:
        return counts.flatten(), rows
    found = torch.nonzero_static(counts.flatten(), size=at_most)[:, 0]  # -1 after the last one
    return found >= 0, [value[found.clamp(min=0)] for value in rows]


def sum_of_rows(losses: Tensor, counts: Tensor | None) -> Tensor:
    """Sum the losses (n, ...) of the rows of :func:`rows_that_count`."""
    if counts is not None:
        losses = losses.masked_fill(~counts.view(-1, *[1] * (losses.dim() - 1)), 0)
    return losses.sum()


def indices_of(mask: Tensor, number: int) -> tuple[Tensor, ...]:
    """As ``mask.nonzero(as_tuple=True)``, with a known number of True elements."""
    found = torch.nonzero_static(mask, size=number) if mask.is_cuda else mask.nonzero()
    return found.unbind(dim=1)
