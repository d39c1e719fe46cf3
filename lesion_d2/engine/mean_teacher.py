"""Training with a mean teacher (Bai et al., 2023)."""

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..modeling import MeanTeacher, PseudoLabelCounts, summarize_pseudo_labels
from .processes import share_running_statistics, unwrap

#: Additional key in checkpoints of a mean teacher; the model's weights are the teacher's.
STUDENT = "student"


class MeanTeacherHook(HookBase):
    """Updates the teacher after every iteration, and logs statistics of its pseudo-labels.

    All processes make the same update: their students have the same weights, and first get the
    running statistics of the first process. The metrics of :func:`summarize_pseudo_labels`, over
    the images of all processes since the last log, are put into the event storage as
    ``mean_teacher/<name>``.

    Args:
        period: iterations between two logs.
    """

    def __init__(self, period: int = 20):
        self._period = period

    def after_step(self) -> None:
        """Update the teacher."""
        mean_teacher = unwrap(self.trainer.model)
        share_running_statistics(mean_teacher.student)
        mean_teacher.update_teacher()
        if (self.trainer.iter + 1) % self._period == 0:
            self._log(mean_teacher)

    def _log(self, mean_teacher: MeanTeacher) -> None:
        counts = sum(comm.all_gather(mean_teacher.counts), PseudoLabelCounts())
        mean_teacher.counts.clear()
        numbers = summarize_pseudo_labels(counts)
        self.trainer.storage.put_scalars(
            **{f"mean_teacher/{name}": value for name, value in numbers.items()},
            smoothing_hint=False,
        )
