"""LUNA16: MetaImage volumes in ten subsets, nodules as centers and diameters.

Nodules are spheres, with a box on each slice that they reach. Each scan is a patient, and the
subsets become folds. candidates.csv is not read.
"""

import argparse
import math
import os
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..data.formats.csv_files import read_csv_table
from ..data.formats.problems import raise_problems, short_repr
from ..data.volume_set.form import Lesion
from ..scans import ScanCandidate, find_scans, read_scan
from ..scans.names import safe_name
from ..utils.display_windows import WINDOWS
from ..utils.values import are_digits
from .case import Case, ImportedVolume, Listing
from .scan_volumes import imported_scan

CLASSES = ("nodule",)
_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
#: Diameter in mm of findings without one (-1), as in the challenge's evaluation.
UNKNOWN_DIAMETER = 10.0
_MAX_DIAMETER = 1000.0


class Nodule(NamedTuple):
    """A row of ``annotations.csv``.

    Args:
        row: line number in the file; the header is line 1.
        center: LPS in mm.
        diameter: diameter in mm.
        ignore: whether it is from ``annotations_excluded.csv``.
    """

    row: int
    center: tuple[float, float, float]
    diameter: float
    ignore: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``import_data luna16``."""
    parser.add_argument("root", type=Path, help="folder with subset0 ... subset9")
    parser.add_argument(
        "--annotations",
        type=Path,
        help="default: annotations.csv in the folder, or in its folder CSVFILES",
    )
    parser.add_argument(
        "--excluded",
        type=Path,
        help="annotations_excluded.csv, whose findings become regions to ignore (default: they are "
        "background)",
    )


def list_cases(args: argparse.Namespace) -> Listing:
    """The listing for arguments of the command."""
    return list_luna16(args.root, args.annotations, excluded=args.excluded, progress=True)


def list_luna16(
    root: str | os.PathLike,
    annotations: str | os.PathLike | None = None,
    *,
    excluded: str | os.PathLike | None = None,
    progress: bool = False,
) -> Listing:
    """List the scans of LUNA16, including those without a nodule.

    Each scan counts as its own patient, as the challenge only identifies series. n subsets, at
    least three, make n folds: one for testing, the next for validation, the others for training.
    The splits without folds are those of the first fold.

    Args:
        root: the folder with all or some of ``subset0`` ... ``subset9``.
        annotations: ``annotations.csv``; None for the one in ``root`` or ``root/CSVFILES``.
        excluded: ``annotations_excluded.csv``, whose findings become regions to ignore, of 10 mm if
            the diameter is missing (-1), as in the challenge's evaluation. None leaves them as
            background.
        progress: show a progress bar over files.

    Raises:
        FileNotFoundError: the folder, its subsets or a file of annotations does not exist.
        ValueError: a file of annotations is damaged; the message lists all bad rows.
    """
    root = Path(root)
    subsets = _subsets(root)
    annotations = annotations or _default_annotations(root)
    nodules = read_nodules(annotations)
    findings = {} if excluded is None else read_nodules(excluded, excluded=True)
    tables = tuple(map(os.fspath, filter(None, (annotations, excluded))))
    scans, left_out, damaged = _find_scans(subsets, progress)
    cases = {}
    for series, (_, candidate) in scans.items():
        rows = (*nodules.get(series, ()), *findings.get(series, ()))
        name = safe_name(series)
        read = partial(_read_case, candidate.source, name, series, rows)
        cases[series] = Case(name, series, read, (*candidate.files, *tables))
    left_out.extend(_absent(annotations, nodules, cases))
    left_out.extend(_absent(excluded, findings, cases))
    folds = _folds({series: subset for series, (subset, _) in scans.items()})
    first = folds[0] if folds else {}
    split_of = {series: split for split, patients in first.items() for series in patients}
    return Listing(
        CLASSES,
        tuple(replace(case, split=split_of.get(series)) for series, case in cases.items()),
        tuple(left_out),
        tuple(damaged),
        folds,
        {"excluded": excluded is not None},
    )


def _subsets(root: Path) -> list[tuple[int, Path]]:
    subsets = sorted(
        (int(path.name[6:]), path)
        for path in root.glob("subset*")
        if path.is_dir() and are_digits(path.name[6:])
    )
    if not subsets:
        found = "found no folder subset0 ... subset9 in it" if root.is_dir() else "no such folder"
        raise FileNotFoundError(f"{root}: {found}, expected the folder that contains them")
    return subsets


def _find_scans(
    subsets: Iterable[tuple[int, Path]], progress: bool
) -> tuple[dict[str, tuple[int, ScanCandidate]], list[str], list[str]]:
    """Series UID -> subset and scan; lines about what was left out, and those about damage."""
    scans, left_out, damaged = {}, [], []
    for number, folder in subsets:
        found = find_scans([folder], progress=progress)
        left_out.extend(found.left_out)
        damaged.extend(found.damaged)
        for candidate in found.candidates:
            series = Path(candidate.source).stem
            if candidate.format != "metaimage":
                left_out.append(f"{candidate.source}: found {candidate.format}, expected MetaImage")
            elif series in scans:
                damaged.append(
                    f"{candidate.source}: found a second file of scan {series}, expected one"
                )
                left_out.append(damaged[-1])
            else:
                scans[series] = (number, candidate)
    return scans, left_out, damaged


def read_nodules(
    file: str | os.PathLike, *, excluded: bool = False
) -> dict[str, tuple[Nodule, ...]]:
    """Read ``annotations.csv`` or, with ``excluded``, ``annotations_excluded.csv``.

    Returns:
        Series UID -> its rows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not CSV, lacks a column, or has rows with invalid numbers; the message
            lists all of them.
    """
    expected = f"the annotations of LUNA16, with the columns {', '.join(_COLUMNS)}"
    table = read_csv_table(file, _COLUMNS, expected)
    numbers = table[list(_COLUMNS[1:])].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    problems, nodules = [], {}
    for row, series, values in zip(table.index, table["seriesuid"], numbers, strict=True):
        diameter = values[3]
        if excluded and diameter < 0:
            diameter = UNKNOWN_DIAMETER
        if not np.isfinite(values).all() or not 0 < diameter < _MAX_DIAMETER:
            found = ", ".join(table.loc[row, list(_COLUMNS[1:])])
            problems.append(
                f"row {row}: found {short_repr(found)}, expected three coordinates and a "
                "diameter in mm"
            )
            continue
        nodule = Nodule(row, tuple(values[:3].tolist()), float(diameter), excluded)
        nodules.setdefault(series.strip(), []).append(nodule)
    raise_problems(file, problems)
    return {series: tuple(rows) for series, rows in nodules.items()}


def sphere_lesion(
    id: int,
    center: np.ndarray,
    diameter: float,
    spacing: tuple[float, float, float],
    shape: tuple[int, int, int],
    *,
    ignore: bool = False,
) -> Lesion | None:
    """A spherical lesion; its box on a slice is that of its cross-section.

    Cross-sections smaller than a pixel are dropped. If all are, because the sphere lies between two
    slices or is smaller than a pixel, the slice nearest to its center has a box of the full
    diameter.

    Args:
        id, ignore: fields of the lesion.
        center: (3,) x, y, z in voxels.
        diameter: diameter in mm.
        spacing: x, y, z in mm.
        shape: (Z, H, W) of the volume; boxes are clipped to it.

    Returns:
        The lesion; None if it lies outside of the volume.
    """
    depth, height, width = shape
    x, y, z = map(float, center)
    radius, nearest, boxes = diameter / 2, math.floor(z + 0.5), {}
    reach = radius / spacing[2]
    for number in {*range(math.ceil(z - reach), math.floor(z + reach) + 1), nearest}:
        if not 0 <= number < depth:
            continue
        half = math.sqrt(max(radius**2 - ((number - z) * spacing[2]) ** 2, 0.0))
        if 2 * half < max(spacing[:2]):
            if number != nearest:
                continue
            half = radius
        x1, x2 = x - half / spacing[0], x + half / spacing[0]
        y1, y2 = y - half / spacing[1], y + half / spacing[1]
        x1, y1, x2, y2 = max(x1, -0.5), max(y1, -0.5), min(x2, width - 0.5), min(y2, height - 0.5)
        if x1 < x2 and y1 < y2:
            boxes[number] = (x1, y1, x2, y2)
    if not boxes:
        return None
    boxes = dict(sorted(boxes.items()))
    low, high = np.min(list(boxes.values()), axis=0)[:2], np.max(list(boxes.values()), axis=0)[2:]
    box = (*low.tolist(), float(min(boxes)), *high.tolist(), float(max(boxes)))
    return Lesion(id, 0, box, boxes=boxes, diameters_mm=(diameter, diameter), ignore=ignore)


def _read_case(file: str, name: str, patient: str, nodules: tuple[Nodule, ...]) -> ImportedVolume:
    scan = read_scan(file)
    lesions, left_out = [], []
    for nodule in nodules:
        (center,) = scan.from_patient([nodule.center])
        lesion = sphere_lesion(
            len(lesions) + 1,
            center,
            nodule.diameter,
            scan.spacing,
            scan.volume.shape,
            ignore=nodule.ignore,
        )
        if lesion is not None:
            lesions.append(lesion)
            continue
        table = "annotations_excluded.csv" if nodule.ignore else "annotations.csv"
        place = ", ".join(f"{number:g}" for number in nodule.center)
        line = (
            f"{table}, row {nodule.row}: found a center at {place} mm, expected one in the scan "
            f"{file}"
        )
        if not nodule.ignore:
            raise ValueError(line)
        left_out.append(line)
    return imported_scan(scan, name, patient, lesions, left_out, WINDOWS["lung"])


def _default_annotations(root: Path) -> Path:
    beside = root / "annotations.csv"
    inside = root / "CSVFILES" / "annotations.csv"
    return inside if inside.is_file() and not beside.is_file() else beside


def _absent(
    file: str | os.PathLike | None, nodules: dict[str, tuple[Nodule, ...]], scans: Iterable[str]
) -> list[str]:
    """A line about the rows of missing scans."""
    absent = [series for series in nodules if series not in scans]
    if not absent:
        return []
    rows = sum(len(nodules[series]) for series in absent)
    return [
        f"{os.path.basename(file)}: {rows} rows of {len(absent)} scans that do not exist, such as "
        f"{short_repr(absent[0])}"
    ]


def _folds(subset_of: dict[str, int]) -> tuple[dict[str, tuple[str, ...]], ...]:
    """One fold per subset; none for fewer than three, which leave nothing to train on."""
    subsets = sorted(set(subset_of.values()))
    if len(subsets) < 3:
        return ()
    folds = []
    for test, val in zip(subsets, (*subsets[1:], subsets[0]), strict=True):
        names = {subset: "train" for subset in subsets} | {test: "test", val: "val"}
        folds.append(
            {
                split: tuple(s for s, subset in subset_of.items() if names[subset] == split)
                for split in ("train", "val", "test")
            }
        )
    return tuple(folds)
