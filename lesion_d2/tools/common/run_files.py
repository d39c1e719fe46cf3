"""Runs of a grid of experiments: their options, and the files of their results."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lesion_d2.config.old_keys import with_new_keys
from lesion_d2.data.catalog import load_records
from lesion_d2.tools.common.arguments import key_value_pairs
from lesion_d2.tools.common.trainings import FailedRun
from lesion_d2.utils.files import atomic_write, parse_json, read_json, write_json

#: Files in a run's folder: its options, written at the start, and its result, written at the end.
BEGUN, RESULT = "run.json", "result.json"
#: Keys of the config that a grid sets.
GRID_KEYS = ("OUTPUT_DIR", "DATASETS.TRAIN", "DATASETS.TEST", "SEED")

ResultType = TypeVar("ResultType")


@dataclass(frozen=True)
class RunFiles(Generic[ResultType]):
    """The files of one run.

    Args:
        folder: its OUTPUT_DIR.
        options: everything that the result depends on except the code, as JSON values.
            ``settings`` is the hash of its config
            (:func:`~lesion_d2.tools.common.trainings.hash_settings`).
        config: its config file, for messages.
        kind: dataclass of the result, which raises TypeError or ValueError for invalid fields.
    """

    folder: Path
    options: Mapping[str, Any]
    config: str
    kind: type[ResultType]

    def begin(self) -> None:
        """Create the folder and write the options to it, so that a resumed run can check them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(BEGUN, {})

    def end(self, result: ResultType) -> None:
        """Write the result."""
        self._write(RESULT, {"result": asdict(result)})

    def result(self) -> ResultType | None:
        """Read the result; None if the run has not ended.

        Raises:
            ValueError: the folder has a run with other options, of another tool, or of another
                version of this tool.
        """
        begun = self._read(BEGUN)
        if begun is None and (self.folder / "last_checkpoint").is_file():
            raise ValueError(
                f"{self.folder}: found a training that this tool did not start (no {BEGUN}): "
                "remove the folder, or choose another --output"
            )
        done = self._read(RESULT)
        return None if done is None else done["result"]

    def _write(self, name: str, content: Mapping) -> None:
        content = {"options": self.options, **content}
        write_json(self.folder / name, content, indent=2, allow_nan=True)

    def _read(self, name: str) -> dict | None:
        file = self.folder / name
        if not file.is_file():
            return None
        try:
            content = read_json(file, "a run's options", allow_nan=True)
            found = dict(content["options"])
            if found.keys() != self.options.keys():
                raise ValueError(f"options {', '.join(found)}, expected {', '.join(self.options)}")
            if "opts" in found:  # of a run that was begun with old names of keys
                found["opts"] = with_new_keys(found["opts"])
            if name == RESULT:
                content["result"] = self.kind(**content["result"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}: found a file of another tool or another version ({error!r}): "
                "remove its folder, or choose another --output"
            ) from None
        if found != self.options:
            raise ValueError(
                f"{self.folder}: found a run with other options ({self._changes(found)}): remove "
                "the folder, or choose another --output"
            )
        return content

    def _changes(self, found: Mapping) -> str:
        keys = [key for key in self.options if found[key] != self.options[key]]
        if keys == ["settings"]:
            return f"{self.config} has changed since"
        keys = [key for key in keys if key != "settings"]
        return ", ".join(f"{key} {found[key]} instead of {self.options[key]}" for key in keys)


def check_options(opts: Sequence[str]) -> None:
    """Check config options for all runs of a grid.

    Raises:
        ValueError: they are not pairs of KEY VALUE, or set a key of the grid.
    """
    for key, _ in key_value_pairs(opts):
        if key in GRID_KEYS:
            raise ValueError(f"found the option {key}, which the grid sets itself")


def grid_options(folder: Path, train: str, test: str, seed: int) -> list[str]:
    """The config options of a run of a grid, as arguments of train_net.py.

    Args:
        folder: OUTPUT_DIR.
        train, test: names of data sets.
        seed: SEED.
    """
    values = (str(folder), str((train,)), str((test,)), str(seed))
    return [text for pair in zip(GRID_KEYS, values, strict=True) for text in pair]


def check_datasets(names: Iterable[str]) -> None:
    """Check that data sets can be read.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: one is not registered, or invalid.
    """
    for name in dict.fromkeys(names):
        load_records(name)


def write_rows(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write at least one row to a CSV file; the first row's keys are the columns."""
    with atomic_write(file) as partial, open(partial, "w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_metric(file: Path, metric: str) -> tuple[float, int]:
    """The last value of a metric in a run's ``metrics.json``, and its iteration.

    Raises:
        FailedRun: there is no number.
    """
    try:
        lines = [line for line in file.read_bytes().splitlines() if metric.encode() in line]
        records = [parse_json(line, file, allow_nan=True) for line in lines]
        value, iteration = float(records[-1][metric]), int(records[-1]["iteration"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FailedRun(f"{file}: found no {metric} ({error!r})") from None
    if not math.isfinite(value):
        raise FailedRun(f"{file}: found {metric} {value}, expected a number")
    return value, iteration
