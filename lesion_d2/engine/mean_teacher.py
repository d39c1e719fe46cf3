"""A mean teacher's part of the training (Bai et al., 2023)."""

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..modeling import MeanTeacher, MiningCounts, summarize_mining
from .processes import share_running_statistics, unwrap

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
        counts = sum(comm.all_gather(mean_teacher.counts), MiningCounts())
        mean_teacher.counts.clear()
        numbers = summarize_mining(counts)
        self.trainer.storage.put_scalars(
            **{f"mean_teacher/{name}": value for name, value in numbers.items()},
            smoothing_hint=False,
        )
