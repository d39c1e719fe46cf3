"""``metrics.json`` of runs that are killed and resumed."""

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
    """Detectron2's PeriodicWriter that also writes what an evaluation gave at once.

    A kill within the next iterations would lose it, and so would the next evaluation within them.
    The last evaluation before the checkpoint that a run is resumed from, which is made again, is
    written again only where it is not in the file. This hook comes after :class:`CatchUpHook`.

    Args:
        writers: as in Detectron2.
        periods: of evaluations and what else comes at times, in iterations; 0 for none.
        period: of everything else.
    """

    def __init__(self, writers: Iterable[EventWriter], periods: Iterable[int], period: int = 20):
        super().__init__(list(writers), period)
        self._eval_periods = [period for period in periods if period > 0]

    def before_train(self) -> None:
        """Write the evaluation that a resumed run begins with, if need be."""
        last, storage = self.trainer.start_iter - 1, self.trainer.storage
        names = {name for name, (_, iteration) in storage.latest().items() if iteration == last}
        for writer in self._writers if names else ():
            if isinstance(writer, JSONWriter) and names <= _names(writer._file_handle.name, last):
                writer._last_write = last
            elif not isinstance(writer, CommonMetricPrinter):
                writer.write()

    def after_train(self) -> None:
        """As in Detectron2; an error that ended the training, such as a full disk, comes first."""
        failed = sys.exc_info()[0] is not None
        try:
            super().after_train()
        except OSError as error:
            if not failed:
                raise
            logger.warning(f"The last metrics were not written: {error}")

    def after_step(self) -> None:
        """As in Detectron2; then write what came in this iteration."""
        super().after_step()
        if any((self.trainer.iter + 1) % period == 0 for period in self._eval_periods):
            for writer in self._writers:  # which write nothing twice
                if not isinstance(writer, CommonMetricPrinter):
                    writer.write()


def _names(json_file: str, iteration: int) -> set[str]:
    """The metrics of an iteration that are in the file."""
    with open(json_file, "rb") as file:
        entries = [entry for entry in map(_entry, file) if entry.get("iteration") == iteration]
    return {name for entry in entries for name in entry}


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
        kept = list(_before(lines, start_iter))
        if len(kept) == len(lines):
            return
        file.seek(0)
        file.writelines(kept)
        file.truncate()
    logger.info(f"{json_file}: left out {len(lines) - len(kept)} lines after {start_iter}")


def _before(lines: Iterable[bytes], start_iter: int) -> Iterator[bytes]:
    for line in lines:
        entry = _entry(line)
        iteration = entry.get("iteration", start_iter + 1)
        is_last_evaluation = iteration == start_iter and "total_loss" not in entry
        if iteration < start_iter or is_last_evaluation:
            yield line


def _entry(line: bytes) -> dict:
    """The metrics of a line; {} where it is not whole, or none."""
    try:
        entry = parse_json(line, "metrics", allow_nan=True) if line.endswith(b"\n") else {}
    except ValueError:
        entry = {}
    return entry if isinstance(entry, dict) and is_whole(entry.get("iteration")) else {}
