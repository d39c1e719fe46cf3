"""``volume_set.json``: volumes with lesions, without the voxels."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from ...scans.limits import check_size
from ...structures.rle import check_mask
from ...utils.files import atomic_write, json_text, parse_json, read_json
from ...utils.values import MAX_LESION_SLICES, field_problems
from ..deeplesion.csv_rows import are_near
from ..formats.problems import raise_problems, short_repr
from .fields import (
    LESION_DEFAULTS,
    LESION_FIELDS,
    SET_FIELDS,
    VOLUME_DEFAULTS,
    VOLUME_FIELDS,
    is_int,
)
from .records import SPLITS, Lesion, Volume, VolumeSet, lesion_of_mask

__all__ = [
    "SPLITS",
    "Lesion",
    "Volume",
    "VolumeSet",
    "lesion_of_mask",
    "read_volume_set",
    "write_volume_set",
]

#: The file's name in the folder of the data set.
FILE_NAME = "volume_set.json"
#: Values of ``schema`` and ``version`` in the file.
SCHEMA, VERSION = "lesion_d2/volume_set", 1

_EXPECTED = "a volume set"
_EXPECTED_BOX = "x1 < x2 and y1 < y2, for volumes also z1 <= z2"
_END = b"\n]}\n"


def write_volume_set(root: str | os.PathLike, volume_set: VolumeSet) -> None:
    """Write ``<root>/volume_set.json`` atomically; the voxel files must exist.

    Raises:
        ValueError: the content is one that :func:`read_volume_set` refuses; the file is not
            changed.
    """
    file = Path(root) / FILE_NAME
    head = {key: getattr(volume_set, key) for key in ("classes", "source", "splits", "folds")}
    head = json_text({"schema": SCHEMA, "version": VERSION, **head}, file, default=_plain)
    volumes = [
        json_text(_volume_content(volume), file, default=_plain) for volume in volume_set.volumes
    ]
    text = f'{head[:-1]},\n"volumes": [\n' + ",\n".join(volumes) + _END.decode()
    _parse(file, json.loads(text))
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as partial:
        partial.write_text(text, encoding="utf-8")


def read_volume_set(root: str | os.PathLike) -> VolumeSet:
    """Read ``<root>/volume_set.json``.

    The voxel files are not checked.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not JSON, of another version, or has invalid entries, which are listed one
            per line with the volume, the lesion and the key.
    """
    file = Path(root) / FILE_NAME
    return _parse(file, read_json(file, _EXPECTED, allow_nan=True))


def read_head(root: str | os.PathLike) -> VolumeSet:
    """Read ``<root>/volume_set.json`` without its volumes: classes, source, splits and folds.

    For a file by :func:`write_volume_set`, only the first line is read, and the end is checked to
    be present; so problems of volumes are not found here.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_volume_set`.
    """
    file = Path(root) / FILE_NAME
    content = _first_line(file)
    if content is None:
        content = read_json(file, _EXPECTED, allow_nan=True)
    _check_version(file, content)
    parser = _Parser(file)
    return parser.parse_head({**content, "volumes": []})


def _first_line(file: Path) -> object:
    """The part before the volumes; None if the file has another form or is incomplete."""
    try:
        with open(file, "rb") as opened:
            head = opened.readline()
            opened.seek(max(0, os.path.getsize(file) - len(_END)))
            is_whole = opened.read() == _END and head.endswith(b",\n")
        return parse_json(head[:-2] + b"}", file, allow_nan=True) if is_whole else None
    except (OSError, ValueError):
        return None  # reading the whole file reports the problem


def _plain(value: object) -> object:
    """Convert NumPy's numbers and arrays, and mappings, to JSON types."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} {short_repr(value)}")


def _volume_content(volume: Volume) -> dict:
    content = {key.name: getattr(volume, key.name) for key in fields(Volume)}
    return {**content, "lesions": [_lesion_content(lesion) for lesion in volume.lesions]}


def _lesion_content(lesion: Lesion) -> dict:
    """Omit default values; slice numbers are strings in JSON."""
    content = {}
    for key in fields(Lesion):
        value = getattr(lesion, key.name)
        if not (value is None or value is False or (key.name == "attributes" and not value)):
            by_slice = key.name in ("boxes", "masks", "recist") and isinstance(value, Mapping)
            content[key.name] = {str(n): v for n, v in value.items()} if by_slice else value
    return content


def _parse(file: Path, content: object) -> VolumeSet:
    _check_version(file, content)
    return _Parser(file).parse(content)


def _check_version(file: Path, content: object) -> None:
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"{file}: found no volume set, expected the schema {SCHEMA!r}")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{file}: found version {short_repr(content.get('version'))} of a volume set, "
            f"expected {VERSION}"
        )


class _Parser:
    """Parses a file, and collects all its problems."""

    def __init__(self, file: Path):
        self.file = file
        self.problems: list[str] = []

    def parse(self, content: dict) -> VolumeSet:
        """Parse the whole file."""
        head = self.parse_head(content)
        volumes = [
            self._volume(number, entry, head.classes)
            for number, entry in enumerate(content["volumes"])
        ]
        found = tuple(volume for volume in volumes if volume is not None)
        self._check_unique("volume names", (volume.name.lower() for volume in found))
        self._check_unique("image files", (volume.image.lower() for volume in found))
        ids = (lesion.id for volume in found for lesion in volume.lesions)
        self._check_unique("lesion ids", ids)
        if not self.problems:  # otherwise patients may be missing
            patients = {volume.patient for volume in found}
            for where, splits in _named_splits(head):
                self._check_patients(where, splits, patients)
        raise_problems(self.file, self.problems)
        return replace(head, volumes=found)

    def parse_head(self, content: dict) -> VolumeSet:
        """Parse everything except the volumes."""
        content = {"source": {}, "splits": {}, "folds": [], **content}
        if self._check_fields("", content, SET_FIELDS):
            head = VolumeSet(
                tuple(content["classes"]),
                (),
                content["source"],
                _tuples(content["splits"]),
                tuple(map(_tuples, content["folds"])),
            )
            for where, splits in _named_splits(head):
                self._check_once(where, splits)
        raise_problems(self.file, self.problems)
        return head

    def _check_fields(self, where: str, entry: object, checks: Mapping) -> bool:
        """Whether an entry has the expected keys with valid values."""
        before = len(self.problems)
        for key in sorted(entry.keys() - checks.keys()) if isinstance(entry, dict) else ():
            self.problems.append(f"{where}found the key {short_repr(key)}, expected {list(checks)}")
        self.problems += [where + text for text in field_problems(entry, checks)]
        return len(self.problems) == before

    def _check_unique(self, what: str, values: Iterator) -> None:
        for value, count in Counter(values).items():
            if count > 1:
                self.problems.append(
                    f"{what}: found {short_repr(value)} {count} times, expected once"
                )

    def _check_once(self, where: str, splits: Mapping) -> None:
        """Check that no patient is in two splits, or twice in one."""
        split_of = {}
        for name, split in ((name, split) for split, names in splits.items() for name in names):
            if name in split_of:
                self.problems.append(
                    f"{where}: found patient {short_repr(name)} in {split_of[name]} and in "
                    f"{split}, expected it once"
                )
            split_of[name] = split

    def _check_patients(self, where: str, splits: Mapping, patients: set[str]) -> None:
        for split, names in splits.items():
            for name in names:
                if name not in patients:
                    self.problems.append(
                        f"{where}, {split}: found patient {short_repr(name)}, expected one "
                        "with a volume"
                    )

    def _volume(self, number: int, entry: object, classes: tuple[str, ...]) -> Volume | None:
        name = entry.get("name") if isinstance(entry, dict) else None
        where = f"volume {short_repr(name) if isinstance(name, str) else number}: "
        if isinstance(entry, dict):
            entry = {**VOLUME_DEFAULTS, **entry}
        if not self._check_fields(where, entry, VOLUME_FIELDS):
            return None
        try:
            check_size("shape", tuple(entry["shape"]))
        except ValueError as error:
            self.problems.append(where + str(error))
            return None
        known = [key for key in ("origin", "direction") if entry[key] is not None]
        if known and (len(known) == 1 or entry["spacing"] is None):
            self.problems.append(
                f"{where}found {' and '.join(known)}, expected origin and direction together, "
                "with a spacing, or neither of them"
            )
        lesions = [
            self._lesion(where[:-2], number, lesion, entry["shape"], classes)
            for number, lesion in enumerate(entry["lesions"])
        ]
        num_slices = sum(map(_num_slices, filter(None, lesions)))
        if num_slices > MAX_LESION_SLICES:
            self.problems.append(
                f"{where}found lesions on {num_slices} slices in total, expected at most "
                f"{MAX_LESION_SLICES}"
            )
        entry = {key: _tuple(value) for key, value in entry.items()}
        return Volume(**{**entry, "lesions": tuple(le for le in lesions if le is not None)})

    def _lesion(
        self, where: str, number: int, entry: object, shape: list[int], classes: tuple[str, ...]
    ) -> Lesion | None:
        found = entry.get("id") if isinstance(entry, dict) else None
        where = f"{where}, lesion {short_repr(found) if is_int(found) else f'at {number}'}: "
        if not self._check_fields(where, _with_defaults(entry), LESION_FIELDS):
            return None
        before = len(self.problems)
        if entry["category"] >= len(classes):
            self.problems.append(
                f"{where}category: found {entry['category']}, expected less than {len(classes)}, "
                "the number of classes"
            )
        for key, found, expected in _misplaced(_with_defaults(entry), shape):
            self.problems.append(f"{where}{key}: found {found}, expected {expected}")
        if len(self.problems) > before:
            return None
        entry = dict(entry)
        for key in ("boxes", "masks", "recist"):
            if entry.get(key) is not None:
                entry[key] = {int(n): _tuple(value) for n, value in entry[key].items()}
        return Lesion(**{key: _tuple(value) for key, value in entry.items()})


def _named_splits(head: VolumeSet) -> Iterator[tuple[str, Mapping]]:
    """The splits, and those of each fold, with their names for messages."""
    yield "splits", head.splits
    for number, fold in enumerate(head.folds):
        yield f"fold {number}", fold


def _misplaced(lesion: dict, shape: list[int]) -> Iterator[tuple[str, str, str]]:
    """Fields of a lesion outside its volume or its box: key, found, expected."""
    depth, height, width = shape
    x1, y1, z1, x2, y2, z2 = lesion["box"]
    if x2 <= x1 or y2 <= y1 or z2 < z1:
        yield "box", short_repr(lesion["box"]), _EXPECTED_BOX
        return
    if z1 != int(z1) or z2 != int(z2) or not 0 <= z1 <= z2 < depth:
        yield "box", f"slices {z1:g} to {z2:g}", f"whole numbers from 0 to {depth - 1}"
        return
    if _is_outside((x1, y1, x2, y2), height, width):
        yield "box", short_repr(lesion["box"]), f"a box on the slice of {width} x {height} pixels"
    boxes = lesion["boxes"]
    for n, box in (boxes or {}).items():
        if box[2] <= box[0] or box[3] <= box[1]:
            yield f"boxes, slice {n}", short_repr(box), _EXPECTED_BOX
        elif _is_outside(box, height, width):
            expected = f"a box on the slice of {width} x {height} pixels"
            yield f"boxes, slice {n}", short_repr(box), expected
        elif min(box[0] - x1, box[1] - y1, x2 - box[2], y2 - box[3]) < -1e-3:
            yield f"boxes, slice {n}", short_repr(box), f"a box within {short_repr(lesion['box'])}"
    numbers = sorted(map(int, boxes)) if boxes is not None else range(int(z1), int(z2) + 1)
    if boxes is not None and (len(numbers) == 0 or (numbers[0], numbers[-1]) != (z1, z2)):
        ends = f"{numbers[0]} to {numbers[-1]}" if numbers else "none"
        yield "boxes", f"slices {ends}", f"those of box, {z1:g} to {z2:g}"
    shown = numbers if boxes is None else set(numbers)
    for key in ("masks", "recist"):
        for n in lesion[key] or ():
            if int(n) not in shown:
                yield key, f"slice {n}", "slices of the lesion"
    for n, ends in (lesion["recist"] or {}).items():
        if _is_far(ends, height, width):
            expected = f"end points inside the slice of {width} x {height} pixels"
            yield f"recist, slice {n}", short_repr(ends), expected
    for n, counts in (lesion["masks"] or {}).items():
        fault = _mask_fault(counts, height, width)
        if fault:
            yield f"masks, slice {n}", *fault


def _num_slices(lesion: Lesion) -> int:
    return int(lesion.box[5] - lesion.box[2]) + 1 if lesion.boxes is None else len(lesion.boxes)


def _is_outside(box, height: int, width: int) -> bool:
    x1, y1, x2, y2 = box
    return x2 <= -0.5 or y2 <= -0.5 or x1 >= width - 0.5 or y1 >= height - 0.5


def _is_far(ends: list[float], height: int, width: int) -> bool:
    """Whether end points are outside the slice, or too far apart for masks."""
    points = np.array(ends, float).reshape(1, 4, 2)
    is_wide = np.ptp(points, axis=1).max() > max(height, width)
    return bool(is_wide or not are_near(points, np.array([[width, height]]))[0])


def _mask_fault(counts: str, height: int, width: int) -> tuple[str, str] | None:
    """The error in the counts of an RLE, if any: found, expected."""
    try:
        num_runs, area = check_mask({"size": [height, width], "counts": counts})
    except ValueError as error:
        found, _, expected = str(error).removeprefix("found ").partition(", expected ")
        return found, expected
    return None if area else (f"no pixel in {num_runs} runs", "at least one pixel")


def _with_defaults(entry: object) -> object:
    return {**LESION_DEFAULTS, **entry} if isinstance(entry, dict) else entry


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _tuples(splits: Mapping) -> dict[str, tuple[str, ...]]:
    return {split: tuple(names) for split, names in splits.items()}
