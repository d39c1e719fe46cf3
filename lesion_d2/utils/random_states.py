"""States of random generators as tensors, numbers and plain containers, which checkpoints hold."""

import random
from typing import Any

import numpy as np
import torch

# As numpy.random.get_state gives it: the generator's kind, its keys and three numbers.
NumpyState = tuple[Any, ...]


def packed(state: NumpyState) -> list[Any]:
    """A state of NumPy's global generator, for a checkpoint."""
    kind, keys, *rest = state
    return [kind, torch.from_numpy(keys.astype(np.int64)), *rest]


def unpacked(state: list[Any]) -> NumpyState:
    """What :func:`packed` was given."""
    kind, keys, *rest = state
    return kind, keys.numpy().astype(np.uint32), *rest


def python_state() -> list[Any]:
    """The state of the global generator of :mod:`random`."""
    version, numbers, gauss = random.getstate()
    return [version, torch.tensor(numbers), gauss]


def set_python_state(state: list[Any]) -> None:
    """Give the global generator of :mod:`random` a state of :func:`python_state`."""
    version, numbers, gauss = state
    random.setstate((version, tuple(numbers.tolist()), gauss))
