"""Reading of the medical detection toolkit's tables: the class targets of each image's regions."""

import itertools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.formats.csv_files import read_csv_table
from ...data.formats.problems import short_repr
from ...data.formats.restricted_pickle import load_pickle
from ...data.formats.table_pickle import load_table
from ...utils.files import one_line
from ...utils.values import is_whole

_COLUMNS = ("pid", "class_target")
_META = re.compile(r"meta_info_(.+)\.pickle", re.DOTALL)


@dataclass(frozen=True)
class TargetTable:
    """Class targets by pid.

    Args:
        targets: pid -> one number per region.
        sources: pid -> the file with its targets.
        damaged: one line for each file that cannot be read.
    """

    targets: Mapping[str, tuple[float, ...]]
    sources: Mapping[str, str]
    damaged: tuple[str, ...] = ()

    def source_of(self, pid: str) -> str:
        """The file with the targets of a pid."""
        return self.sources[pid]


def read_targets(folder: Path) -> TargetTable:
    """Read ``info_df.csv``, ``info_df.pickle`` or all ``meta_info_<pid>.pickle``.

    The first one that exists is read, even if it is invalid.

    Raises:
        FileNotFoundError: none of them exists.
        ValueError: a file is not a table, a pickle holds more than a table, a column is missing, a
            row is invalid, or two rows have the same pid.
    """
    csv_file, pickle_file = folder / "info_df.csv", folder / "info_df.pickle"
    if csv_file.is_file():
        return _of_csv(csv_file)
    if pickle_file.is_file():
        try:
            columns = load_table(pickle_file)
            return _of_rows(pickle_file, columns, itertools.count())
        except ValueError as error:
            raise ValueError(
                f"{error}; instead, you can provide an info_df.csv with the columns pid and "
                "class_target, or only meta_info_<pid>.pickle"
            ) from None
    return _of_meta_files(folder)


def _of_rows(file: Path, columns: Mapping[str, list], rows: Iterable[int]) -> TargetTable:
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        raise ValueError(
            f"{file}: found the columns {short_repr(list(columns))}, expected "
            f"{' and '.join(_COLUMNS)}"
        )
    targets = {}
    cells = zip(*(columns[n] for n in _COLUMNS), strict=True)
    for row, (pid, target) in zip(rows, cells, strict=False):
        where = f"{file}: row {row}"
        name = _pid(where, pid)
        if name in targets:
            raise ValueError(f"{where}: found {short_repr(name)} again, expected one row per pid")
        targets[name] = _numbers(where, target)
    return TargetTable(targets, dict.fromkeys(targets, str(file)))


def _of_meta_files(folder: Path) -> TargetTable:
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    files = [folder / name for name in names if _META.fullmatch(name)]
    if not files:
        raise FileNotFoundError(
            f"{folder}: found no info_df.csv, info_df.pickle or meta_info_<pid>.pickle"
        )
    targets, sources, damaged = {}, {}, []
    for file in files:
        try:
            content = load_pickle(file)
            if not isinstance(content, dict) or not set(_COLUMNS) <= content.keys():
                raise ValueError(
                    f"{file}: found {short_repr(content)}, expected a dict with 'pid' and "
                    "'class_target'"
                )
            pid = _pid(str(file), content["pid"])
            if pid in targets:
                raise ValueError(
                    f"{file}: found {short_repr(pid)} again, expected one file per pid"
                )
            targets[pid] = _numbers(str(file), content["class_target"])
            sources[pid] = str(file)
        except ValueError as error:
            damaged.append(one_line(error))
    return TargetTable(targets, sources, tuple(damaged))


def _of_csv(file: Path) -> TargetTable:
    table = read_csv_table(file, (), f"a table with the columns {' and '.join(_COLUMNS)}")
    return _of_rows(file, {name: table[name].tolist() for name in table.columns}, table.index)


def _pid(where: str, pid: object) -> str:
    pid = str(pid) if is_whole(pid) else pid
    if not isinstance(pid, str) or not pid.strip() or os.path.basename(pid) != pid:
        raise ValueError(
            f"{where}: found the pid {short_repr(pid)}, expected a prefix of file names"
        )
    return str(pid)


def _numbers(where: str, target: object) -> tuple[float, ...]:
    """Convert an array, a list, a number, or text such as ``[1.5, 4]``."""
    if isinstance(target, str) and target.strip():  # an empty cell is not an empty list
        target = [part for part in re.split(r"[\s,]+", target.strip().strip("[]()")) if part]
    try:
        values = np.atleast_1d(np.asarray(target, float))
    except (TypeError, ValueError):
        values = np.array([np.nan])
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(
            f"{where}: class_target: found {short_repr(target)}, expected one number per region"
        )
    return tuple(values.tolist())
