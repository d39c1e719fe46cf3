"""Annotations of fully annotated sub-volumes of DeepLesion: as published, and as our own JSON.

Cai et al. ("Lesion-harvester", TMI 2020) annotated them, and Bai et al. (2023) evaluate on them.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import read_json, written_whole
from .problems import raise_problems, short
from .restricted_pickle import load_pickle
from .volume_names import VolumeName

#: How slices are numbered in a file: as on disk, or from a volume's first slice on, which is 0.
SLICE_NUMBERS = ("disk", "index")
_SPLITS = ("train", "val", "test")
_FORMAT = "lesion_d2 volumes"
_KEYS = ("box", "slices", "key_slice")


class VolumeLesion(NamedTuple):
    """One lesion of a volume."""

    box: tuple[float, float, float, float]  # XYXY in pixels
    first: int  # slice numbers as on disk, both included
    last: int
    key_slice: int | None  # where the box was drawn; None of a lesion that has a box in 3-D


def read_annotations(
    file: str | os.PathLike, split: str | None = None, *, slice_numbers: str = "disk"
) -> dict[VolumeName, list[VolumeLesion]]:
    """Read the lesions of all volumes of a file.

    A pickle holds ``{volume: {slice: [[x1, y1, x2, y2, z, z], ...]}}``, boxes on key slices, one a
    lesion; or ``{volume: n x 6}``, boxes in 3-D of (x1, y1, z1, x2, y2, z2), first and last slice
    included. Either may stand in ``{"train" | "val" | "test": ...}``. It may hold NumPy's arrays in
    place of lists, and nothing else; see :func:`load_pickle`. JSON is as
    :func:`write_annotations` writes it.

    Args:
        file: with the ending ``.json``, ``.pkl`` or ``.pickle``.
        split: the part to read of a file that has several; one that has none is read whole.
        slice_numbers: "disk" where the slice numbers of a pickle are those on disk, "index" where
            they count from a volume's first slice, which is 0. Our JSON has those on disk.

    Returns:
        By volume, in the file's order; a volume without lesions has an empty list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file; the split is missing; or names, boxes or slice numbers are
            bad, of which all are told.
    """
    file = Path(file)
    if slice_numbers not in SLICE_NUMBERS:
        raise ValueError(
            f"{file}: found slice_numbers {slice_numbers!r}, expected one of {list(SLICE_NUMBERS)}"
        )
    if file.suffix == ".json":
        if slice_numbers != "disk":
            raise ValueError(
                f"{file}: found slice_numbers {slice_numbers!r} for JSON, expected 'disk', as "
                "write_annotations writes it"
            )
        volumes, read_volume = _read_json(file), _lesions_of_json
    elif file.suffix in (".pkl", ".pickle"):
        volumes, read_volume = load_pickle(file), _lesions_of_pickle
    else:
        raise ValueError(f"{file}: found the ending {file.suffix!r}, expected .json or .pkl")
    return _read_volumes(file, _select(file, volumes, split), read_volume, slice_numbers)


def write_annotations(
    file: str | os.PathLike, volumes: Mapping[VolumeName, Iterable[VolumeLesion]]
) -> None:
    """Write what :func:`read_annotations` returned as JSON, which is complete or absent.

    The layout stands in ``datasets/README.md``.
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
    with written_whole(file) as partial:
        partial.write_text(json.dumps(content))


def _read_json(file: Path) -> object:
    content = read_json(file, "annotations of volumes")
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f'{file}: found no "format": "{_FORMAT}", expected it')
    return content.get("volumes")


def _select(file: Path, volumes: object, split: str | None) -> Mapping:
    """The volumes of one split."""
    if isinstance(volumes, dict) and volumes and all(key in _SPLITS for key in volumes):
        if split not in volumes:
            expected = repr(split) if split else "one of them as the split (--split)"
            raise ValueError(f"{file}: found the splits {list(volumes)}, expected {expected}")
        volumes = volumes[split]
    if not isinstance(volumes, dict) or not volumes:
        raise ValueError(f"{file}: found {short(volumes)}, expected volumes by their names")
    return volumes


def _read_volumes(file: Path, volumes: Mapping, read_volume, slice_numbers: str) -> dict:
    found, problems = {}, []
    for text, content in volumes.items():
        try:
            name = VolumeName.parse(text)
            if name in found:
                raise ValueError(f"found the volume {name} twice, expected it once")
        except ValueError as error:
            problems.append(str(error))
            continue
        found[name] = lesions = []
        try:
            for lesion in read_volume(content):
                try:
                    lesions.append(_checked(lesion, name, slice_numbers))
                except ValueError as error:
                    problems.append(f"volume {name}: {error}")
        except ValueError as error:
            problems.append(f"volume {name}: {error}")
    raise_problems(file, problems)
    return found


def _lesions_of_json(lesions: object) -> Iterable[tuple]:
    """Box, first, last and key slice of every lesion, unchecked."""
    if not isinstance(lesions, list):
        raise ValueError(f"found {short(lesions)}, expected a list of lesions")
    for lesion in lesions:
        if not isinstance(lesion, dict) or not all(key in lesion for key in _KEYS):
            raise ValueError(f"found {short(lesion)}, expected a lesion with {', '.join(_KEYS)}")
        slices = lesion["slices"]
        if not isinstance(slices, list) or len(slices) != 2:
            raise ValueError(f"found the slices {short(slices)}, expected the first and the last")
        yield lesion["box"], *slices, lesion["key_slice"]


def _lesions_of_pickle(content: object) -> Iterable[tuple]:
    """As of JSON; of either kind of volume, which the container tells."""
    if not isinstance(content, dict):
        for x1, y1, z1, x2, y2, z2 in _rows(content):
            yield (x1, y1, x2, y2), z1, z2, None
        return
    for key, rows in content.items():
        number = int(key) if isinstance(key, str) and key.isdecimal() else key
        for *box, first, last in _rows(rows):
            # Numbers first: of deeply nested lists even the comparison would fail.
            if not (_is_number(first) and _is_number(last) and first == last == number):
                raise ValueError(
                    f"found a box on slices {short(first)} and {short(last)} below slice "
                    f"{short(key)}, expected the same number"
                )
            yield tuple(box), first, last, first


def _rows(rows: object) -> Iterable[tuple]:
    """Boxes of six values, from an array or nested lists."""
    if not _is_list(rows):
        raise ValueError(f"found {short(rows)}, expected rows of six numbers")
    for row in rows:
        if not _is_list(row) or len(row) != 6:
            raise ValueError(f"found the box {short(row)}, expected six numbers")
        yield tuple(x.item() if isinstance(x, (np.generic, np.ndarray)) else x for x in row)


def _checked(lesion: tuple, name: VolumeName, slice_numbers: str) -> VolumeLesion:
    """A lesion with checked numbers, its slices as on disk."""
    box, first, last, key_slice = lesion
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"found the box {short(box)}, expected four finite numbers")
    x1, y1, x2, y2 = map(float, box)
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"found the box {short(box)}, expected x1 < x2 and y1 < y2")
    slices = (first, last) if key_slice is None else (first, last, key_slice)
    if not all(_is_number(z) and z == int(z) for z in slices):
        raise ValueError(f"found the slices {short(slices)}, expected whole numbers")
    offset, low, high = 0, name.first, name.last
    if slice_numbers == "index":
        offset, low, high = name.first, 0, name.last - name.first
    if not low <= first <= last <= high:
        raise ValueError(
            f"found the slices {first} to {last}, expected a range within {low} to {high} "
            f"({_numbering(slice_numbers)})"
        )
    if key_slice is not None and not first <= key_slice <= last:
        raise ValueError(f"found the key slice {key_slice}, expected one of {first} to {last}")
    key_slice = None if key_slice is None else int(key_slice) + offset
    return VolumeLesion((x1, y1, x2, y2), int(first) + offset, int(last) + offset, key_slice)


def _numbering(slice_numbers: str) -> str:
    if slice_numbers == "disk":
        return "slice_numbers is 'disk'; 'index' counts from the volume's first slice, which is 0"
    return "slice_numbers is 'index', from the volume's first slice on; 'disk' takes those on disk"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)
