import json
import logging
import math
import os
import uuid

from detectron2.engine import hooks
from detectron2.utils import comm

from .checkpoint import read_checkpoint

logger = logging.getLogger(__name__)


class ResumableBestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's BestCheckpointer whose best metric lives on over ``--resume``.

    The best value is written into the best checkpoint itself, in one file with the weights it
    belongs to: however a run ends, both agree. A resumed run goes on from that value, even where
    the checkpoint that it resumes from is older than the best one. A best checkpoint that another
    run left in the folder does not count; the runs are told apart by an id in the trainer's state.

    Args:
        eval_period, checkpointer, val_metric, mode, file_prefix: as in Detectron2. The
            checkpointer is a :class:`LesionCheckpointer`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._run_id = uuid.uuid4().hex

    def state_dict(self) -> dict:
        """The id of this run; the trainer keeps it in its checkpoints."""
        return {"run_id": self._run_id}

    def load_state_dict(self, state_dict: dict) -> None:
        """Become the run that a checkpoint is of."""
        self._run_id = state_dict["run_id"]

    def before_train(self) -> None:
        """Go on from the best checkpoint of this run, if there is one."""
        path = os.path.join(self._checkpointer.save_dir, f"{self._file_prefix}.pth")
        if not os.path.isfile(path):
            return
        best = read_checkpoint(path).get("best", {})
        if best.get("run_id") == self._run_id and best["metric"] == self._val_metric:
            self._update_best(best["value"], best["iteration"])
            logger.info(f"Best {self._val_metric} so far: {best['value']:.5f} in {path}")

    def _best_checking(self) -> None:
        if not comm.is_main_process():  # the results of an evaluation are there
            return
        latest = self.trainer.storage.latest()
        if self._val_metric not in latest:
            logger.warning(
                f"No best checkpoint: the evaluation gives no TEST.BEST_METRIC {self._val_metric!r}"
                f", but {sorted(name for name in latest if '/' in name)}"
            )
            return
        value, iteration = latest[self._val_metric]
        is_better = self.best_metric is None or self._compare(value, self.best_metric)
        if not (math.isfinite(value) and is_better):
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


def rewind_metrics(json_file: str, start_iter: int) -> None:
    """Cut from ``metrics.json`` what a killed run wrote after the checkpoint it is resumed from.

    The resumed run writes those iterations again. A last line that is not whole is cut too. The
    file stays the same one, because the writer of the resumed run may have it open already.

    Args:
        json_file: one JSON object with ``iteration`` a line, as Detectron2's JSONWriter writes it.
        start_iter: the first iteration to come. A line of that iteration without losses is kept:
            Detectron2 counts the evaluation after the last iteration so.
    """
    if not os.path.isfile(json_file):
        return
    with open(json_file, "r+b") as file:
        lines = file.readlines()
        kept = [line for line in lines if _is_before(line, start_iter)]
        if len(kept) == len(lines):
            return
        file.seek(0)
        file.writelines(kept)
        file.truncate()
    logger.info(f"{json_file}: left out {len(lines) - len(kept)} lines after {start_iter}")


def _is_before(line: bytes, start_iter: int) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        scalars = json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        return False
    iteration = scalars["iteration"]
    return iteration < start_iter or (iteration == start_iter and "total_loss" not in scalars)
