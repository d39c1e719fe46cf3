"""What the medical detection toolkit's tables say of each image: the classes of its regions."""

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
        targets: pid -> a number for each region.
        sources: pid -> the file they are from.
        damaged: lines of what cannot be read.
    """

    targets: Mapping[str, tuple[float, ...]]
    sources: Mapping[str, str]
    damaged: tuple[str, ...] = ()

    def source_of(self, pid: str) -> str:
        """The file that a pid's targets are from."""
        return self.sources[pid]


def read_targets(folder: Path) -> TargetTable:
    """Read ``info_df.csv``, ``info_df.pickle`` or all ``meta_info_<pid>.pickle``.

    The first one that is there is read; a bad one is not passed over.

    Raises:
        FileNotFoundError: there is none of them.
        ValueError: a table has other columns, is no table, or a pickle holds more than one; a row
            is bad, or two are of one pid.
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
                f"{error}; an info_df.csv with the columns pid and class_target, or "
                "meta_info_<pid>.pickle alone, are read in its place"
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
            raise ValueError(
                f"{where}: found {short_repr(name)} again, expected a row for each pid"
            )
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
                    f"'class_target'"
                )
            pid = _pid(str(file), content["pid"])
            if pid in targets:
                raise ValueError(
                    f"{file}: found {short_repr(pid)} again, expected a file for each pid"
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
            f"{where}: found the pid {short_repr(pid)}, expected the beginning of a name"
        )
    return str(pid)


def _numbers(where: str, target: object) -> tuple[float, ...]:
    """Of an array, a list, a number, or text such as ``[1.5, 4]``."""
    if isinstance(target, str) and target.strip():  # an empty cell, or none, is no list
        target = [part for part in re.split(r"[\s,]+", target.strip().strip("[]()")) if part]
    try:
        values = np.atleast_1d(np.asarray(target, float))
    except (TypeError, ValueError):
        values = np.array([np.nan])
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(
            f"{where}: class_target: found {short_repr(target)}, expected a number for each region"
        )
    return tuple(values.tolist())
