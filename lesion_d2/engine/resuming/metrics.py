"""``metrics.json`` of resumed runs."""

import logging
import os
import sys
from collections.abc import Iterable, Iterator

from detectron2.engine import hooks
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter

from ...utils.files import parse_json
from ...utils.values import is_whole

logger = logging.getLogger(__name__)


class EvaluationWriter(hooks.PeriodicWriter):
    """Detectron2's PeriodicWriter that also writes evaluation results immediately.

    Otherwise they would be lost if the run is killed, or evaluated again, within the next
    iterations. The evaluation that a resumed run repeats is only written if it is not in the file.
    This hook must come after :class:`CatchUpHook`.

    Args:
        writers: as in Detectron2.
        periods: periods of evaluations and other events, in iterations; 0 for none.
        period: period of all other metrics.
    """

    def __init__(self, writers: Iterable[EventWriter], periods: Iterable[int], period: int = 20):
        super().__init__(list(writers), period)
        self._eval_periods = [period for period in periods if period > 0]

    def before_train(self) -> None:
        """Write the evaluation at the start of a resumed run, if needed."""
        last, storage = self.trainer.start_iter - 1, self.trainer.storage
        names = {name for name, (_, iteration) in storage.latest().items() if iteration == last}
        for writer in self._writers if names else ():
            if isinstance(writer, JSONWriter) and names <= _names(writer._file_handle.name, last):
                writer._last_write = last
            elif not isinstance(writer, CommonMetricPrinter):
                writer.write()

    def after_train(self) -> None:
        """As in Detectron2, without hiding an error that ended training, such as a full disk."""
        failed = sys.exc_info()[0] is not None
        try:
            super().after_train()
        except OSError as error:
            if not failed:
                raise
            logger.warning(f"The last metrics were not written: {error}")

    def after_step(self) -> None:
        """As in Detectron2; then write new results of this iteration."""
        super().after_step()
        if any((self.trainer.iter + 1) % period == 0 for period in self._eval_periods):
            for writer in self._writers:  # they do not write an iteration twice
                if not isinstance(writer, CommonMetricPrinter):
                    writer.write()


def _names(json_file: str, iteration: int) -> set[str]:
    """Names of the metrics of an iteration in the file."""
    with open(json_file, "rb") as file:
        entries = [entry for entry in map(_entry, file) if entry.get("iteration") == iteration]
    return {name for entry in entries for name in entry}


def rewind_metrics(json_file: str, start_iter: int) -> None:
    """Remove from ``metrics.json`` what was written after the checkpoint to resume from.

    The resumed run writes those iterations again. An incomplete last line is removed, too. The file
    is modified in place, because the writer of the resumed run may already have opened it.

    Args:
        json_file: one JSON object with ``iteration`` per line, as written by Detectron2's
            JSONWriter.
        start_iter: the next iteration. A line of that iteration without losses is kept: Detectron2
            uses it for the evaluation after the last iteration.
    """
    if not os.path.isfile(json_file):
        return
    with open(json_file, "r+b") as file:
        lines = file.readlines()
        kept = list(_before(lines, start_iter))
        if len(kept) == len(lines):
            return
        file.seek(0)
        file.writelines(kept)
        file.truncate()
    logger.info(f"{json_file}: removed {len(lines) - len(kept)} lines after iteration {start_iter}")


def _before(lines: Iterable[bytes], start_iter: int) -> Iterator[bytes]:
    for line in lines:
        entry = _entry(line)
        iteration = entry.get("iteration", start_iter + 1)
        is_last_evaluation = iteration == start_iter and "total_loss" not in entry
        if iteration < start_iter or is_last_evaluation:
            yield line


def _entry(line: bytes) -> dict:
    """The metrics of a line; {} if it is incomplete or invalid."""
    try:
        entry = parse_json(line, "metrics", allow_nan=True) if line.endswith(b"\n") else {}
    except ValueError:
        entry = {}
    return entry if isinstance(entry, dict) and is_whole(entry.get("iteration")) else {}
