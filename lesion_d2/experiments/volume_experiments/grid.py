"""The runs of the table: where they lie, what they are trained on, and what came out of them."""

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
#: The metric that the table is about: mAP at an IoU of 0.1.
METRIC = "AP10"
_PLACE = re.compile(f"({'|'.join(DIMENSIONS)})/({'|'.join(MODELS)})/seed_([1-9][0-9]*)")

Place = tuple[str, str]  # a row of the table: dimension and model


@dataclass(frozen=True)
class Result:
    """What came out of a run.

    Args:
        metrics: those of ``volumes.json``, percent; None where one is not defined.
        iterations: of the training.
        seconds: of the process that ended the run.
        resumed: whether an earlier process had begun it.
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
        dimension, model, seed: its place in the grid.
        dataset: a data set of volumes, of which it is trained on ``<dataset>_volumes_train``.
        split: on which it is tested at its end.
        opts: further KEY VALUE pairs for the config.
        settings: what its config says, as :func:`hash_settings` tells.
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
        """Its folder below the grid's."""
        return f"{self.dimension}/{self.model}/seed_{self.seed}"

    @property
    def folder(self) -> Path:
        """Its OUTPUT_DIR."""
        return self.output / self.name

    @property
    def config(self) -> Path:
        """Its config's file."""
        return self.configs / self.dimension / f"{self.model}.yaml"

    @property
    def datasets(self) -> tuple[str, str]:
        """What it is trained and tested on."""
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
        """Make its folder and note its options there, for whoever resumes it."""
        self._files.begin()

    def result(self) -> Result | None:
        """What came out of it; None where it is not done.

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
            f"{configs}: found no config, expected such as {DIMENSIONS[0]}/{MODELS[0]}.yaml"
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
    """The runs at places of the grid, those without a config left out.

    Args:
        output: the grid's folder.
        configs: that of the configs.
        settings: of each config, as :func:`read_settings` gives them.
        dataset, split, opts: see :class:`Run`; the same for all.
        places: dimension, model and seed; what is there twice counts once.

    Raises:
        ValueError: opts are no pairs, or set what the grid sets.
    """
    check_options(opts)
    return [
        Run(output, configs, *place, dataset, split, tuple(opts), settings[place[:2]])
        for place in dict.fromkeys(places)
        if place[:2] in settings
    ]


def find_places(output: Path) -> list[tuple[str, str, int]]:
    """Dimension, model and seed of the results below a grid's folder, in the table's order.

    Folders that are no run's are ignored.
    """
    names = (file.parent.relative_to(output).as_posix() for file in output.glob(f"*/*/*/{RESULT}"))
    places = [match.groups() for name in names if (match := _PLACE.fullmatch(name))]
    return sorted(
        ((dimension, model, int(seed)) for dimension, model, seed in places),
        key=lambda place: (DIMENSIONS.index(place[0]), MODELS.index(place[1]), place[2]),
    )
