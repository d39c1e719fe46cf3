"""Augmentations that go on over new loader workers as over the old ones.

What augmentations draw is by NumPy's global generator of the worker that loads an image. A worker
tells with every sample what state its generator is in then, so that workers of a resumed run can
begin where those of the interrupted run were, images that these had loaded ahead left out.
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
    """Loads samples, and tells the state of its worker's generator with each.

    Args:
        load: from a data set's dict to a sample.
        states: what the generators of the workers begin with; None leaves them as they are.
    """

    def __init__(self, load: Callable[[dict], dict], states: Sequence[NumpyState] | None = None):
        self._load = load
        self._states = states

    def __call__(self, record: dict) -> dict:
        """The sample, in a worker with the state after it."""
        worker = get_worker_info()
        if worker is None:
            return self._load(record)
        if self._states is not None:
            np.random.set_state(self._states[worker.id])
            self._states = None
        return {**self._load(record), _KEY: np.random.get_state()}


class WorkerStates:
    """The states of a loader's workers after the batches that were taken from it.

    Workers take turns: batch i is of worker i modulo their number. A loader that goes on for
    another one has workers in other turns; here they have the numbers of the first loader's.

    Args:
        number: of workers.
        seed: of the loader's generator.
    """

    def __init__(self, number: int, seed: int):
        self._number = number
        self._seed = seed
        self._num_batches = 0
        self._states: dict[int, NumpyState] = {}

    def take(self, batch: Iterable[dict]) -> None:
        """Note, and remove, what came with a batch."""
        for sample in batch:
            state = sample.pop(_KEY, None)
            if state is not None:
                self._states[self._num_batches % self._number] = state
        self._num_batches += 1

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` of as many workers takes."""
        return {
            "number": self._number,
            "seed": self._seed,
            "num_batches": self._num_batches,
            "states": {worker: packed(state) for worker, state in self._states.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[NumpyState] | None:
        """Go on for another loader.

        Returns:
            What the workers begin with, in their order; None where their number is another one.
        """
        if state["number"] != self._number:
            logger.warning(
                f"Augmentations of {state['number']} loader workers are in the checkpoint, and "
                f"there are {self._number}: they begin anew, unlike without the interruption"
            )
            return None
        self._seed, self._num_batches = state["seed"], state["num_batches"]
        self._states = {worker: unpacked(kept) for worker, kept in state["states"].items()}
        turns = [(self._num_batches + i) % self._number for i in range(self._number)]
        return [self._states.get(i) or first_state(self._seed, i) for i in turns]


def first_state(seed: int, worker: int) -> NumpyState:
    """What Detectron2's ``worker_init_reset_seed`` gives a worker of a loader.

    Args:
        seed: of the loader's generator, from which torch draws once.
        worker: its number.
    """
    generator = torch.Generator().manual_seed(seed)
    base = torch.empty((), dtype=torch.int64).random_(generator=generator).item()
    return np.random.RandomState((base + worker) % 2**31 + worker).get_state()
