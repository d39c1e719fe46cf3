"""The best checkpoints of a training, for ensembles of models (Jaeger et al., section 4.2)."""

import logging
import math
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from detectron2.engine import hooks
from detectron2.utils import comm

from ...utils.errors import short_repr
from ...utils.files import parse_json, write_json
from ...utils.values import field_problems, is_number, is_text, is_whole
from ..hooks import ResumableBestCheckpointer
from . import ENDINGS
from .checkpointer import LesionCheckpointer
from .folder import bare_name

logger = logging.getLogger(__name__)

FOLDER = "best"
_RANKING = "best.json"
# Keys of an entry -> check of the value, and a description of valid values.
_FIELDS = {
    "file": (is_text, "a name"),
    "metric": (is_text, "a name"),
    "value": (lambda value: is_number(value, sys.float_info.max), "a finite number"),
    "iteration": (is_whole, "a whole number"),
    "run_id": (is_text, "a name"),
}


class KeepBestHook(hooks.BestCheckpointer):
    """Keeps the weights of the best evaluated iterations in ``OUTPUT_DIR/best``.

    The files are ``model_<iteration>.pth``, or of SOLVER.CHECKPOINT_FORMAT. ``best.json`` ranks
    them, the best first, with ``file``, ``metric``, ``value``, ``iteration`` and ``run_id``. For
    equal values, the earlier one is better; non-finite values are ignored. An iteration that is
    evaluated again after ``--resume`` counts once. Files of another run are removed once this run
    has a checkpoint to keep. All files in ``best.json`` always exist: weights are written before
    it, and removed after it.

    Args:
        eval_period, checkpointer, val_metric, mode: as in Detectron2's BestCheckpointer.
        max_to_keep: number of best checkpoints to keep, at least 1.
        best_checkpointer: hook with the id of this run; must come before this hook.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: LesionCheckpointer,
        val_metric: str,
        mode: str = "max",
        *,
        max_to_keep: int,
        best_checkpointer: ResumableBestCheckpointer,
    ):
        super().__init__(eval_period, checkpointer, val_metric, mode)
        self._sign = {"max": 1, "min": -1}[mode]
        self._max_to_keep = max_to_keep
        self._best_checkpointer = best_checkpointer
        self._folder = Path(checkpointer.save_dir) / FOLDER
        file_format = checkpointer.file_format
        self._weights = LesionCheckpointer(
            checkpointer.model, str(self._folder), file_format=file_format
        )
        self._ranking: list[dict] = []

    def before_train(self) -> None:
        """Continue with the ranking of this run, if there is one."""
        if not comm.is_main_process():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        ours = self._best_checkpointer.state_dict()["run_id"], self._val_metric
        self._ranking = [
            entry
            for entry in self._read_ranking()
            if (entry["run_id"], entry["metric"]) == ours
            and (self._folder / entry["file"]).is_file()
        ][: self._max_to_keep]
        if self._ranking:
            self._write_ranking()
        for entry in self._ranking:
            logger.info(f"Kept so far: {self._describe(entry)}")

    def _read_ranking(self) -> list[dict]:
        try:
            return read_ranking(self._folder)
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:  # if raised here, other processes would wait
            logger.warning(f"The earlier ranking of checkpoints is ignored: {error}")
            return []

    def _best_checking(self) -> None:
        if not comm.is_main_process():  # only it has the results
            return
        value, counted = self.trainer.storage.latest().get(self._val_metric, (math.nan, -1))
        if counted != self.trainer.storage.iter or not math.isfinite(value):
            return  # ResumableBestCheckpointer has logged why
        # Detectron2 stores the final evaluation one (resumed: two) after the last iteration.
        iteration = min(counted, self.trainer.max_iter - 1)
        if iteration in (entry["iteration"] for entry in self._ranking):
            return
        place = bisect_right([-self._sign * e["value"] for e in self._ranking], -self._sign * value)
        if place >= self._max_to_keep:
            return
        name = f"model_{iteration:07d}"
        file = self._weights.file_name(name)
        if not self._ranking and self._weights.files_of(name):
            self._write_ranking()  # another run's ranking must not name this run's weights
        self._weights.save(name, tag_last=False)
        entry = (file, self._val_metric, float(value), iteration)
        entry = dict(
            zip(_FIELDS, (*entry, self._best_checkpointer.state_dict()["run_id"]), strict=True)
        )
        self._ranking = [*self._ranking[:place], entry, *self._ranking[place:]][: self._max_to_keep]
        self._write_ranking()
        logger.info(f"Kept as number {place + 1}: {self._describe(entry)}")

    def _write_ranking(self) -> None:
        """Write ``best.json``, then remove weights, complete or not, that it does not name."""
        write_json(self._folder / _RANKING, self._ranking, indent=1)
        kept = {entry["file"] for entry in self._ranking}
        patterns = (p for e in ENDINGS for p in (f"model_*{e}", f".model_*{e}.*part"))
        for file in chain.from_iterable(map(self._folder.glob, patterns)):
            if file.name not in kept:
                file.unlink()

    @staticmethod
    def _describe(entry: dict) -> str:
        return f"{entry['file']}, {entry['metric']} {entry['value']:.5f}"


def read_ranking(folder: str | Path) -> list[dict]:
    """Read the ``best.json`` of a folder that :class:`KeepBestHook` wrote, the best entry first.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: the file is not a ranking.
    """
    path = Path(folder) / _RANKING
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, expected a ranking of checkpoints (TEST.NUM_BEST_CHECKPOINTS)"
        )
    try:
        ranking = parse_json(path.read_bytes(), path)
        problem = next(_ranking_problems(ranking), None)
    except ValueError as error:
        problem = str(error).removeprefix(f"{path}: ")
    if problem is not None:
        raise ValueError(
            f"{path}: found no ranking ({problem}), expected a list of {', '.join(_FIELDS)}"
        )
    for entry in ranking:
        bare_name(entry["file"], path)
    return ranking


def _ranking_problems(ranking: object) -> Iterator[str]:
    if not isinstance(ranking, list):
        yield f"found {short_repr(ranking)}"
        return
    for number, entry in enumerate(ranking):
        for text in field_problems(entry, _FIELDS):
            yield f"entry {number}: {text}"


def checkpoint_files(names: Iterable[str]) -> list[str]:
    """Return the weight files of TEST.ENSEMBLE.CHECKPOINTS; those of a folder by rank.

    Args:
        names: files, and folders of :class:`KeepBestHook`.

    Raises:
        FileNotFoundError: a folder has no ranking.
        ValueError: a name is empty, or a ranking is invalid or empty.
    """
    files: list[str] = []
    for name in names:
        if not name:
            raise ValueError(
                "found '', expected a file of weights, or a folder of TEST.NUM_BEST_CHECKPOINTS"
            )
        if not Path(name).is_dir():
            files.append(name)
            continue
        ranking = read_ranking(name)
        if not ranking:
            raise ValueError(
                f"{name}: found no checkpoint in its {_RANKING}, expected at least one"
            )
        files += [str(Path(name) / entry["file"]) for entry in ranking]
    return files
