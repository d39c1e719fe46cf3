"""Asynchronous copies of samples from the host to a GPU."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from ..structures import BitMasks3D, Boxes3D

# Keys that models move to their device, in addition to images.
_ANNOTATIONS = ("instances", "hidden_boxes", "slice_to_image")
_HOLDERS = (Boxes, BitMasks, Boxes3D, BitMasks3D)  # of one tensor


def copy_to_gpu(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a GPU asynchronously on the current stream, through pinned memory."""
    return tensor.pin_memory().to(device, non_blocking=True)


def move_annotations(sample: dict, move: Callable[[Tensor], Tensor]) -> None:
    """Move the annotations of a sample to a device, in place.

    Args:
        sample: result of a mapper, in training with ``instances``.
        move: moves a tensor to the device.
    """
    for key in _ANNOTATIONS:
        if key in sample:
            sample[key] = _moved(sample[key], move)


def annotation_tensors(sample: dict) -> Iterator[Tensor]:
    """Yield the tensors that :func:`move_annotations` moves."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    for key in _ANNOTATIONS:
        if key in sample:
            _moved(sample[key], keep)
    yield from found


def _moved(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, _HOLDERS):
        return type(value)(move(value.tensor))
    if isinstance(value, Instances):
        fields = {name: _moved(field, move) for name, field in value.get_fields().items()}
        return Instances(value.image_size, **fields)
    return value  # HostFlags stay on the host
