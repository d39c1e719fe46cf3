"""State of each training process apart from weights and optimizer.

It consists of random states, used by the sampling of R-CNNs and by augmentations, including those
of loader workers; and of the running means of positive anchors that normalize the losses of
Detectron2's dense detectors, which are plain attributes instead of buffers, and start at 100.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from torch import nn

from ...modeling import MeanTeacher
from ...utils.random_states import packed, python_state, set_python_state, unpacked
from ..processes import unwrap

logger = logging.getLogger(__name__)

_NORMALIZER = "loss_normalizer"
# Name of the counts of pseudo-labels, and of their number, in checkpoints of earlier versions.
_OLD_NAME = "mined"


class ProcessStateHook(HookBase):
    """Saves the state of all processes in checkpoints, and restores it in a resumed run.

    It must come before the checkpoint is written. The evaluation and the mining of hard negatives,
    which follow in the same iteration, use random numbers, too. A resumed run repeats the
    evaluation, see :class:`CatchUpHook`, starting from the state ``before`` it. Mining is not
    repeated: a checkpoint that is written again after mining also has the state ``after`` it.

    Args:
        period: period of checkpoints; the last iteration has one, too.
    """

    def __init__(self, period: int):
        self._period = period
        self._kept: dict[str, Any] = {}

    def state_dict(self) -> dict:
        """The saved state of this iteration; empty if this is not a checkpoint to resume from."""
        return self._kept if self._kept.get("iteration") == self.trainer.iter else {}

    def load_state_dict(self, state_dict: dict) -> None:
        """Store the state for :meth:`restore`."""
        self._kept = state_dict

    def after_step(self) -> None:
        """Save the state if a checkpoint follows."""
        iteration = self.trainer.iter
        if (iteration + 1) % self._period == 0 or iteration >= self.trainer.max_iter - 1:
            self._kept = {"iteration": iteration}
            self.keep("before")

    def keep(self, moment: str) -> None:
        """Gather the state of all processes; all of them have to call it."""
        state = process_state(self.trainer.model)
        self._kept[moment] = comm.gather({**state, "loader": self.trainer.loader.state_dict()})

    def restore(self, moment: str) -> None:
        """Restore the processes' state of a moment, if the checkpoint has it."""
        if self._kept.get("iteration") != self.trainer.start_iter - 1:
            return
        states = self._kept.get(moment, [])
        if len(states) == comm.get_world_size():
            state = states[comm.get_rank()]
            self.trainer.restore_loader(state["loader"])
            restore_process_state(self.trainer.model, state)
        elif states:
            logger.warning(
                f"The checkpoint has random states of {len(states)} processes, but there are "
                f"{comm.get_world_size()}: random numbers differ from an uninterrupted run"
            )


def process_state(model: nn.Module) -> dict[str, Any]:
    """Return the state of this process, as tensors, numbers and plain containers.

    Args:
        model: the trained model.
    """
    state = {
        "torch": torch.get_rng_state(),
        "numpy": packed(np.random.get_state()),
        "python": python_state(),
        "normalizers": {
            name: float(getattr(module, _NORMALIZER))
            for name, module in unwrap(model).named_modules()
            if isinstance(module, DenseDetector) and hasattr(module, _NORMALIZER)
        },
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    if isinstance(unwrap(model), MeanTeacher):
        state["pseudo_labels"] = dict(unwrap(model).counts)
    return state


def restore_process_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Restore a state of :func:`process_state` in this process.

    Args:
        model: the trained model.
        state: state of a process.
    """
    np.random.set_state(unpacked(state["numpy"]))
    set_python_state(state["python"])
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    modules = dict(unwrap(model).named_modules())
    for name, value in state["normalizers"].items():
        if name in modules:
            setattr(modules[name], _NORMALIZER, value)
    counts = state.get("pseudo_labels", state.get(_OLD_NAME))
    if counts is not None and isinstance(unwrap(model), MeanTeacher):
        unwrap(model).counts.clear()
        unwrap(model).counts.update(
            {"pseudo_labels" if name == _OLD_NAME else name: n for name, n in counts.items()}
        )
