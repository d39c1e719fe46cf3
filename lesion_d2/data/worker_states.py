"""Random states of loader workers, so that augmentations continue in a resumed run.

Augmentations use NumPy's global generator of the worker that loads an image. A worker returns the
state of its generator with every sample, so that workers of a resumed run can continue after the
last consumed batch, independently of prefetched images.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from ..utils.random_states import NumpyState, packed, unpacked

logger = logging.getLogger(__name__)

_KEY = "worker_state"


class StatefulLoad:
    """Loads samples, and returns the state of its worker's generator with each.

    Args:
        load: maps a data set's dict to a sample.
        states: initial states of the workers' generators; None to keep them.
    """

    def __init__(self, load: Callable[[dict], dict], states: Sequence[NumpyState] | None = None):
        self._load = load
        self._states = states

    def __call__(self, record: dict) -> dict:
        """Load a sample; in a worker, add the state after it."""
        worker = get_worker_info()
        if worker is None:
            return self._load(record)
        if self._states is not None:
            np.random.set_state(self._states[worker.id])
            self._states = None
        return {**self._load(record), _KEY: np.random.get_state()}


class WorkerStates:
    """The states of a loader's workers after the consumed batches.

    Batch i is from worker i modulo their number. If a loader continues another one, its workers are
    in a different rotation; here they are numbered as in the first loader.

    Args:
        number: number of workers.
        seed: random seed of the loader's generator.
    """

    def __init__(self, number: int, seed: int):
        self._number = number
        self._seed = seed
        self._num_batches = 0
        self._states: dict[int, NumpyState] = {}

    def take(self, batch: Iterable[dict]) -> None:
        """Store and remove the states in a batch."""
        for sample in batch:
            state = sample.pop(_KEY, None)
            if state is not None:
                self._states[self._num_batches % self._number] = state
        self._num_batches += 1

    def state_dict(self) -> dict[str, Any]:
        """The states, for :meth:`load_state_dict` with the same number of workers."""
        return {
            "number": self._number,
            "seed": self._seed,
            "num_batches": self._num_batches,
            "states": {worker: packed(state) for worker, state in self._states.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[NumpyState] | None:
        """Continue from the state of another loader.

        Returns:
            The initial states of the workers, in order; None if their number differs.
        """
        if state["number"] != self._number:
            logger.warning(
                f"The checkpoint has augmentation states of {state['number']} loader workers, but "
                f"there are {self._number}: they restart, so the run differs from an "
                "uninterrupted one"
            )
            return None
        self._seed, self._num_batches = state["seed"], state["num_batches"]
        self._states = {worker: unpacked(kept) for worker, kept in state["states"].items()}
        turns = [(self._num_batches + i) % self._number for i in range(self._number)]
        return [self._states.get(i) or first_state(self._seed, i) for i in turns]


def first_state(seed: int, worker: int) -> NumpyState:
    """Return the initial state of a worker by Detectron2's ``worker_init_reset_seed``.

    Args:
        seed: random seed of the loader's generator, from which torch draws once.
        worker: index of the worker.
    """
    generator = torch.Generator().manual_seed(seed)
    base = torch.empty((), dtype=torch.int64).random_(generator=generator).item()
    return np.random.RandomState((base + worker) % 2**31 + worker).get_state()
