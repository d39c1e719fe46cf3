"""The runs of the grid: where they lie, what they are trained on, and what came out of them."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lesion_d2.data.deeplesion import load_records
from lesion_d2.files import written_whole

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
#: Keys of the config that the grid sets.
GRID_KEYS = ("OUTPUT_DIR", "DATASETS.TRAIN", "DATASETS.TEST", "SEED")


@dataclass(frozen=True)
class Result:
    """What came out of a run."""

    ap10: float  # percent
    iterations: int
    seconds: float  # of the process that ended the run
    resumed: bool  # whether an earlier process had begun it
    date: str


@dataclass(frozen=True)
class Run:
    """One training of the grid, and its evaluation.

    Args:
        output: the grid's folder.
        task, model, size, seed: its place in the grid; ``size`` is n, the training images.
        num_test: test images.
        small: whether its config is the one for CPUs.
        opts: further KEY VALUE pairs for the config.
    """

    output: Path
    task: str
    model: str
    size: int
    seed: int
    num_test: int = ALL_IMAGES
    small: bool = False
    opts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its folder below the grid's."""
        return f"{self.task}/{self.model}/{self.size}/seed_{self.seed}"

    @property
    def folder(self) -> Path:
        """Its OUTPUT_DIR."""
        return self.output / self.name

    @property
    def config(self) -> str:
        """The file of its config."""
        return f"{self.model}{'_small' if self.small else ''}.yaml"

    @property
    def datasets(self) -> tuple[str, str]:
        """What it is trained and tested on."""
        return _dataset(self.task, "train", self.size), _dataset(self.task, "test", self.num_test)

    def options(self) -> dict:
        """What decides its result, but for the code and what the config's file says."""
        train, test = self.datasets
        opts = list(self.opts)
        return {
            "config": self.config,
            "train": train,
            "test": test,
            "seed": self.seed,
            "opts": opts,
        }

    def arguments(self, configs: Path) -> list[str]:
        """Arguments of train_net.py, which find the config in the folder ``configs``."""
        train, test = self.datasets
        values = (str(self.folder), str((train,)), str((test,)), str(self.seed))
        grid = itertools.chain.from_iterable(zip(GRID_KEYS, values, strict=True))
        return ["--config-file", str(configs / self.config), "--resume", *self.opts, *grid]

    def begin(self) -> None:
        """Make its folder and note its options there, for whoever resumes it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / "run.json", {"options": self.options()})

    def end(self, result: Result) -> None:
        """Write its ``result.json``."""
        _write(self.folder / "result.json", {"options": self.options(), "result": asdict(result)})

    def result(self) -> Result | None:
        """Read its ``result.json``; None where there is none yet.

        Raises:
            ValueError: its folder is that of a run with other options, or of none of this tool.
        """
        begun = self._read("run.json")
        if begun is None and (self.folder / "last_checkpoint").is_file():
            raise ValueError(
                f"{self.folder}: found a training that this tool did not begin (no run.json): "
                "remove the folder, or choose another --output"
            )
        done = self._read("result.json")
        return None if done is None else Result(**done["result"])

    def _read(self, name: str) -> dict | None:
        file = self.folder / name
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text())
            found = dict(content["options"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{file}: found no file of this tool: remove its folder") from None
        wanted = self.options()
        if found != wanted:
            keys = [key for key in wanted if found.get(key) != wanted[key]]
            text = ", ".join(f"{key} {found.get(key)} instead of {wanted[key]}" for key in keys)
            raise ValueError(
                f"{self.folder}: found a run with other options ({text}): remove the folder, or "
                "choose another --output"
            )
        return content


def _dataset(task: str, split: str, number: int) -> str:
    return f"toy_{task}_{split}" + ("" if number == ALL_IMAGES else f"_{number}")


def _write(file: Path, content: dict) -> None:
    with written_whole(file) as partial:
        partial.write_text(json.dumps(content, indent=2))


def make_grid(
    output: Path,
    *,
    models: Sequence[str] = MODELS,
    tasks: Sequence[str] = TASKS,
    sizes: Sequence[int] = SIZES,
    seeds: Sequence[int] = (1, 2, 3),
    num_test: int = ALL_IMAGES,
    small: bool = False,
    opts: Sequence[str] = (),
) -> list[Run]:
    """All runs of a grid, in an order that fills it evenly: the first seed of everything first.

    Raises:
        ValueError: opts are no pairs, or set what the grid sets.
    """
    if len(opts) % 2:
        raise ValueError(f"found the options {' '.join(opts)!r}, expected pairs of KEY VALUE")
    for key in opts[::2]:
        if key in GRID_KEYS:
            raise ValueError(f"found the option {key}, which the grid sets itself")
    places = dict.fromkeys(itertools.product(seeds, sizes, tasks, models))
    return [
        Run(output, task, model, size, seed, num_test, small, tuple(opts))
        for seed, size, task, model in places
    ]


def check_datasets(runs: Sequence[Run]) -> None:
    """Check that all data sets of the runs can be read.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a number of images is not registered, or there are fewer.
    """
    for name in dict.fromkeys(name for run in runs for name in run.datasets):
        load_records(name)
