"""What computes the steps of a training, in mixed precision where it is asked for."""

import logging
import time

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer

logger = logging.getLogger(__name__)

_SCALER = "grad_scaler"


class CPUAMPTrainer(SimpleTrainer):
    """Mixed precision on the CPU: the losses are computed in bfloat16 where torch deems it safe.

    bfloat16 has the exponents of float32, so no loss is scaled, unlike in Detectron2's AMPTrainer,
    which is for CUDA only.
    """

    def run_step(self) -> None:
        """As in SimpleTrainer, with the forward pass under autocast."""
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
    """Detectron2's, which also goes on from a checkpoint of a run without a scale of the loss."""

    def load_state_dict(self, state_dict: dict) -> None:
        """As in Detectron2; the scale begins anew, and this is logged, where there was none."""
        if _SCALER not in state_dict:
            logger.warning(
                "SOLVER.AMP.ENABLED: found True, but the checkpoint is of a run without, or on a "
                "CPU; what follows is computed in mixed precision"
            )
            state_dict = {**state_dict, _SCALER: self.grad_scaler.state_dict()}
        super().load_state_dict(state_dict)


def step_trainer(cfg: CfgNode) -> type[SimpleTrainer]:
    """What computes a run's steps, in mixed precision where SOLVER.AMP.ENABLED is set."""
    if not cfg.SOLVER.AMP.ENABLED:
        return SimpleTrainer
    return CPUAMPTrainer if cfg.MODEL.DEVICE == "cpu" else GPUAMPTrainer
