"""The runs of a cross-validation: a training and a test per fold."""

import datetime
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lesion_d2.config.old_keys import with_new_keys
from lesion_d2.data.formats.problems import short_repr
from lesion_d2.data.volume_set.form import FILE_NAME
from lesion_d2.evaluation import VolumeDetections, read_volume_detections
from lesion_d2.tools.common.arguments import key_value_pairs
from lesion_d2.tools.common.trainings import FailedRun
from lesion_d2.utils.files import json_digest, read_json, write_json

#: Keys of the config that a cross-validation sets.
OWN_KEYS = (
    "OUTPUT_DIR",
    "DATASETS.TRAIN",
    "DATASETS.TEST",
    "TEST.ENSEMBLE.ENABLED",
    "TEST.ENSEMBLE.CHECKPOINTS",
)
#: Keys that do not affect the result, and may differ between calls.
FREE_KEYS = ("MODEL.DEVICE", "DATALOADER.NUM_WORKERS")
#: Files in a fold's folder: its options, written at the start, and its end, written when finished.
BEGUN, DONE = "fold.json", "done.json"


@dataclass(frozen=True)
class FoldOptions:
    """Everything that the result of a fold depends on, except the code.

    Args:
        dataset: name of the volume set.
        num_folds: of the cross-validation.
        data: hash of the data set, see :func:`hash_data`.
        config: hash of the config file and its base files.
        opts: further KEY VALUE pairs for the config.
        on_volumes: whether to train on every slice, not only on those with a lesion.
        keep_best: number of checkpoints in the ensemble that is tested.
    """

    dataset: str
    num_folds: int
    data: str
    config: str
    opts: tuple[str, ...]
    on_volumes: bool
    keep_best: int


@dataclass(frozen=True)
class FoldRun:
    """One fold, as a :class:`lesion_d2.tools.common.trainings.TrainingRun`.

    The model is trained on the fold's train split. The ensemble of its best checkpoints on the val
    split is tested on the volumes of the test split (Jaeger et al., section 4.2).

    Args:
        output: the folder of the cross-validation.
        number: of the fold, from 0.
        config_file: of the model.
        options: the same for all folds.
        num_gpus: processes of train_net.py.
        free_opts: further KEY VALUE pairs, which do not affect the result.
        validates_volumes: whether to validate on volumes, as required for 3-D models, not on slices
            with a lesion.
    """

    output: Path
    number: int
    config_file: str
    options: FoldOptions
    num_gpus: int = 1
    free_opts: tuple[str, ...] = ()
    validates_volumes: bool = False

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"fold{self.number}"

    @property
    def folder(self) -> Path:
        """The OUTPUT_DIR of its training."""
        return self.output / self.name

    @property
    def datasets(self) -> tuple[str, str, str]:
        """Names of its data sets for training, validation and test."""
        prefix = f"{self.options.dataset}_fold{self.number}"
        trained = "volumes_train" if self.options.on_volumes else "train"
        validated = "volumes_val" if self.validates_volumes else "val"
        return f"{prefix}_{trained}", f"{prefix}_{validated}", f"{prefix}_volumes_test"

    def commands(self) -> list[list[str]]:
        """Arguments of train_net.py: of the training, which is resumed, and of the test."""
        train, val, test = self.datasets
        best = str((str(self.folder / "best"),))
        ensemble = ["TEST.ENSEMBLE.ENABLED", "True", "TEST.ENSEMBLE.CHECKPOINTS", best]
        return [
            self._arguments("--resume", self.folder, train, val),
            [*self._arguments("--eval-only", self.folder / "test", train, test), *ensemble],
        ]

    def _arguments(self, flag: str, folder: Path, train: str, test: str) -> list[str]:
        pairs = {
            "TEST.NUM_BEST_CHECKPOINTS": self.options.keep_best,
            "OUTPUT_DIR": folder,
            "DATASETS.TRAIN": (train,),
            "DATASETS.TEST": (test,),
        }
        own = [text for key, value in pairs.items() for text in (key, str(value))]
        start = ["--config-file", self.config_file, flag, "--num-gpus", str(self.num_gpus)]
        return [*start, *self.options.opts, *self.free_opts, *own]

    @property
    def evaluation(self) -> Path:
        """The ``volumes.json`` of its test."""
        return self.folder / "test" / "inference" / self.datasets[2] / "volumes.json"

    def begin(self) -> None:
        """Write its options to its folder, so that a resumed run can check them."""
        _write(self.folder / BEGUN, {"options": _as_json(self.options)})

    def end(self, seconds: float, resumed: bool) -> None:
        """Mark it as finished.

        Raises:
            FailedRun: its test left no evaluation.
        """
        try:
            read_volume_detections(self.evaluation)
        except (OSError, ValueError) as error:
            raise FailedRun(str(error)) from None
        date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        content = {"options": _as_json(self.options), "seconds": seconds, "resumed": resumed}
        _write(self.folder / DONE, {**content, "date": date})

    def result(self) -> VolumeDetections | None:
        """The evaluation of its test; None if it has not finished.

        Raises:
            ValueError: the folder has a fold with other options, or something else, or its
                evaluation is damaged.
            FileNotFoundError: it has finished, but its evaluation is missing.
        """
        if not (self.folder / BEGUN).is_file():
            if (self.folder / "last_checkpoint").is_file():
                raise ValueError(
                    f"{self.folder}: found a training that this tool did not start (no {BEGUN}): "
                    "choose another --output"
                )
            return None
        self._check(self.folder / BEGUN)
        if not (self.folder / DONE).is_file():
            return None
        self._check(self.folder / DONE)
        return read_volume_detections(self.evaluation)

    def _check(self, file: Path) -> None:
        """Refuse a file of other options."""
        content = read_json(file, "options of a fold")
        found = content.get("options") if isinstance(content, dict) else None
        wanted = _as_json(self.options)
        if not isinstance(found, dict) or found.keys() != wanted.keys():
            raise ValueError(f"{file}: found other content, expected options of a fold")
        if isinstance(found["opts"], list):  # of a fold that was begun with old names of keys
            found["opts"] = with_new_keys(found["opts"])
        changes = [
            f"{key} {_shown(found[key])} instead of {_shown(wanted[key])}"
            for key in wanted
            if found[key] != wanted[key]
        ]
        if changes:
            raise ValueError(
                f"{self.folder}: found a fold with other options ({', '.join(changes)}): choose "
                "another --output, or remove the folder"
            )


def hash_data(root: Path) -> str:
    """SHA-256 of a data set without its splits, which folds do not depend on.

    Changed voxels are detected by the size of their file.

    Raises:
        FileNotFoundError, ValueError: there is no readable ``volume_set.json``, or a file of
            voxels is missing.
    """
    content = read_json(root / FILE_NAME, "a data set of volumes")
    kept = {key: value for key, value in content.items() if key not in ("splits", "source")}
    kept["bytes"] = [(root / volume["image"]).stat().st_size for volume in content["volumes"]]
    return json_digest(kept)


def split_options(opts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """KEY VALUE pairs that affect the result, and the others; old names of keys are replaced.

    Raises:
        ValueError: they are not pairs, or set a key of the cross-validation.
    """
    pairs = key_value_pairs(with_new_keys(opts))
    for key, _ in pairs:
        if key in OWN_KEYS:
            told = ", by --output" if key == "OUTPUT_DIR" else ""
            raise ValueError(f"found the option {key}, which a cross-validation sets itself{told}")
    deciding = tuple(text for pair in pairs if pair[0] not in FREE_KEYS for text in pair)
    return deciding, tuple(text for pair in pairs if pair[0] in FREE_KEYS for text in pair)


def _as_json(options: FoldOptions) -> dict:
    return json.loads(json.dumps(asdict(options)))


def _shown(value: object) -> str:
    if isinstance(value, str) and len(value) == hashlib.sha256().digest_size * 2:
        return value[:8]
    return short_repr(value)


def _write(file: Path, content: dict) -> None:
    write_json(file, content, indent=1)
