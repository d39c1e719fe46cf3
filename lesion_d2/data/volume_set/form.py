"""``volume_set.json``: a data set of volumes with lesions, but for their voxels."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np

from ...boxes import EXPECTED_BOX, bad_boxes
from ...files import read_json, written_whole
from ...rle import check_mask
from ...scans.limits import check_size
from ...scans.names import safe_name
from ...slice_geometry import EXPECTED_SPACING, is_spacing
from ..problems import raise_problems, short
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
#: What ``schema`` and ``version`` of the file are.
SCHEMA, VERSION = "lesion_d2/volume_set", 1

_MAX_NUMBER = 1e9
_MAX_TEXT = 1000
_IMAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


def write_volume_set(root: str | os.PathLike, volume_set: VolumeSet) -> None:
    """Write ``<root>/volume_set.json``, whole or not at all; the voxels have to be there.

    Raises:
        ValueError: what :func:`read_volume_set` would refuse; the file is left as it was.
    """
    file = Path(root) / FILE_NAME
    head = {key: getattr(volume_set, key) for key in ("classes", "source", "splits", "folds")}
    head = _dump(file, {"schema": SCHEMA, "version": VERSION, **head})
    volumes = [_dump(file, _volume_content(volume)) for volume in volume_set.volumes]
    text = f'{head[:-1]},\n"volumes": [\n' + ",\n".join(volumes) + "\n]}\n"
    _parse(file, json.loads(text))
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as partial:
        partial.write_text(text, encoding="utf-8")


def read_volume_set(root: str | os.PathLike) -> VolumeSet:
    """Read ``<root>/volume_set.json``.

    Whether the files of its voxels are there is not looked at.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, of another version, or something in it is not as it should be:
            a line for each, with the volume, the lesion and the key.
    """
    file = Path(root) / FILE_NAME
    return _parse(file, read_json(file, "a data set of volumes"))


def _dump(file: Path, content: object) -> str:
    try:
        return json.dumps(content, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: found what JSON cannot hold ({error})") from None


def _plain(value: object) -> object:
    """NumPy's numbers and arrays and any mapping as JSON's."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} {short(value)}")


def _volume_content(volume: Volume) -> dict:
    content = {key.name: getattr(volume, key.name) for key in fields(Volume)}
    return {**content, "lesions": [_lesion_content(lesion) for lesion in volume.lesions]}


def _lesion_content(lesion: Lesion) -> dict:
    """Without what is as it is by default; numbers of slices are strings in JSON."""
    content = {}
    for key in fields(Lesion):
        value = getattr(lesion, key.name)
        if not (value is None or value is False or (key.name == "attributes" and not value)):
            by_slice = key.name in ("boxes", "masks", "recist") and isinstance(value, Mapping)
            content[key.name] = {str(n): v for n, v in value.items()} if by_slice else value
    return content


def _parse(file: Path, content: object) -> VolumeSet:
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"{file}: found no data set of volumes, expected the schema {SCHEMA!r}")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{file}: found version {short(content.get('version'))} of a data set of volumes, "
            f"expected {VERSION}"
        )
    return _Parser(file).parse(content)


class _Parser:
    """What is wrong in a file is collected, and told at once."""

    def __init__(self, file: Path):
        self.file = file
        self.problems: list[str] = []

    def parse(self, content: dict) -> VolumeSet:
        content = {"source": {}, "splits": {}, "folds": [], **content}
        if not self._check_fields("", content, _SET_FIELDS):
            raise_problems(self.file, self.problems)
        classes = tuple(content["classes"])
        volumes = [self._volume(n, entry, classes) for n, entry in enumerate(content["volumes"])]
        found = [volume for volume in volumes if volume is not None]
        self._check_unique("volume names", (volume.name.lower() for volume in found))
        self._check_unique("image files", (volume.image.lower() for volume in found))
        ids = (lesion.id for volume in found for lesion in volume.lesions)
        self._check_unique("lesion ids", ids)
        if not self.problems:  # else patients may be missing
            patients = {volume.patient for volume in found}
            self._check_splits("splits", content["splits"], patients)
            for number, fold in enumerate(content["folds"]):
                self._check_splits(f"fold {number}", fold, patients)
        raise_problems(self.file, self.problems)
        return VolumeSet(
            classes,
            tuple(found),
            content["source"],
            _tuples(content["splits"]),
            tuple(map(_tuples, content["folds"])),
        )

    def _check_fields(self, where: str, entry: object, checks: Mapping) -> bool:
        """Whether an entry has the keys it should have, and each holds what it should."""
        before = len(self.problems)
        if not isinstance(entry, dict):
            self.problems.append(f"{where}found {short(entry)}, expected an object with keys")
            return False
        for key in sorted(entry.keys() - checks.keys()):
            self.problems.append(f"{where}found the key {short(key)}, expected {list(checks)}")
        for key, (is_right, expected) in checks.items():
            if key not in entry:
                self.problems.append(f"{where}found no {key!r}, expected {expected}")
            elif not is_right(entry[key]):
                found = short(entry[key])
                self.problems.append(f"{where}{key}: found {found}, expected {expected}")
        return len(self.problems) == before

    def _check_unique(self, what: str, values: Iterator) -> None:
        for value, count in Counter(values).items():
            if count > 1:
                self.problems.append(f"{what}: found {short(value)} {count} times, expected once")

    def _check_splits(self, where: str, splits: dict, patients: set[str]) -> None:
        split_of = {}
        for split, names in splits.items():
            for name in names:
                if name not in patients:
                    self.problems.append(
                        f"{where}, {split}: found patient {short(name)}, expected one of a volume"
                    )
                elif name in split_of:
                    self.problems.append(
                        f"{where}: found patient {short(name)} in {split_of[name]} and in {split}, "
                        "expected it once"
                    )
                split_of[name] = split

    def _volume(self, number: int, entry: object, classes: tuple[str, ...]) -> Volume | None:
        name = entry.get("name") if isinstance(entry, dict) else None
        where = f"volume {short(name) if isinstance(name, str) else number}: "
        if isinstance(entry, dict):
            entry = {"spacing": None, "origin": None, "direction": None, "lesions": [], **entry}
        if not self._check_fields(where, entry, _VOLUME_FIELDS):
            return None
        try:
            check_size("shape", tuple(entry["shape"]))
        except ValueError as error:
            self.problems.append(where + str(error))
            return None
        known = [key for key in ("origin", "direction") if entry[key] is not None]
        if known and (len(known) == 1 or entry["spacing"] is None):
            self.problems.append(
                f"{where}found {' and '.join(known)}, expected spacing, origin and direction or "
                "neither origin nor direction"
            )
        lesions = [
            self._lesion(where[:-2], number, lesion, entry["shape"], classes)
            for number, lesion in enumerate(entry["lesions"])
        ]
        entry = {key: _tuple(value) for key, value in entry.items()}
        return Volume(**{**entry, "lesions": tuple(le for le in lesions if le is not None)})

    def _lesion(
        self, where: str, number: int, entry: object, shape: list[int], classes: tuple[str, ...]
    ) -> Lesion | None:
        found = entry.get("id") if isinstance(entry, dict) else None
        where = f"{where}, lesion {short(found) if _is_int(found) else f'at {number}'}: "
        if not self._check_fields(where, _with_defaults(entry), _LESION_FIELDS):
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


def _misplaced(lesion: dict, shape: list[int]) -> Iterator[tuple[str, str, str]]:
    """What of a lesion is no part of its volume or of its box: key, found, expected."""
    depth, height, width = shape
    x1, y1, z1, x2, y2, z2 = lesion["box"]
    if bad_boxes(np.array([lesion["box"]], float)).size:
        yield "box", short(lesion["box"]), EXPECTED_BOX
        return
    if z1 != int(z1) or z2 != int(z2) or not 0 <= z1 <= z2 < depth:
        yield "box", f"slices {z1:g} to {z2:g}", f"whole numbers from 0 to {depth - 1}"
        return
    if _is_outside((x1, y1, x2, y2), height, width):
        yield "box", short(lesion["box"]), f"a part of the slice of {width} x {height} pixels"
    boxes = lesion["boxes"]
    for n, box in (boxes or {}).items():
        if bad_boxes(np.array([box], float)).size:
            yield f"boxes, slice {n}", short(box), EXPECTED_BOX
        elif _is_outside(box, height, width):
            expected = f"a part of the slice of {width} x {height} pixels"
            yield f"boxes, slice {n}", short(box), expected
        elif min(box[0] - x1, box[1] - y1, x2 - box[2], y2 - box[3]) < -1e-3:
            yield f"boxes, slice {n}", short(box), f"a part of box {short(lesion['box'])}"
    numbers = sorted(map(int, boxes)) if boxes is not None else range(int(z1), int(z2) + 1)
    if boxes is not None and (len(numbers) == 0 or (numbers[0], numbers[-1]) != (z1, z2)):
        ends = f"{numbers[0]} to {numbers[-1]}" if numbers else "none"
        yield "boxes", f"slices {ends}", f"those of box, {z1:g} to {z2:g}"
    for key in ("masks", "recist"):
        for n in (lesion[key] or {}).keys() - set(map(str, numbers)):
            yield key, f"slice {n}", "slices that show the lesion"
    for n, counts in (lesion["masks"] or {}).items():
        fault = _mask_fault(counts, height, width)
        if fault:
            yield f"masks, slice {n}", *fault


def _is_outside(box, height: int, width: int) -> bool:
    x1, y1, x2, y2 = box
    return x2 <= -0.5 or y2 <= -0.5 or x1 >= width - 0.5 or y1 >= height - 0.5


def _mask_fault(counts: str, height: int, width: int) -> tuple[str, str] | None:
    """What is wrong with the counts of an RLE: found, expected."""
    try:
        num_runs, area = check_mask({"size": [height, width], "counts": counts})
    except ValueError as error:
        found, _, expected = str(error).removeprefix("found ").partition(", expected ")
        return found, expected
    return None if area else (f"no pixel in {num_runs} runs", "a pixel or more")


def _is_int(value: object) -> bool:
    return type(value) is int and abs(value) <= _MAX_NUMBER


def _is_number(value: object) -> bool:  # NaN compares as False
    return _is_int(value) or (type(value) is float and abs(value) <= _MAX_NUMBER)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT and value.isprintable()


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value == safe_name(value)


def _is_image(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT and bool(_IMAGE.fullmatch(value))


def _is_direction(value: object) -> bool:
    if not _numbers(9)(value):
        return False
    matrix = np.array(value, float).reshape(3, 3)
    lengths = np.linalg.norm(matrix, axis=0)
    return bool(np.all(np.abs(lengths - 1) < 1e-3) and abs(np.linalg.det(matrix)) > 1e-3)


def _is_spacings(value: object) -> bool:
    return _numbers(3)(value) and all(map(is_spacing, value))


def _is_diameters(value: object) -> bool:
    return _numbers(2)(value) and value[0] >= value[1] > 0


def _is_attributes(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_text(key) and (_is_number(entry) or _is_text(entry) or entry == "")
        for key, entry in value.items()
    )


def _is_splits(value: object) -> bool:
    return isinstance(value, dict) and all(
        key in SPLITS and isinstance(names, list) and all(map(_is_text, names))
        for key, names in value.items()
    )


def _is_classes(value: object) -> bool:
    are_texts = isinstance(value, list) and len(value) > 0 and all(map(_is_text, value))
    return are_texts and len(set(value)) == len(value)


def _numbers(count: int) -> Callable[[object], bool]:
    def is_right(value: object) -> bool:
        return isinstance(value, list) and len(value) == count and all(map(_is_number, value))

    return is_right


def _by_slice(is_right: Callable[[object], bool]) -> Callable[[object], bool]:
    def are_right(value: object) -> bool:
        return isinstance(value, dict) and all(
            re.fullmatch("0|[1-9][0-9]{0,8}", number) is not None and is_right(entry)
            for number, entry in value.items()
        )

    return _optional(are_right)


def _optional(is_right: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or is_right(value)


def _with_defaults(entry: object) -> object:
    return {**_LESION_DEFAULTS, **entry} if isinstance(entry, dict) else entry


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _tuples(splits: Mapping) -> dict[str, tuple[str, ...]]:
    return {split: tuple(names) for split, names in splits.items()}


_LESION_DEFAULTS = {
    "boxes": None,
    "masks": None,
    "recist": None,
    "diameters_mm": None,
    "ignore": False,
    "attributes": {},
}
# Of each key: what its value has to be, for the eye of a program and for that of a reader.
_SET_FIELDS = {
    "schema": (lambda value: True, "a name"),
    "version": (lambda value: True, "a number"),
    "classes": (_is_classes, "a list of one or more names, no two alike"),
    "source": (lambda value: isinstance(value, dict), "an object"),
    "splits": (_is_splits, f"patients of {', '.join(SPLITS)}"),
    "folds": (
        lambda value: isinstance(value, list) and all(map(_is_splits, value)),
        f"a list of folds, each with the patients of {', '.join(SPLITS)}",
    ),
    "volumes": (lambda value: isinstance(value, list), "a list"),
}
_VOLUME_FIELDS = {
    "name": (_is_name, "up to 100 letters, digits, '.', '_' and '-', the first and last no sign"),
    "patient": (_is_text, "printable text"),
    "image": (_is_image, "a path in the data set's folder, of letters, digits, '.', '_' and '-'"),
    "shape": (
        lambda value: _numbers(3)(value) and all(map(_is_int, value)),
        "slices, height and width in whole numbers",
    ),
    "spacing": (_optional(_is_spacings), f"null, or for x, y and z {EXPECTED_SPACING}"),
    "origin": (_optional(_numbers(3)), "null or 3 numbers of mm"),
    "direction": (_optional(_is_direction), "null or 9 numbers whose columns are unit vectors"),
    "lesions": (lambda value: isinstance(value, list), "a list"),
}
_LESION_FIELDS = {
    "id": (lambda value: _is_int(value) and value > 0, "a whole number from 1"),
    "category": (lambda value: _is_int(value) and value >= 0, "a whole number from 0"),
    "box": (_numbers(6), "6 finite numbers"),
    "boxes": (_by_slice(_numbers(4)), "null, or 4 finite numbers a slice"),
    "masks": (_by_slice(lambda value: isinstance(value, str)), "null, or an RLE a slice"),
    "recist": (_by_slice(_numbers(8)), "null, or 8 finite numbers a slice"),
    "diameters_mm": (_optional(_is_diameters), "null, or the long and the short one in mm"),
    "ignore": (lambda value: isinstance(value, bool), "true or false"),
    "attributes": (_is_attributes, "names with numbers or texts"),
}
