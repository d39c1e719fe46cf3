"""Work on a GPU that the host does not wait for.

A number that comes from a GPU, and every shape that depends on one (rows that a mask chooses),
makes the host wait until the GPU has done all that it was given, and the GPU then waits for the
host.
"""

from weakref import WeakKeyDictionary

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor


class HostCopy:
    """A tensor on its way to the host, which goes on meanwhile; on a CPU the tensor itself.

    Args:
        tensor: without a gradient.
    """

    def __init__(self, tensor: Tensor):
        self._event = None
        if tensor.is_cuda:
            # A virtual GPU, as in tests, has neither pinned memory nor events.
            is_real = torch.cuda.is_available()
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_real)
            self._array = buffer.numpy()
            buffer.copy_(tensor, non_blocking=True)
            self._event = _record_event(tensor.device) if is_real else None
        else:
            self._array = tensor.numpy()

    def has_arrived(self) -> bool:
        """Whether :meth:`read` would not wait."""
        return self._event is None or self._event.query()

    def read(self) -> np.ndarray:
        """The numbers on the host; where they have not arrived, this waits."""
        if self._event is not None:
            self._event.synchronize()
        return self._array


def _record_event(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))  # of the copy, on whichever GPU that is
    return event


def to_host(*tensors: Tensor) -> list[Tensor]:
    """Tensors on the host, which waits once for all of those that are on a GPU.

    Args:
        tensors: numbers that a double holds exactly, with or without a gradient.
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
    """Instances of the host on a device, which a GPU is not waited for."""
    uploaded = Instances(instances.image_size)
    for name, value in instances.get_fields().items():
        tensor = value.tensor if isinstance(value, Boxes) else value
        tensor = tensor.to(device, non_blocking=True)
        uploaded.set(name, type(value)(tensor) if isinstance(value, Boxes) else tensor)
    return uploaded


# Of each storage, what the last step computed for it.
_on_their_way: WeakKeyDictionary[EventStorage, dict[str, HostCopy]] = WeakKeyDictionary()


def put_scalar(name: str, value: Tensor) -> None:
    """Put a number into the event storage; of a GPU, that of the step before.

    Nobody has to wait for that one any more. The first step puts none.

    Args:
        name: of the scalar.
        value: of no dimension.
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
    """The rows that a loss looks at; on a GPU, whose count is not waited for, others with them.

    Args:
        counts: (N, R) bool.
        values: (N, R, ...) each.
        at_most: no more rows count, of all images together. A GPU looks at so many, otherwise at
            all.

    Returns:
        Which of the rows that follow count, None for all of them, and the rows (n, ...) of each
        value. :func:`sum_of_rows` adds up their losses.
    """
    if not counts.is_cuda:
        return None, [value[counts] for value in values]
    rows = [value.flatten(0, 1) for value in values]
    if at_most is None:
        return counts.flatten(), rows
    found = torch.nonzero_static(counts.flatten(), size=at_most)[:, 0]  # -1 after the last one
    return found >= 0, [value[found.clamp(min=0)] for value in rows]


def sum_of_rows(losses: Tensor, counts: Tensor | None) -> Tensor:
    """The sum of the losses (n, ...) of the rows of :func:`rows_that_count`."""
    if counts is not None:
        losses = losses.masked_fill(~counts.view(-1, *[1] * (losses.dim() - 1)), 0)
    return losses.sum()


def indices_of(mask: Tensor, number: int) -> tuple[Tensor, ...]:
    """As ``mask.nonzero(as_tuple=True)``, where the number of True elements is known."""
    found = torch.nonzero_static(mask, size=number) if mask.is_cuda else mask.nonzero()
    return found.unbind(dim=1)
