"""Hooks that keep checkpoints, act on a metric, and draw the curves of a training."""

import logging
import math
import operator
import os
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path

from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.utils import comm

from .checkpoint_files.checkpointer import LesionCheckpointer, read_checkpoint
from .resuming import ProcessStateHook
from .training_curves import has_curves, plot_training, read_metrics

logger = logging.getLogger(__name__)


class RecentCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's PeriodicCheckpointer that keeps the last checkpoints, also after ``--resume``.

    It only removes periodic checkpoints of this run, never ``model_best.pth``, ``model_final.pth``,
    those in ``best``, or files of other runs. A checkpoint is removed after a newer one was written
    and tagged as the last one, so the checkpoint to resume from always exists.

    Args:
        checkpointer, period: as in Detectron2.
        max_to_keep: number of last checkpoints to keep; 0 for all.
    """

    def __init__(self, checkpointer: LesionCheckpointer, period: int, *, max_to_keep: int = 0):
        super().__init__(checkpointer, period)
        self._max_to_keep = max_to_keep
        self._iterations: list[int] = []

    def state_dict(self) -> dict:
        """The iterations of the existing checkpoints."""
        return {"iterations": self._iterations}

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue with the checkpoints of the resumed run."""
        self._iterations = list(state_dict["iterations"])

    def before_train(self) -> None:
        """As in Detectron2; write the final checkpoint of a run that was killed before writing it.

        The periodic checkpoint of the last iteration is written first, and such a run is resumed
        from it.
        """
        super().before_train()
        trainer, name = self.trainer, f"{self.file_prefix}_final"
        file = Path(self.checkpointer.save_dir, self.checkpointer.file_name(name))
        is_done = 0 < trainer.max_iter == trainer.start_iter
        is_last = self.checkpointer.get_checkpoint_file() == os.fspath(file)
        if is_done and not is_last and comm.is_main_process():
            trainer.iter = trainer.max_iter - 1
            self.checkpointer.save(name, iteration=trainer.iter)
            trainer.iter = trainer.start_iter

    def after_step(self) -> None:
        """As in Detectron2; then remove surplus checkpoints."""
        iteration = self.trainer.iter
        if (iteration + 1) % self.period == 0:
            # The checkpoint's own state includes it, for the run that resumes from it.
            self._iterations = [i for i in self._iterations if i != iteration] + [iteration]
        super().after_step()
        while 0 < self._max_to_keep < len(self._iterations):
            name = f"{self.file_prefix}_{self._iterations.pop(0):07d}"
            if comm.is_main_process():
                for file in self.checkpointer.files_of(name):  # in any format
                    os.remove(file)


class ResumableBestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's BestCheckpointer that keeps the best metric after ``--resume``.

    The best value is stored in the best checkpoint, in one file with its weights, so both always
    agree. A resumed run continues from that value, even if it resumes from a checkpoint older than
    the best one. Best checkpoints of other runs in the folder are ignored; runs are identified by
    an id in the trainer's state.

    Args:
        eval_period, checkpointer, val_metric, mode, file_prefix: as in Detectron2. The
            checkpointer is a :class:`LesionCheckpointer`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._run_id = uuid.uuid4().hex

    def state_dict(self) -> dict:
        """The id of this run, which is saved in checkpoints."""
        return {"run_id": self._run_id}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over the run id of a checkpoint."""
        self._run_id = state_dict["run_id"]

    def before_train(self) -> None:
        """Continue from the best checkpoint of this run, if there is one."""
        for path in self._checkpointer.files_of(self._file_prefix):
            best = read_checkpoint(path).get("best", {})
            is_ours = best.get("run_id") == self._run_id and best["metric"] == self._val_metric
            if is_ours and self._is_better(best["value"]):
                self._update_best(best["value"], best["iteration"])
                logger.info(f"Best {self._val_metric} so far: {best['value']:.5f} in {path}")

    def _is_better(self, value: float) -> bool:
        return self.best_metric is None or self._compare(value, self.best_metric)

    def _best_checking(self) -> None:
        if not comm.is_main_process():  # only it has the results
            return
        latest = self.trainer.storage.latest()
        if self._val_metric not in latest:
            logger.warning(f"No best checkpoint: {_missing_metric(self._val_metric, latest)}")
            return
        value, iteration = latest[self._val_metric]
        if not (math.isfinite(value) and self._is_better(value)):
            best = "none yet" if self.best_metric is None else f"{self.best_metric:.5f}"
            logger.info(f"{self._val_metric} is {value:.5f}, not better than the best: {best}")
            return
        self._update_best(float(value), iteration)
        best = {
            "metric": self._val_metric,
            "value": self.best_metric,
            "iteration": iteration,
            "run_id": self._run_id,
        }
        self._checkpointer.save(self._file_prefix, tag_last=False, iteration=iteration, best=best)
        logger.info(f"Best {self._val_metric} so far: {value:.5f} at iteration {iteration}")


class _PatienceHook(HookBase):
    """Acts if a metric has not improved for a number of consecutive evaluations.

    It counts the evaluations of :class:`hooks.EvalHook` during training, except those without the
    metric. A non-finite value is not an improvement. The first process has the results and
    broadcasts them, so that all processes act in the same iteration.

    The counts are saved in checkpoints. An iteration that is evaluated again after ``--resume``
    counts once; with another metric, counting restarts.
    """

    def __init__(self, eval_period: int, val_metric: str, *, patience: int, mode: str = "max"):
        self._period = eval_period
        self._val_metric = val_metric
        self._patience = patience
        self._is_better = {"max": operator.gt, "min": operator.lt}[mode]
        self._best: float | None = None
        self._num_not_better = 0
        self._last_iteration = -1
        self._has_warned = False

    def state_dict(self) -> dict:
        """The counts up to the last evaluation."""
        return {
            "metric": self._val_metric,
            "best": self._best,
            "num_not_better": self._num_not_better,
            "last_iteration": self._last_iteration,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue counting from a checkpoint."""
        if state_dict["metric"] == self._val_metric:
            self._best = state_dict["best"]
            self._num_not_better = state_dict["num_not_better"]
            self._last_iteration = state_dict["last_iteration"]

    def after_step(self) -> None:
        """Count the evaluation of this iteration, if there was one."""
        if is_evaluated(self.trainer, self._period):
            value = comm.all_gather(self._evaluated_value())[0]
            if value is not None:
                self._count(value, self.trainer.iter)
        if self._num_not_better >= self._patience:
            self._act()

    def _act(self) -> None:
        raise NotImplementedError

    def _evaluated_value(self) -> float | None:
        if not comm.is_main_process():
            return None
        latest = self.trainer.storage.latest()
        value, iteration = latest.get(self._val_metric, (None, None))
        if iteration == self.trainer.iter:
            return float(value)
        if not self._has_warned:
            self._has_warned = True
            missing = _missing_metric(self._val_metric, latest)
            logger.warning(f"{type(self).__name__} does not count: {missing}")
        return None

    def _count(self, value: float, iteration: int) -> None:
        if iteration <= self._last_iteration:
            return
        self._last_iteration = iteration
        is_better = self._best is None or self._is_better(value, self._best)
        if math.isfinite(value) and is_better:
            self._best, self._num_not_better = value, 0
        else:
            self._num_not_better += 1

    def _describe(self) -> str:
        best = "" if self._best is None else f" than {self._best:.5f}"
        number = self._num_not_better
        return f"{self._val_metric} was not better{best} in {number} evaluation{'s' * (number > 1)}"


class PlateauHook(_PatienceHook):
    """Reduces the learning rate on a plateau of the metric.

    Zlocha et al., section 2.3: to a tenth after 2 epochs without improvement. Then counting
    restarts, with the same best value. The hook scales the base learning rates of the trainer's
    LRMultiplier, so that warmup and steps apply on top of them, for any optimizer, and checkpoints
    contain them in the scheduler's state.

    Args:
        eval_period, val_metric, mode: as in Detectron2's BestCheckpointer.
        patience: evaluations in a row, at least 1.
        factor: factor of the learning rate.
    """

    def __init__(self, *args, factor: float, **kwargs):
        super().__init__(*args, **kwargs)
        self._factor = factor

    def _act(self) -> None:
        logger.info(f"{self._describe()}: the learning rate is multiplied by {self._factor}")
        self._num_not_better = 0
        scheduler = self.trainer.scheduler
        scheduler.base_lrs = [lr * self._factor for lr in scheduler.base_lrs]
        # The scheduler is already at the next iteration.
        groups = scheduler.optimizer.param_groups
        for group, lr in zip(groups, scheduler.get_lr(), strict=True):
            group["lr"] = lr


class TrainingStopped(BaseException):
    """A hook stops the training. Not an Exception, which Detectron2 would log as an error."""


class EarlyStopHook(_PatienceHook):
    """Early stopping: ends the training if the metric does not improve.

    Zlocha et al., section 2.3: after 4 epochs without improvement. ``model_final.pth`` is written
    as usual. A run that is resumed from it is evaluated by :class:`CatchUpHook`, and stops
    immediately.

    Args:
        eval_period, val_metric, mode, checkpointer: as in Detectron2's BestCheckpointer.
        patience: evaluations in a row, at least 1.

    Raises:
        TrainingStopped: in ``after_step`` of every process; :class:`StoppableTrainer` handles it.
    """

    def __init__(self, *args, checkpointer: LesionCheckpointer, **kwargs):
        super().__init__(*args, **kwargs)
        self._checkpointer = checkpointer

    def _act(self) -> None:
        iteration = self.trainer.iter
        self._checkpointer.save("model_final", iteration=iteration)
        raise TrainingStopped(
            f"Training ends early, after iteration {iteration}: {self._describe()}"
        )


class CatchUpHook(HookBase):
    """Runs the evaluation that a resumed run missed after its checkpoint was written.

    Detectron2 writes an iteration's checkpoint before its evaluation, so that no iteration is lost
    if the run is killed during the evaluation. But then the checkpoint does not contain the
    consequences of the evaluation: a best checkpoint, a reduced learning rate, mined negatives,
    early stopping. So the evaluation is run (again) before the first iteration. The run then
    continues as without the interruption, at the cost of one evaluation.

    Args:
        eval_period: period of the EvalHook.
        late: the EvalHook and the other hooks that run after the checkpoint is written, in order.
            This hook must come after them.
        states: restores the state of the processes before and after these hooks.
    """

    def __init__(
        self, eval_period: int, late: Iterable[HookBase], states: ProcessStateHook | None = None
    ):
        self._period = eval_period
        self._late = list(late)
        self._states = states

    def before_train(self) -> None:
        """Run the remaining part of the last iteration's ``after_step``."""
        trainer, start_iter = self.trainer, self.trainer.start_iter
        if start_iter == 0:
            return
        trainer.iter = trainer.storage.iter = start_iter - 1
        if self._states is not None:
            self._states.restore("before")
        if self._late and is_evaluated(trainer, self._period):
            logger.info(f"Resumed after iteration {trainer.iter}: evaluating first")
        for hook in self._late:
            hook.after_step()
        if self._states is not None:
            self._states.restore("after")
        trainer.iter = trainer.storage.iter = start_iter


class TrainingCurvesHook(HookBase):
    """Draws the training curves to ``training.png`` and ``training.pdf`` after training.

    The first process draws them from ``metrics.json``, so this hook must come after its writer.
    There is no figure if training was interrupted or failed, or if there are fewer than two lines
    of losses. Errors are only logged, and do not fail the run.

    Args:
        output_dir: output folder of the run.
    """

    FILE = "training.png"

    def __init__(self, output_dir: str | os.PathLike):
        self._output_dir = Path(output_dir)

    def after_train(self) -> None:
        """Draw the figure."""
        error = sys.exc_info()[0]
        if not comm.is_main_process() or error not in (None, TrainingStopped):
            return
        try:
            curves = read_metrics(self._output_dir / "metrics.json")
            if has_curves(curves):
                title = f"Training: {self._output_dir.resolve().name}"
                plot_training(curves, self._output_dir / self.FILE, title=title)
        except Exception as problem:
            logger.warning(f"The curves of the training were not drawn: {problem}")


def is_evaluated(trainer: TrainerBase, eval_period: int) -> bool:
    """Whether EvalHook evaluates after the current iteration.

    The evaluation at the end of training is separate.
    """
    next_iter = trainer.iter + 1
    return eval_period > 0 and next_iter % eval_period == 0 and next_iter != trainer.max_iter


def _missing_metric(name: str, latest: dict[str, tuple[float, int]]) -> str:
    newest = max((iteration for _, iteration in latest.values()), default=0)
    given = sorted(n for n, (_, iteration) in latest.items() if "/" in n and iteration == newest)
    return f"the evaluation has no TEST.BEST_METRIC {name!r}, but {given}"
