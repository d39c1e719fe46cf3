"""Runs the trainings of the grid."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lesion_d2.evaluation.evaluator import RESULTS
from lesion_d2.tools.common import trainings
from lesion_d2.tools.common.checkout import find_in_checkout
from lesion_d2.tools.common.run_files import read_metric
from lesion_d2.tools.common.trainings import KILL_SECONDS, FailedRun
from lesion_d2.utils.files import read_json

from .grid import Result, Run

METRIC = "bbox/AP10"


def find_program() -> tuple[Path, Path]:
    """The paths of ``train_net.py`` and ``configs/toys``, in the project's root.

    Raises:
        FileNotFoundError: they do not exist, because the package is not in a checkout.
    """
    return find_in_checkout("train_net.py"), find_in_checkout("configs/toys")


def run_all(
    runs: Sequence[Run],
    program: Path,
    configs: Path,
    *,
    jobs: int = 1,
    done: int = 0,
    grace: float = KILL_SECONDS,
) -> list[str]:
    """Run the trainings of a grid, see :func:`lesion_d2.tools.common.trainings.run_all`.

    Args:
        runs: interrupted ones are resumed, finished ones are skipped.
        program: ``train_net.py``.
        configs: the folder of the runs' configs.
        jobs, done, grace: see there.
    """
    toys = [ToyRun(run, configs) for run in runs]
    options = {"jobs": jobs, "done": done, "grace": grace}
    return trainings.run_all(toys, program, description="Toy runs", **options)


@dataclass(frozen=True)
class ToyRun:
    """A run of the grid as a :class:`lesion_d2.tools.common.trainings.TrainingRun`."""

    run: Run
    configs: Path

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run.name

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.run.folder

    def result(self) -> Result | None:
        """Result of the run; None if there is none yet."""
        return self.run.result()

    def begin(self) -> None:
        """Create the run's folder and write its options to it."""
        self.run.begin()

    def commands(self) -> list[list[str]]:
        """The arguments of the training and, if it is a separate process, of the test."""
        both = self.run.arguments(self.configs), self.run.test_arguments(self.configs)
        return [arguments for arguments in both if arguments]

    def end(self, seconds: float, resumed: bool) -> None:
        """Write the result.

        Raises:
            FailedRun: the run left none.
        """
        metrics = self.folder / "metrics.json"
        if self.run.tests_best:
            ap10 = read_test(self.run)
        else:
            ap10, _ = read_metric(metrics, METRIC)
        # Not the evaluation's iteration: one after a resumption at the end counts one too many.
        _, iteration = read_metric(metrics, "total_loss")
        date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self.run.end(Result(ap10, iteration + 1, seconds, resumed, date))


def read_test(run: Run) -> float:
    """The metric of a run's test in a separate process.

    Raises:
        FailedRun: there is no number.
    """
    file = run.test_folder / "inference" / run.datasets[1] / RESULTS
    task, name = METRIC.split("/")
    try:
        return float(read_json(file, "results of an evaluation", allow_nan=True)[task][name])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FailedRun(f"{file}: found no {METRIC} ({error!r})") from None
