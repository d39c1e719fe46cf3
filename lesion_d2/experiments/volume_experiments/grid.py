"""The runs of the table: their folders, data sets and results."""

import datetime
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lesion_d2.tools.common.run_files import (
    RESULT,
    RunFiles,
    check_options,
    grid_options,
    read_metric,
)
from lesion_d2.tools.common.trainings import FailedRun, hash_settings
from lesion_d2.utils.files import read_json

#: Folders of configs: volumes, slices with neighbors as channels, slices; in Table 1's order.
DIMENSIONS = ("3d", "2dc", "2d")
#: Names of the configs in each of them, in Table 1's order.
MODELS = ("retina_unet", "retinanet", "det_unet", "u_faster_rcnn_plus", "mask_rcnn")
#: The metric of the table: mAP at an IoU of 0.1.
METRIC = "AP10"
_PLACE = re.compile(f"({'|'.join(DIMENSIONS)})/({'|'.join(MODELS)})/seed_([1-9][0-9]*)")

Place = tuple[str, str]  # a row of the table: dimension and model


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Args:
        metrics: those of ``volumes.json``, in percent; None if undefined.
        iterations: of the training.
        seconds: duration of the process that finished the run.
        resumed: whether an earlier process had started the run.
        date: of its end.
    """

    metrics: dict[str, float | None]
    iterations: int
    seconds: float
    resumed: bool
    date: str

    def __post_init__(self) -> None:
        found = self.metrics.get(METRIC)
        if not (isinstance(found, float) and math.isfinite(found)):
            raise TypeError(f"found {METRIC} {found!r}, expected a number")


@dataclass(frozen=True)
class Run:
    """One training and its test, as a :class:`lesion_d2.tools.common.trainings.TrainingRun`.

    Args:
        output: the grid's folder.
        configs: the folder with a folder of configs for each dimension.
        dimension, model, seed: its position in the grid.
        dataset: a volume set, whose ``<dataset>_volumes_train`` it is trained on.
        split: tested after the training.
        opts: further KEY VALUE pairs for the config.
        settings: hash of its config, see :func:`hash_settings`.
    """

    output: Path
    configs: Path
    dimension: str
    model: str
    seed: int
    dataset: str
    split: str
    opts: tuple[str, ...] = ()
    settings: str = ""

    @property
    def name(self) -> str:
        """Its folder, relative to the grid's."""
        return f"{self.dimension}/{self.model}/seed_{self.seed}"

    @property
    def folder(self) -> Path:
        """Its OUTPUT_DIR."""
        return self.output / self.name

    @property
    def config(self) -> Path:
        """Its config file."""
        return self.configs / self.dimension / f"{self.model}.yaml"

    @property
    def datasets(self) -> tuple[str, str]:
        """Its data sets for training and test."""
        return f"{self.dataset}_volumes_train", f"{self.dataset}_volumes_{self.split}"

    @property
    def _files(self) -> RunFiles[Result]:
        train, test = self.datasets
        options = {
            "config": f"{self.dimension}/{self.config.name}",
            "settings": self.settings,
            "train": train,
            "test": test,
            "seed": self.seed,
            "opts": list(self.opts),
        }
        return RunFiles(self.folder, options, str(self.config), Result)

    def begin(self) -> None:
        """Create its folder and write its options to it, so that a resumed run can check them."""
        self._files.begin()

    def result(self) -> Result | None:
        """Its result; None if it has not finished.

        Raises:
            ValueError: see :meth:`RunFiles.result`.
        """
        return self._files.result()

    def commands(self) -> list[list[str]]:
        """Arguments of train_net.py, which trains and tests."""
        own = grid_options(self.folder, *self.datasets, self.seed)
        return [["--config-file", str(self.config), "--resume", *self.opts, *own]]

    def end(self, seconds: float, resumed: bool) -> None:
        """Write the result.

        Raises:
            FailedRun: the run left none.
        """
        file = self.folder / "inference" / self.datasets[1] / "volumes.json"
        try:
            metrics = dict(read_json(file, "an evaluation of volumes")["results"])
            _, iteration = read_metric(self.folder / "metrics.json", "total_loss")
            date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            result = Result(metrics, iteration + 1, seconds, resumed, date)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise FailedRun(f"{file}: found no results ({error})") from None
        self._files.end(result)


def read_settings(configs: Path) -> dict[Place, str]:
    """:func:`hash_settings` of the configs in a folder, by dimension and model.

    Raises:
        FileNotFoundError: there is none.
    """
    found = {
        place: hash_settings(file)
        for place in itertools.product(DIMENSIONS, MODELS)
        if (file := configs / place[0] / f"{place[1]}.yaml").is_file()
    }
    if not found:
        raise FileNotFoundError(
            f"{configs}: found no config, expected files such as {DIMENSIONS[0]}/{MODELS[0]}.yaml"
        )
    return found


def make_grid(
    output: Path,
    configs: Path,
    settings: Mapping[Place, str],
    *,
    dataset: str,
    split: str,
    places: Sequence[tuple[str, str, int]],
    opts: Sequence[str] = (),
) -> list[Run]:
    """The runs at positions of the grid; those without a config are left out.

    Args:
        output: the grid's folder.
        configs: folder of the configs.
        settings: of each config, see :func:`read_settings`.
        dataset, split, opts: see :class:`Run`; the same for all.
        places: dimension, model and seed; duplicates are removed.

    Raises:
        ValueError: opts are not pairs, or set a key of the grid.
    """
    check_options(opts)
    return [
        Run(output, configs, *place, dataset, split, tuple(opts), settings[place[:2]])
        for place in dict.fromkeys(places)
        if place[:2] in settings
    ]


def find_places(output: Path) -> list[tuple[str, str, int]]:
    """Dimension, model and seed of the results in a grid's folder, in the table's order.

    Other folders are ignored.
    """
    names = (file.parent.relative_to(output).as_posix() for file in output.glob(f"*/*/*/{RESULT}"))
    places = [match.groups() for name in names if (match := _PLACE.fullmatch(name))]
    return sorted(
        ((dimension, model, int(seed)) for dimension, model, seed in places),
        key=lambda place: (DIMENSIONS.index(place[0]), MODELS.index(place[1]), place[2]),
    )
