"""A mean teacher's part of the training (Bai et al., 2023)."""

from collections import Counter

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..modeling import MeanTeacher, summarize_mining
from .validation_loss import share_running_statistics

#: Of a checkpoint of such a training, beside the teacher's weights as those of the model.
STUDENT = "student"


class MeanTeacherHook(HookBase):
    """Moves the teacher after every iteration, and logs what it mined.

    All processes move it alike: their students have the same weights, and get the first one's
    running statistics before. The numbers of :func:`summarize_mining`, of the images of all
    processes since the last time, come into the event storage as ``mean_teacher/<name>``.

    Args:
        period: iterations between two times.
    """

    def __init__(self, period: int = 20):
        self._period = period

    def after_step(self) -> None:
        """Move the teacher."""
        mean_teacher = unwrap(self.trainer.model)
        share_running_statistics(mean_teacher.student)
        mean_teacher.update_teacher()
        if (self.trainer.iter + 1) % self._period == 0:
            self._log(mean_teacher)

    def _log(self, mean_teacher: MeanTeacher) -> None:
        counts: Counter[str] = Counter()
        for share in comm.all_gather(mean_teacher.counts.take()):
            counts.update(share)
        numbers = summarize_mining(counts)
        self.trainer.storage.put_scalars(
            **{f"mean_teacher/{name}": value for name, value in numbers.items()},
            smoothing_hint=False,
        )


def unwrap(model: nn.Module) -> nn.Module:
    """The model without the wrapper of several processes."""
    return model.module if isinstance(model, DistributedDataParallel) else model
