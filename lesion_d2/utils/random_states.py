"""States of random generators as plain values that checkpoints can hold."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# As returned by numpy.random.get_state: the generator's name, its keys and three numbers.
NumpyState = tuple[Any, ...]


def packed(state: NumpyState) -> list[Any]:
    """Convert a state of NumPy's global generator for a checkpoint."""
    kind, keys, *rest = state
    return [kind, torch.from_numpy(keys.astype(np.int64)), *rest]


def unpacked(state: list[Any]) -> NumpyState:
    """The inverse of :func:`packed`."""
    kind, keys, *rest = state
    return kind, keys.numpy().astype(np.uint32), *rest


def python_state() -> list[Any]:
    """The state of the global generator of :mod:`random`."""
    version, numbers, gauss = random.getstate()
    return [version, torch.tensor(numbers), gauss]


def set_python_state(state: list[Any]) -> None:
    """Restore a state from :func:`python_state`."""
    version, numbers, gauss = state
    random.setstate((version, tuple(numbers.tolist()), gauss))


@contextmanager
def numpy_state_kept() -> Iterator[None]:
    """Restore the state of NumPy's global generator after the block."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Restore the states of the global generators of Python, NumPy and torch after the block.

    For torch, these are the generators of the CPU and of :func:`used_gpu`.
    """
    python_state = random.getstate()
    with torch.random.fork_rng(used_gpu()), numpy_state_kept():
        try:
            yield
        finally:
            random.setstate(python_state)


def used_gpu() -> list[int]:
    """A list with the current GPU's index; empty if this process has not used a GPU yet."""
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
