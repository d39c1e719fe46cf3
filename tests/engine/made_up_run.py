"""A training of two numbers whose evaluations give made-up values."""

import weakref
from pathlib import Path

from lesion_d2.engine import (
    CatchUpHook,
    EarlyStopHook,
    LesionCheckpointer,
    PlateauHook,
    StoppableTrainer,
)

import torch
from detectron2.engine import hooks
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.utils import comm
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import nn

BASE_RATES = (1.0, 2.0)
FACTOR = 0.2
WARMUP_ITERS, WARMUP_FACTOR = 4, 0.25
STEP, STEP_FACTOR = 9, 0.5
_SCHEDULE_ITERS = 100  # more than any of these runs has


class MadeUpRun(StoppableTrainer):
    """Evaluates after every ``period`` iterations; ``saves``: a checkpoint after each.

    As in Detectron2, only the first process has the results; None among the values stands for
    results without the metric. The evaluation after the last iteration gives the best value of all.
    ``rates`` maps the iterations that were trained to the learning rates of both groups of
    parameters.
    """

    def __init__(
        self,
        folder: Path,
        values: list[float],
        *,
        period: int = 1,
        plateau: int = 2,
        early_stop: int = 4,
        optimizer: str = "SGD",
        metric: str = "bbox/AP50",
        mode: str = "max",
        num_last: int = 1,
        saves: bool = False,
    ):
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self.values = values
        self.metric = metric
        self.period = period
        self.max_iter = period * len(values) + num_last
        self.rates: dict[int, list[float]] = {}
        self.num_evaluations = 0
        model = nn.Linear(1, 1)
        groups = [
            {"params": [parameter], "lr": rate}
            for parameter, rate in zip(model.parameters(), BASE_RATES, strict=True)
        ]
        self.optimizer = getattr(torch.optim, optimizer)(groups, lr=0.0)
        self.scheduler = LRMultiplier(self.optimizer, _schedule(), _SCHEDULE_ITERS)
        self.checkpointer = LesionCheckpointer(model, str(folder), trainer=weakref.proxy(self))
        late = [hooks.EvalHook(period, self._evaluate)]
        if plateau:
            late.append(PlateauHook(period, metric, patience=plateau, factor=FACTOR, mode=mode))
        if early_stop:
            stop = {"patience": early_stop, "checkpointer": self.checkpointer, "mode": mode}
            late.append(EarlyStopHook(period, metric, **stop))
        self.late = late
        first = [hooks.LRScheduler()]
        if saves and comm.is_main_process():
            first.append(hooks.PeriodicCheckpointer(self.checkpointer, 1))
        self.register_hooks([*first, *late, CatchUpHook(period, late)])

    def _evaluate(self) -> dict:
        self.num_evaluations += 1
        if not comm.is_main_process():
            return {}
        index = self.storage.iter // self.period
        value = 1000.0 if self.storage.iter >= self.max_iter else self.values[index]
        task, name = self.metric.split("/")
        return {task: {"other": 0.0} if value is None else {name: value}}

    def run_step(self) -> None:
        self.rates[self.iter] = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.step()

    def run(self, *, resume: bool = False) -> "MadeUpRun":
        self.checkpointer.resume_or_load("", resume=resume)
        self.train(self.iter + 1 if resume else 0, self.max_iter)
        return self

    def state_dict(self) -> dict:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


def _schedule() -> WarmupParamScheduler:
    steps = MultiStepParamScheduler([1, STEP_FACTOR], milestones=[STEP, _SCHEDULE_ITERS])
    return WarmupParamScheduler(steps, WARMUP_FACTOR, WARMUP_ITERS / _SCHEDULE_ITERS)
