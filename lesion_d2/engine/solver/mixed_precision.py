"""Trainers of single steps, optionally in mixed precision."""

import logging
import time

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer

logger = logging.getLogger(__name__)

_SCALER = "grad_scaler"


class CPUAMPTrainer(SimpleTrainer):
    """Mixed precision on the CPU, with bfloat16 where torch's autocast considers it safe.

    bfloat16 has the exponents of float32, so losses are not scaled, unlike in Detectron2's
    AMPTrainer, which supports CUDA only.
    """

    def run_step(self) -> None:
        """As in SimpleTrainer, with autocast in the forward pass."""
        assert self.model.training, "[CPUAMPTrainer] model was changed to eval mode!"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss_dict = self.model(data)
            losses = sum(loss_dict.values())
        self.optimizer.zero_grad()
        losses.backward()
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.optimizer.step()


class GPUAMPTrainer(AMPTrainer):
    """Detectron2's AMPTrainer; can also resume from a checkpoint without a loss scale."""

    def load_state_dict(self, state_dict: dict) -> None:
        """As in Detectron2; a missing loss scale is initialized and logged."""
        if _SCALER not in state_dict:
            logger.warning(
                "SOLVER.AMP.ENABLED: found True, but the checkpoint is from a run without it, or "
                "on a CPU; training continues in mixed precision"
            )
            state_dict = {**state_dict, _SCALER: self.grad_scaler.state_dict()}
        super().load_state_dict(state_dict)


def step_trainer(cfg: CfgNode) -> type[SimpleTrainer]:
    """Return the class that computes training steps, depending on SOLVER.AMP.ENABLED."""
    if not cfg.SOLVER.AMP.ENABLED:
        return SimpleTrainer
    return CPUAMPTrainer if cfg.MODEL.DEVICE == "cpu" else GPUAMPTrainer
