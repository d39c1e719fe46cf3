"""Grouping of images into volumes, and names of volumes."""

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...data.coco.loading import compile_pattern
from ...data.coco.records import CocoImage
from ...data.formats.problems import short_repr
from ...scans.names import safe_name, unique_names
from ...scans.volume_file import stem_of
from ...utils.values import are_digits

_MAX_NAME = 90  # without an appended number


@dataclass(frozen=True)
class Group:
    """The images of one volume.

    Args:
        volume: the source's name of the volume, or the file's.
        name: name of this part of it, if slices are missing between parts.
        split: split of the JSON file, or None.
        json_file, image_root: the JSON file, and the folder of its images.
        images: the images, by ascending slice number.
        numbers: their slice numbers.
        kind: "stored" slices of a file, "pictures" of a volume, or a single "picture".
    """

    volume: str
    name: str
    split: str | None
    json_file: str
    image_root: str
    images: tuple[CocoImage, ...]
    numbers: tuple[int, ...]
    kind: str

    @property
    def is_stored(self) -> bool:
        """Whether they are slices of one file."""
        return self.kind == "stored"

    @property
    def is_file(self) -> bool:
        """Whether its name is a file name."""
        return self.kind != "pictures"

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of the files with the images, relative to ``image_root``."""
        return tuple(dict.fromkeys(image.file_name for image in self.images))

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of these files."""
        return tuple(os.path.join(self.image_root, name) for name in self.file_names)


def group_images(
    split: str | None,
    json_file: str,
    image_root: str,
    images: Iterable[CocoImage],
    group_by: str | None,
) -> list[Group]:
    """Group a file's images into volumes.

    Args:
        split, json_file, image_root: see :class:`Group`.
        images: images of the file.
        group_by: see :func:`~lesion_d2.importers.coco.list_coco`.

    Raises:
        ValueError: ``group_by`` is invalid, or two images are the same slice.
    """
    pattern = None if group_by is None else compile_pattern("group_by", group_by)
    if pattern is not None and pattern.groups < 2:
        raise ValueError(
            f"group_by: found {short_repr(group_by)}, expected two groups: the volume's "
            "name and the number of the slice"
        )
    found: dict[tuple, dict[int, CocoImage]] = {}
    for image in images:
        kind, name, number = _place(image, pattern, json_file)
        slices = found.setdefault((kind, name), {})
        if number in slices:
            raise ValueError(
                f"{json_file}: image {image.id}: found slice {number} of {short_repr(name)} as "
                f"in image {slices[number].id}, expected each slice once"
            )
        slices[number] = image
    groups = []
    for (kind, name), slices in found.items():
        numbers = sorted(slices)
        runs = [numbers] if kind == "stored" else _runs(numbers)
        for run in runs:
            chosen = tuple(slices[n] for n in run)
            part = name if len(runs) == 1 else f"{name}_{run[0]}-{run[-1]}"
            groups.append(Group(name, part, split, json_file, image_root, chosen, tuple(run), kind))
    return groups


def _place(image: CocoImage, pattern: re.Pattern | None, json_file: str) -> tuple[str, str, int]:
    """The kind and name of an image's volume, and its slice number there."""
    if image.stored_slice is not None:
        return "stored", image.file_name, image.stored_slice
    if image.volume is not None:
        return "pictures", image.volume, image.slice
    match = pattern and pattern.search(image.file_name)
    if match:
        if not (match[1] and match[2] and are_digits(match[2])):
            raise ValueError(
                f"{json_file}: image {image.id}: found the volume {short_repr(match[1])} "
                f"and the slice {short_repr(match[2])} by group_by, expected a name and a number"
            )
        return "pictures", match[1], int(match[2])
    return "picture", image.file_name, 0


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Runs of consecutive numbers."""
    groups = itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    return [[number for _, number in group] for _, group in groups]


def case_names(groups: Sequence[Group]) -> list[str]:
    """Unique safe names of groups."""
    common = _common_folder(groups)
    return unique_names(_safe_name(group, group.name, common) for group in groups)


def volume_names(groups: Sequence[Group]) -> list[str]:
    """Safe names of the groups' volumes, the same for all parts of a volume."""
    common = _common_folder(groups)
    keys = [os.path.realpath(g.files[0]) if g.is_file else ("", g.volume) for g in groups]
    volumes = dict(zip(keys, groups, strict=True))
    names = unique_names(_safe_name(group, group.volume, common) for group in volumes.values())
    name_of = dict(zip(volumes, names, strict=True))
    return [name_of[key] for key in keys]


def _common_folder(groups: Sequence[Group]) -> str:
    return os.path.commonpath(
        [f"./{os.path.dirname(name)}" for group in groups for name in group.file_names]
    )


def _safe_name(group: Group, name: str, common: str) -> str:
    """Safe name of a group; for files, the path below their common folder, without extension."""
    if group.is_file:
        folder, file = os.path.split(name)
        name = os.path.join(os.path.relpath(f"./{folder}", common), stem_of(file))
    return safe_name(name)[:_MAX_NAME].rstrip("._-")
