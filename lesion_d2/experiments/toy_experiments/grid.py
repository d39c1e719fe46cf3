"""The runs of the grid: their folders, data sets and results."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lesion_d2.data.toys.images import dataset_name
from lesion_d2.tools.common.run_files import (
    RESULT,
    RunFiles,
    check_options,
    grid_options,
)
from lesion_d2.tools.common.trainings import hash_settings

#: Names of the configs in configs/toys, one-stage models first.
MODELS = (
    "retina_unet",
    "retinanet",
    "u_faster_rcnn_plus",
    "mask_rcnn",
    "faster_rcnn_plus",
    "det_unet",
)
TASKS = ("donuts_shape", "donuts_pattern", "circles_scale")
SIZES = (1000, 500, 250, 100, 50)
ALL_IMAGES = 1000  # of the whole training set, and of the whole test set
_NUMBER = r"([1-9][0-9]*)"
_PLACE = re.compile(f"({'|'.join(TASKS)})/({'|'.join(MODELS)})/{_NUMBER}/seed_{_NUMBER}")


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    ap10: float  # percent
    iterations: int
    seconds: float  # of the process that finished the run
    resumed: bool  # whether an earlier process had started it
    date: str

    def __post_init__(self) -> None:
        if not isinstance(self.ap10, float):
            raise TypeError(f"found ap10 {self.ap10!r}, expected a number")


@dataclass(frozen=True)
class Run:
    """One training of the grid, and its evaluation.

    Args:
        output: the grid's folder.
        task, model, size, seed: its position in the grid; ``size`` is n, the training images.
        num_test: test images.
        small: whether its config is the one for CPUs.
        opts: further KEY VALUE pairs for the config.
        settings: hash of its config, see :func:`hash_settings`.
        tests_best: whether it is tested in a separate process, by an ensemble of the best
            checkpoints on the validation set (TEST.NUM_BEST_CHECKPOINTS), and not at its end.
    """

    output: Path
    task: str
    model: str
    size: int
    seed: int
    num_test: int = ALL_IMAGES
    small: bool = False
    opts: tuple[str, ...] = ()
    settings: str = ""
    tests_best: bool = False

    @property
    def name(self) -> str:
        """Its folder, relative to the grid's."""
        return f"{self.task}/{self.model}/{self.size}/seed_{self.seed}"

    @property
    def folder(self) -> Path:
        """Its OUTPUT_DIR."""
        return self.output / self.name

    @property
    def config(self) -> str:
        """Its config file."""
        return config_file(self.model, self.small)

    @property
    def datasets(self) -> tuple[str, str]:
        """Its data sets for training and test."""
        return tuple(
            dataset_name(self.task, split, None if number == ALL_IMAGES else number)
            for split, number in (("train", self.size), ("test", self.num_test))
        )

    def options(self) -> dict:
        """Everything that its result depends on, except the code."""
        train, test = self.datasets
        return {
            "config": self.config,
            "settings": self.settings,
            "train": train,
            "test": test,
            "seed": self.seed,
            "opts": list(self.opts),
        }

    @property
    def test_folder(self) -> Path:
        """The OUTPUT_DIR of its test, if that is a separate process."""
        return self.folder / "test"

    def arguments(self, configs: Path) -> list[str]:
        """Arguments of train_net.py, which find the config in the folder ``configs``."""
        train, test = self.datasets
        if self.tests_best:
            test = dataset_name(self.task, "val", None)
        return self._arguments(configs, "--resume", self.folder, train, test)

    def test_arguments(self, configs: Path) -> list[str]:
        """As :meth:`arguments`, of the test; none where it is part of the training."""
        if not self.tests_best:
            return []
        ensemble = ["TEST.ENSEMBLE.ENABLED", "True", "TEST.ENSEMBLE.CHECKPOINTS"]
        best = str((str(self.folder / "best"),))
        known = self._arguments(configs, "--eval-only", self.test_folder, *self.datasets)
        return [*known, *ensemble, best]

    def _arguments(
        self, configs: Path, flag: str, folder: Path, train: str, test: str
    ) -> list[str]:
        grid = grid_options(folder, train, test, self.seed)
        return ["--config-file", str(configs / self.config), flag, *self.opts, *grid]

    @property
    def _files(self) -> RunFiles[Result]:
        return RunFiles(self.folder, self.options(), f"configs/toys/{self.config}", Result)

    def begin(self) -> None:
        """Create its folder and write its options to it, so that a resumed run can check them."""
        self._files.begin()

    def end(self, result: Result) -> None:
        """Write its ``result.json``."""
        self._files.end(result)

    def result(self) -> Result | None:
        """Read its ``result.json``; None if there is none yet.

        Raises:
            ValueError: see :meth:`RunFiles.result`.
        """
        return self._files.result()


def config_file(model: str, small: bool) -> str:
    """The name of a model's config in configs/toys."""
    return f"{model}{'_small' if small else ''}.yaml"


def read_settings(configs: Path, small: bool) -> dict[str, str]:
    """:func:`hash_settings` of every model's config in a folder.

    Raises:
        FileNotFoundError: a file is missing.
    """
    return {model: hash_settings(configs / config_file(model, small)) for model in MODELS}


def make_grid(
    output: Path,
    settings: Mapping[str, str],
    *,
    models: Sequence[str] = MODELS,
    tasks: Sequence[str] = TASKS,
    sizes: Sequence[int] = SIZES,
    seeds: Sequence[int] = (1, 2, 3),
    num_test: int = ALL_IMAGES,
    small: bool = False,
    opts: Sequence[str] = (),
    tests_best: bool = False,
) -> list[Run]:
    """All runs of a grid, ordered by seed, so that all of its positions get a first result early.

    Args:
        output: the grid's folder.
        settings: of each model, see :func:`read_settings`.
        models, tasks, sizes, seeds: the axes; duplicates are removed.
        num_test, small, opts, tests_best: see :class:`Run`; the same for all.

    Raises:
        ValueError: opts are not pairs, or set a key of the grid.
    """
    check_options(opts)
    places = dict.fromkeys(itertools.product(seeds, sizes, tasks, models))
    kind = {"num_test": num_test, "small": small, "opts": tuple(opts), "tests_best": tests_best}
    return [
        Run(output, task, model, size, seed, settings=settings[model], **kind)
        for seed, size, task, model in places
    ]


def find_axes(output: Path) -> dict[str, list]:
    """Models, tasks, sizes and seeds of the results in a grid's folder, for :func:`make_grid`.

    Other folders are ignored.
    """
    names = (
        file.parent.relative_to(output).as_posix() for file in output.glob(f"*/*/*/*/{RESULT}")
    )
    places = [match.groups() for name in names if (match := _PLACE.fullmatch(name))]
    tasks, models, sizes, seeds = map(set, zip(*places, strict=True)) if places else ((),) * 4
    return {
        "models": [model for model in MODELS if model in models],
        "tasks": [task for task in TASKS if task in tasks],
        "sizes": sorted(map(int, sizes), reverse=True),
        "seeds": sorted(map(int, seeds)),
    }


def read_datasets(runs: Sequence[Run]) -> list[str]:
    """Names of all data sets that the runs read."""
    names = [name for run in runs for name in run.datasets]
    return names + [dataset_name(run.task, "val", None) for run in runs if run.tests_best]
