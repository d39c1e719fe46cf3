"""Annotations of fully annotated sub-volumes of DeepLesion: as published, and as JSON.

Cai et al. ("Lesion-harvester", TMI 2020) annotated them, and Bai et al. (2023) evaluate on them.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...utils.files import read_json, write_json
from ...utils.values import are_digits, are_numbers, is_number
from ..formats.problems import raise_problems, short_repr
from ..formats.restricted_pickle import load_pickle
from .volume_names import VolumeName

logger = logging.getLogger(__name__)

#: Numbering of slices in a file: as on disk, or starting with 0 at a volume's first slice.
SLICE_NUMBERS = ("disk", "index")
#: Columns of boxes in 3-D: x1, y1, x2, y2, z1, z2 as Cai et al. published them, or x1, y1, z1, x2,
#: y2, z2 as Yan et al. did.
BOX_COLUMNS = ("xyxyzz", "xyzxyz")
_SPLITS = ("train", "val", "test")
_FORMAT = "lesion_d2 volumes"
_KEYS = ("box", "slices", "key_slice")
# Columns of x1, y1, x2, y2, z1 and z2.
_PLACES = {"xyxyzz": (0, 1, 2, 3, 4, 5), "xyzxyz": (0, 1, 3, 4, 2, 5)}
_COLUMN_NAMES = {"xyxyzz": "x1, y1, x2, y2, z1, z2", "xyzxyz": "x1, y1, z1, x2, y2, z2"}
_NUMBERING = {
    "disk": "as on disk",
    "index": "counted from 0 at the volume's first slice",
}
# Tolerance in slices. Some published 3-D boxes have integers or halves up to rounding errors.
_NOISE = 1e-3


class VolumeLesion(NamedTuple):
    """One lesion of a volume."""

    box: tuple[float, float, float, float]  # XYXY in pixels
    first: int  # slice numbers as on disk, both included
    last: int
    key_slice: int | None  # where the box was drawn; None for a lesion with a 3-D box


class _Found(NamedTuple):
    """A lesion as read from a file, unchecked."""

    box: object
    first: object
    last: object
    key_slice: object
    covers: bool = False  # from a pickle's 3-D box: its slices are those covered by z1 to z2


def read_annotations(
    file: str | os.PathLike,
    split: str | None = None,
    *,
    slice_numbers: str | None = None,
    box_columns: str | None = None,
) -> dict[VolumeName, list[VolumeLesion]]:
    """Read the lesions of all volumes in a file.

    A pickle contains ``{volume: {slice: [[x1, y1, x2, y2, z, z], ...]}}``, boxes on key slices, one
    per lesion; or ``{volume: n x 6}``, 3-D boxes. Names of volumes may end with ``.annot``, as in
    the published files. Both may be nested in ``{"train" | "val" | "test": ...}``. A pickle may
    have NumPy arrays instead of lists, and nothing else; see :func:`load_pickle`. JSON files have
    the format of :func:`write_annotations`.

    A 3-D box contains the slices of which it covers at least half, where slice z spans z - 0.5 to z
    + 0.5 and the box z1 - 0.5 to z2 + 0.5: a published one of (5.5, 6.5) has slices 5 to 7. Then it
    is clipped to the volume's slices. Both cases are counted in the log.

    Args:
        file: file with suffix ``.json``, ``.pkl`` or ``.pickle``.
        split: the split to read, if the file has several; files without splits are read completely.
        slice_numbers: "disk" if a pickle's slice numbers are those on disk, "index" if they start
            with 0 at a volume's first slice; None to detect it: with exactly one of the two, all
            lesions are inside their volumes. Our JSON uses those on disk.
        box_columns: columns of a pickle's 3-D boxes, one of :data:`BOX_COLUMNS`; None to detect
            them: with exactly one of the two, all rows are boxes (x1 < x2, y1 < y2, z1 <= z2).

    Returns:
        Volume -> lesions, in the file's order; the list of a volume without lesions is empty.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another format; the split is missing; names, boxes or slice numbers
            are invalid (all are listed); or the numbering or the columns cannot be detected.
    """
    file = Path(file)
    _check_layout(file, slice_numbers, box_columns)
    if file.suffix == ".json":
        volumes = _select(file, _read_json(file), split)
        return _read_volumes(file, volumes, _lesions_of_json, "disk")
    volumes = _select(file, load_pickle(file), split)
    columns = box_columns or _find_columns(file, volumes)
    read_volume = partial(_lesions_of_pickle, columns=columns or BOX_COLUMNS[0])
    lesions = _read_volumes(file, volumes, read_volume, slice_numbers)
    if columns is None:  # reported last, if nothing else is wrong
        layouts = " or ".join(_COLUMN_NAMES.values())
        raise ValueError(
            f"{file}: found 3-D boxes with ambiguous columns ({layouts}), expected box_columns "
            f"(--box-columns) {' or '.join(BOX_COLUMNS)}"
        )
    return lesions


def write_annotations(
    file: str | os.PathLike, volumes: Mapping[VolumeName, Iterable[VolumeLesion]]
) -> None:
    """Write the result of :func:`read_annotations` as JSON, atomically.

    The layout is described in ``datasets/README.md``.
    """
    content = {
        "format": _FORMAT,
        "volumes": {
            name.text: [
                {"box": x.box, "slices": [x.first, x.last], "key_slice": x.key_slice}
                for x in lesions
            ]
            for name, lesions in volumes.items()
        },
    }
    write_json(file, content)


def _check_layout(file: Path, slice_numbers: str | None, box_columns: str | None) -> None:
    for name, value, known in (
        ("slice_numbers", slice_numbers, SLICE_NUMBERS),
        ("box_columns", box_columns, BOX_COLUMNS),
    ):
        if value is not None and value not in known:
            raise ValueError(
                f"{file}: found {name} {value!r}, expected one of {list(known)}, or None"
            )
    if file.suffix not in (".json", ".pkl", ".pickle"):
        raise ValueError(f"{file}: found the suffix {file.suffix!r}, expected .json or .pkl")
    if file.suffix == ".json" and (slice_numbers == "index" or box_columns is not None):
        found = f"slice_numbers {slice_numbers!r}" if slice_numbers else "box_columns"
        raise ValueError(
            f"{file}: found {found} for JSON, expected None: it is written by write_annotations"
        )


def _read_json(file: Path) -> object:
    content = read_json(file, "annotations of volumes", allow_nan=True)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f'{file}: found no "format": "{_FORMAT}", expected it')
    return content.get("volumes")


def _select(file: Path, volumes: object, split: str | None) -> Mapping:
    """Select the volumes of one split."""
    if isinstance(volumes, dict) and volumes and all(key in _SPLITS for key in volumes):
        if split not in volumes:
            expected = repr(split) if split else "one of them as the split (--split)"
            raise ValueError(f"{file}: found the splits {list(volumes)}, expected {expected}")
        volumes = volumes[split]
    if not isinstance(volumes, dict) or not volumes:
        raise ValueError(
            f"{file}: found {short_repr(volumes)}, expected an object with volumes by name"
        )
    return volumes


def _read_volumes(
    file: Path,
    volumes: Mapping,
    read_volume: Callable[[object], Iterable[_Found]],
    slice_numbers: str | None,
) -> dict[VolumeName, list[VolumeLesion]]:
    problems: list[str] = []
    found: dict[VolumeName, list[_Found]] = {}
    for text, content in volumes.items():
        try:
            name = VolumeName.parse(text)
            if name in found:
                raise ValueError(f"found the volume {name} twice, expected it once")
        except ValueError as error:
            problems.append(str(error))
            continue
        found[name] = []
        try:
            found[name].extend(read_volume(content))
        except ValueError as error:
            problems.append(f"volume {name}: {error}")
    known = slice_numbers or _find_numbering(file, found)
    numbering = known or SLICE_NUMBERS[0]
    lesions: dict[VolumeName, list[VolumeLesion]] = {name: [] for name in found}
    for name, lesion in ((n, lesion) for n, group in found.items() for lesion in group):
        try:
            lesions[name].append(_checked(lesion, name, numbering))
        except ValueError as error:
            problems.append(f"volume {name}: {error}")
    raise_problems(file, problems)
    if known is None:
        raise ValueError(
            f"{file}: found ambiguous slice numbers ({' or '.join(_NUMBERING.values())}), "
            f"expected slice_numbers (--slice-numbers) {' or '.join(SLICE_NUMBERS)}"
        )
    _log_boxes_in_3d(file, found, numbering)
    return lesions


def _find_columns(file: Path, volumes: Mapping) -> str | None:
    """Detect which of :data:`BOX_COLUMNS` the 3-D boxes have; None if ambiguous."""
    contents = [content for content in volumes.values() if not isinstance(content, dict)]
    rows = [row for content in contents for row in _readable_rows(content)]
    fits = {name: sum(_is_box(row, name) for row in rows) for name in BOX_COLUMNS}
    columns = _only_fit(fits, len(rows))
    if rows and columns:
        logger.info(f"{file}: 3-D boxes with the columns {_COLUMN_NAMES[columns]}")
    return columns


def _readable_rows(content: object) -> list[tuple]:
    try:
        return list(_rows(content))
    except ValueError:  # reported when it is read
        return []


def _is_box(row: tuple, columns: str) -> bool:
    if not all(map(is_number, row)):
        return False
    x1, y1, x2, y2, z1, z2 = (row[place] for place in _PLACES[columns])
    return x1 < x2 and y1 < y2 and z1 <= z2


def _find_numbering(file: Path, found: Mapping[VolumeName, Iterable[_Found]]) -> str | None:
    """Detect which of :data:`SLICE_NUMBERS` the lesions have; None if ambiguous."""
    pairs = [(name, lesion) for name, lesions in found.items() for lesion in lesions]
    fits = {n: sum(_lies_within(*pair, n) for pair in pairs) for n in SLICE_NUMBERS}
    numbering = _only_fit(fits, len(pairs))
    if pairs and numbering:
        logger.info(f"{file}: slice numbers are {_NUMBERING[numbering]}")
    return numbering


def _only_fit(fits: Mapping[str, int], total: int) -> str | None:
    """The only interpretation that fits all; None if several do.

    If none does, some entries are invalid, and are reported for the one that fits best.
    """
    all_fit = [name for name, number in fits.items() if number == total]
    return None if total and len(all_fit) > 1 else max(fits, key=fits.get)


def _lies_within(name: VolumeName, lesion: _Found, numbering: str) -> bool:
    if not (is_number(lesion.first) and is_number(lesion.last)):
        return False
    first, last, _ = _slices(lesion)
    low, high = _limits(name, numbering)
    if lesion.covers:
        return first <= high and low <= last
    return low <= first and last <= high


def _limits(name: VolumeName, numbering: str) -> tuple[int, int]:
    """First and last slice number of a volume."""
    return (0, name.last - name.first) if numbering == "index" else (name.first, name.last)


def _slices(lesion: _Found) -> tuple[object, object, object]:
    """First, last and key slice, as integers for a box that covers slices."""
    if not lesion.covers:
        return lesion.first, lesion.last, lesion.key_slice
    first = math.ceil(lesion.first - 0.5 - _NOISE)
    return first, math.floor(lesion.last + 0.5 + _NOISE), None


def _lesions_of_json(lesions: object) -> Iterator[_Found]:
    if not isinstance(lesions, list):
        raise ValueError(f"found {short_repr(lesions)}, expected a list of lesions")
    for lesion in lesions:
        if not isinstance(lesion, dict) or not all(key in lesion for key in _KEYS):
            raise ValueError(
                f"found {short_repr(lesion)}, expected a lesion with {', '.join(_KEYS)}"
            )
        slices = lesion["slices"]
        if not isinstance(slices, list) or len(slices) != 2:
            raise ValueError(
                f"found the slices {short_repr(slices)}, expected the first and the last"
            )
        yield _Found(lesion["box"], *slices, lesion["key_slice"])


def _lesions_of_pickle(content: object, columns: str) -> Iterator[_Found]:
    """The lesions of either kind of volume, distinguished by the container."""
    if not isinstance(content, dict):
        for row in _rows(content):
            *box, first, last = (row[place] for place in _PLACES[columns])
            yield _Found(tuple(box), first, last, None, covers=True)
        return
    for key, rows in content.items():
        number = int(key) if isinstance(key, str) and are_digits(key) else key
        for *box, first, last in _rows(rows):
            # Check for numbers first: comparing deeply nested lists would fail.
            if not (is_number(first) and is_number(last) and first == last == number):
                raise ValueError(
                    f"found a box on slices {short_repr(first)} and {short_repr(last)} for the key "
                    f"{short_repr(key)}, expected the same number"
                )
            yield _Found(tuple(box), first, last, first)


def _rows(rows: object) -> Iterable[tuple]:
    """Boxes of six values, from an array or nested lists."""
    if not _is_list(rows):
        raise ValueError(f"found {short_repr(rows)}, expected rows of six numbers")
    for row in rows:
        if not _is_list(row) or len(row) != 6:
            raise ValueError(f"found the box {short_repr(row)}, expected six numbers")
        yield tuple(x.item() if isinstance(x, (np.generic, np.ndarray)) else x for x in row)


def _checked(lesion: _Found, name: VolumeName, numbering: str) -> VolumeLesion:
    """Check a lesion's numbers, and convert its slices to those on disk."""
    box = lesion.box
    if not are_numbers(box, 4):
        raise ValueError(f"found the box {short_repr(box)}, expected four finite numbers")
    x1, y1, x2, y2 = map(float, box)
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"found the box {short_repr(box)}, expected x1 < x2 and y1 < y2")
    given = [lesion.first, lesion.last] + [lesion.key_slice] * (lesion.key_slice is not None)
    if not all(is_number(z) and (lesion.covers or z == int(z)) for z in given):
        kind = "finite" if lesion.covers else "whole"
        raise ValueError(f"found the slices {short_repr(tuple(given))}, expected {kind} numbers")
    first, last, key_slice = _slices(lesion)
    low, high = _limits(name, numbering)
    if not (lesion.first <= lesion.last and _lies_within(name, lesion, numbering)):
        raise ValueError(
            f"found the slices {given[0]} to {given[1]}, expected a range within {low} to {high} "
            f"(slice_numbers {numbering!r}: {_NUMBERING[numbering]})"
        )
    if key_slice is not None and not first <= key_slice <= last:
        raise ValueError(f"found the key slice {key_slice}, expected one of {first} to {last}")
    offset = name.first - low
    first, last = max(int(first), low) + offset, min(int(last), high) + offset
    key_slice = None if key_slice is None else int(key_slice) + offset
    return VolumeLesion((x1, y1, x2, y2), first, last, key_slice)


def _log_boxes_in_3d(
    file: Path, found: Mapping[VolumeName, Iterable[_Found]], numbering: str
) -> None:
    """Log how many 3-D boxes end within a slice, and how many extend beyond their volumes."""
    num_partial = num_cut = 0
    for name, lesion in ((n, x) for n, lesions in found.items() for x in lesions if x.covers):
        low, high = _limits(name, numbering)
        first, last, _ = _slices(lesion)
        num_partial += any(abs(z - round(z)) > _NOISE for z in (lesion.first, lesion.last))
        num_cut += first < low or last > high
    if num_partial or num_cut:
        logger.info(
            f"{file}: {num_partial} 3-D boxes begin or end within a slice, which they include if "
            f"they cover half of it; {num_cut} extend beyond their volumes and are clipped"
        )


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)
