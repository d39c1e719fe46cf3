"""COCO JSON: pictures, or slices of volumes, with boxes and masks."""

import argparse
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..data.coco.loading import compile_pattern, complete_images, image_source
from ..data.coco.reading import read_coco
from ..data.coco.records import CocoAnnotation, CocoFile, CocoImage
from ..data.pictures import open_stored, read_picture_slice
from ..data.problems import short
from ..data.volume_set.form import SPLITS, Lesion, Volume
from ..rle import encode_mask
from ..scans.names import safe_name, unique_names
from ..scans.orientation import Turn
from ..scans.volume_file import stem_of
from .case import Case, ImportedVolume, Listing

_MAX_NAME = 90  # and a number behind it


@dataclass(frozen=True)
class _Group:
    """The images of one volume, by rising number of slices."""

    name: str
    split: str | None
    json_file: str
    image_root: str
    images: tuple[CocoImage, ...]
    numbers: tuple[int, ...]
    kind: str  # "stored" slices of a file; "pictures" of a volume; a "picture" by itself

    @property
    def is_stored(self) -> bool:
        return self.kind == "stored"

    @property
    def is_file(self) -> bool:
        """Whether its name is a file's."""
        return self.kind != "pictures"

    @property
    def file_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(image.file_name for image in self.images))

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(os.path.join(self.image_root, name) for name in self.file_names)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this format's arguments."""
    parser.add_argument(
        "json",
        nargs="+",
        help="COCO JSON; with a split in front of it where there are several: train=a.json "
        "val=b.json",
    )
    parser.add_argument(
        "--images", help="folder that file names start from (default: that of each JSON)"
    )
    parser.add_argument(
        "--spacing", nargs=3, type=float, metavar=("X", "Y", "Z"), help="mm, of pictures without it"
    )
    parser.add_argument(
        "--hu-offset", type=int, metavar="N", help="of 16-bit pictures: HU = value - N"
    )
    parser.add_argument(
        "--hu-window",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="of 8-bit pictures: HU of 0 and of 255",
    )
    parser.add_argument(
        "--patient",
        metavar="REGEX",
        help="searched for in file names: its first group, or all of it, is the patient",
    )
    parser.add_argument(
        "--group-by",
        metavar="REGEX",
        help="searched for in file names: its first group is the volume, its second one the number "
        "of the slice",
    )
    parser.add_argument(
        "--ignore-categories",
        nargs="+",
        default=(),
        metavar="NAME",
        help="categories that are regions to be ignored",
    )


def list_cases(args: argparse.Namespace) -> Listing:
    """The volumes of :func:`add_arguments`' arguments, see :func:`list_coco`."""
    return list_coco(
        _split_files(args.json),
        args.images,
        spacing=args.spacing,
        hu_offset=args.hu_offset,
        hu_window=args.hu_window,
        patient=args.patient,
        group_by=args.group_by,
        ignore_categories=args.ignore_categories,
    )


def list_coco(
    json_files: str | os.PathLike | Mapping[str | None, str | os.PathLike],
    image_root: str | os.PathLike | None = None,
    *,
    spacing: Sequence[float] | None = None,
    hu_offset: int | None = None,
    hu_window: Sequence[float] | None = None,
    patient: str | None = None,
    group_by: str | None = None,
    ignore_categories: Iterable[str] = (),
) -> Listing:
    """List the volumes of files in COCO's format; headers of images are read.

    Slices ``file#k`` of one file are one volume, the whole file, turned to DeepLesion's
    orientation. Pictures with one ``volume`` (a key of images, or the first group of ``group_by``)
    whose ``slice`` numbers follow on one another are one volume, in their order; all others are
    volumes of one slice. Annotations of a volume with one ``lesion`` (a key of theirs) are one
    lesion; all others are lesions of one slice.

    Args:
        json_files: one file, or several by their splits.
        image_root: the folder that names of images start from; None for that of each file.
        spacing, hu_offset, hu_window, patient, ignore_categories: see
            :func:`~lesion_d2.data.coco.loading.load_ct_coco`. A volume without a patient is one
            patient's.
        group_by: a regular expression with two groups that is searched for in names of pictures.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        ValueError: what is wrong in a file or an option, or files differ in their categories.
    """
    ignore_categories = tuple(ignore_categories)
    if not isinstance(json_files, Mapping):
        json_files = {None: json_files}
    if image_root is not None and not os.path.isdir(image_root):
        raise FileNotFoundError(f"{image_root}: no such folder of images")
    options = {"spacing": spacing, "hu_offset": hu_offset, "hu_window": hu_window}
    groups, first = [], None
    for split, json_file in json_files.items():
        content = read_coco(json_file, ignore_categories=ignore_categories)
        first = first or (json_file, content)
        _check_same_classes(first, (json_file, content))
        images = complete_images(json_file, content.images, patient=patient, **options)
        root = os.path.dirname(json_file) if image_root is None else image_root
        groups += _group(split, os.fspath(json_file), os.fspath(root), images, group_by)
    cases, damaged = [], []
    for group, name in zip(groups, _case_names(groups), strict=True):
        try:
            cases.append(_case(group, name))
        except (OSError, ValueError, ImportError) as error:
            damaged.append(f"{group.name}: {error}")
    options |= {"patient": patient, "group_by": group_by, "ignore_categories": ignore_categories}
    return Listing(
        classes=first[1].classes,
        cases=tuple(cases),
        left_out=tuple(damaged),
        damaged=tuple(damaged),
        options={k: _jsonable(v) for k, v in options.items() if v not in (None, ())},
    )


def _split_files(texts: Sequence[str]) -> dict[str | None, str]:
    files = {}
    for text in texts:
        split, separator, file = text.partition("=")
        if not separator or split not in SPLITS:
            split, file = None, text
        if split in files:
            named = f"the split {split}" if split else "no split"
            raise ValueError(
                f"{file}: found a second file of {named}, expected one for each of "
                f"{', '.join(SPLITS)}: train=a.json"
            )
        files[split] = file
    return files


def _check_same_classes(
    first: tuple[str | os.PathLike, CocoFile], other: tuple[str | os.PathLike, CocoFile]
) -> None:
    (first_file, a), (file, b) = first, other
    if (a.classes, a.category_ids) != (b.classes, b.category_ids):
        raise ValueError(
            f"{file}: categories: found {short(dict(zip(b.category_ids, b.classes, strict=True)))},"
            f" expected those of {first_file}"
        )


def _jsonable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


# --- volumes --------------------------------------------------------------------------------------


def _group(
    split: str | None,
    json_file: str,
    image_root: str,
    images: Iterable[CocoImage],
    group_by: str | None,
) -> list[_Group]:
    """The volumes of a file's images."""
    pattern = None if group_by is None else compile_pattern("group_by", group_by)
    if pattern is not None and pattern.groups < 2:
        raise ValueError(
            f"group_by: found {short(group_by)}, expected two groups: the volume's name and the "
            "number of the slice"
        )
    found: dict[tuple, dict[int, CocoImage]] = {}
    for image in images:
        kind, name, number = _place(image, pattern, json_file)
        slices = found.setdefault((kind, name), {})
        if number in slices:
            raise ValueError(
                f"{json_file}: image {image.id}: found slice {number} of {short(name)}, which "
                f"image {slices[number].id} is, expected another"
            )
        slices[number] = image
    groups = []
    for (kind, name), slices in found.items():
        numbers = sorted(slices)
        runs = [numbers] if kind == "stored" else _runs(numbers)
        for run in runs:
            chosen = tuple(slices[n] for n in run)
            full = name if len(runs) == 1 else f"{name}_{run[0]}-{run[-1]}"
            groups.append(_Group(full, split, json_file, image_root, chosen, tuple(run), kind))
    return groups


def _place(image: CocoImage, pattern: re.Pattern | None, json_file: str) -> tuple[str, str, int]:
    """What an image is a part of: the kind of volume, its name, and the slice's number in it."""
    if image.stored_slice is not None:
        return "stored", image.file_name, image.stored_slice
    if image.volume is not None:
        return "pictures", image.volume, image.slice
    match = pattern and pattern.search(image.file_name)
    if match:
        if not (match[1] and match[2] and match[2].isdecimal()):
            raise ValueError(
                f"{json_file}: image {image.id}: found the volume {short(match[1])} and the slice "
                f"{short(match[2])} by group_by, expected a name and a number"
            )
        return "pictures", match[1], int(match[2])
    return "picture", image.file_name, 0


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Parts of rising numbers that follow on one another."""
    groups = itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    return [[number for _, number in group] for _, group in groups]


def _case_names(groups: Sequence[_Group]) -> list[str]:
    """Safe names, another one for each: files by their path below the folder of all of them."""
    folders = {f"./{os.path.dirname(name)}" for group in groups for name in group.file_names}
    common = os.path.commonpath(folders)
    names = []
    for group in groups:
        name = group.name
        if group.is_file:
            folder, file = os.path.split(name)
            name = os.path.join(os.path.relpath(f"./{folder}", common), stem_of(file))
        names.append(safe_name(name)[:_MAX_NAME].rstrip("._-"))
    return unique_names(names)


def _case(group: _Group, name: str) -> Case:
    """Check a group's headers. Raises ValueError of images that are no volume."""
    first = group.images[0]
    for image in group.images:
        for key in ("patient", "spacing"):
            if getattr(image, key) != getattr(first, key):
                raise ValueError(
                    f"{key}: found {short(getattr(image, key))} of image {image.id}, expected "
                    f"{short(getattr(first, key))} of image {first.id}, as they are of one volume"
                )
        if (image.height, image.width) != (first.height, first.width):
            raise ValueError(
                f"found {image.width} x {image.height} pixels of image {image.id}, expected the "
                f"{first.width} x {first.height} of image {first.id}, as they are of one volume"
            )
        image_source(image, os.path.join(group.image_root, image.file_name))
    if group.is_stored:
        turn = open_stored(group.files[0]).grid.turn
        if turn.axes[0] != 2:
            raise ValueError(
                f"{group.files[0]}: found slices along axis {turn.axes[0]} of its array, expected "
                "them along the third one: #k counts other planes than axial ones"
            )
    return Case(
        name=name,
        patient=first.patient if first.patient is not None else name,
        read=partial(read_case, group, name),
        sources=(group.json_file, *group.files),
        split=group.split,
    )


# --- voxels and lesions ---------------------------------------------------------------------------


class _Placing:
    """From the pixels of images to those of a volume in DeepLesion's orientation.

    Args:
        shape: (Z, H, W) of the volume.
        first: number of the images' slice that is slice 0, where nothing is turned.
        turn: from a file's axes (columns, rows, slices) to the volume's.
    """

    def __init__(self, shape: tuple[int, int, int], first: int = 0, turn: Turn | None = None):
        self.shape, self.first = shape, first
        self.turn = turn or Turn((2, 1, 0), (False, False, False))

    def slice(self, number: int) -> int:
        index = number - self.first
        return self.shape[0] - 1 - index if self.turn.flips[0] else index

    def points(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) x, y of an image, in the volume's slice."""
        _, y_axis, x_axis = self.turn.axes
        turned = np.asarray(points, float)[:, [x_axis, y_axis]]
        last = np.array([self.shape[2] - 1, self.shape[1] - 1])
        return np.where([self.turn.flips[2], self.turn.flips[1]], last - turned, turned)

    def box(self, box: Sequence[float]) -> tuple[float, ...]:
        corners = self.points(np.reshape(box, (2, 2)))
        return (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())

    def mask(self, counts: str, size: tuple[int, int]) -> str:
        """Counts of a mask of (H, W) of an image, in the volume's slice."""
        mask = coco_mask.decode({"size": list(size), "counts": counts})
        return encode_mask(self.turn.apply(mask.T[:, :, None])[0])["counts"]


def read_case(group: _Group, name: str) -> ImportedVolume:
    """Read the voxels and the lesions of a group of images.

    Args:
        group: of :func:`list_coco`.
        name: of its volume.

    Raises:
        FileNotFoundError, ValueError: an image cannot be read, or its annotations are of no lesion.
    """
    first, left_out = group.images[0], ()
    if group.is_stored:
        scan = open_stored(group.files[0]).read()
        voxels, left_out = scan.volume, scan.messages
        placing = _Placing(voxels.shape, turn=scan.grid.turn)
        geometry = {
            "spacing": scan.spacing,
            "origin": tuple(scan.origin.tolist()),
            "direction": tuple(scan.direction.ravel().tolist()),
        }
        num_other = len(voxels) - len(group.images)
        if num_other:
            left_out += (
                f"{num_other} of {len(voxels)} slices are no images of the JSON: they are taken "
                "as slices without lesions",
            )
    else:
        paths = [
            image_source(image, os.path.join(group.image_root, image.file_name))[0]
            for image in group.images
        ]
        voxels = np.stack([read_picture_slice(path) for path in paths])
        placing, geometry = _Placing(voxels.shape, group.numbers[0]), {"spacing": first.spacing}
    patient = first.patient if first.patient is not None else name
    volume = Volume(name, patient, "", voxels.shape, lesions=_lesions(group, placing), **geometry)
    return ImportedVolume(voxels, volume, tuple(f"{name}: {line}" for line in left_out))


def _lesions(group: _Group, placing: _Placing) -> tuple[Lesion, ...]:
    found: dict[tuple, dict[int, tuple[CocoImage, CocoAnnotation]]] = {}
    for number, image in zip(group.numbers, group.images, strict=True):
        for annotation in image.annotations:
            key = ("single", annotation.id, annotation.category)
            if annotation.lesion is not None:
                key = ("lesion", annotation.lesion)
            slices = found.setdefault(key, {})
            index = placing.slice(number)
            other = next(iter(slices.values()), (None, annotation))[1]
            if index in slices or _kind(other) != _kind(annotation):
                what = "the same slice" if index in slices else "another category"
                raise ValueError(
                    f"{group.json_file}: annotation {annotation.id}: found the lesion "
                    f"{short(annotation.lesion)} of annotation {other.id} on {what}, expected one "
                    "annotation a slice, all of one category"
                )
            slices[index] = image, annotation
    return tuple(_lesion(n, slices, placing) for n, slices in enumerate(found.values(), 1))


def _kind(annotation: CocoAnnotation) -> tuple[int, bool]:
    return annotation.category, annotation.ignore


def _lesion(
    number: int, slices: dict[int, tuple[CocoImage, CocoAnnotation]], placing: _Placing
) -> Lesion:
    annotations = {z: annotation for z, (_, annotation) in sorted(slices.items())}
    boxes = {z: placing.box(a.box) for z, a in annotations.items()}
    size = next(iter(slices.values()))[0]
    size = size.height, size.width
    masks = {z: placing.mask(a.mask, size) for z, a in annotations.items() if a.mask is not None}
    recist = {
        z: tuple(placing.points(np.reshape(a.recist, (4, 2))).ravel().tolist())
        for z, a in annotations.items()
        if a.recist is not None
    }
    lows, highs = (np.array([box[i : i + 2] for box in boxes.values()]) for i in (0, 2))
    first = next(iter(annotations.values()))
    return Lesion(
        id=number,
        category=first.category,
        box=(
            *lows.min(axis=0).tolist(),
            float(min(boxes)),
            *highs.max(axis=0).tolist(),
            float(max(boxes)),
        ),
        boxes=boxes if len(boxes) > 1 else None,
        masks=masks or None,
        recist=recist or None,
        diameters_mm=max(
            (a.diameters_mm for a in annotations.values() if a.diameters_mm is not None),
            default=None,
        ),
        ignore=first.ignore,
        attributes={"annotation": first.id} if len(annotations) == 1 else {},
    )
