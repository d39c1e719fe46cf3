"""Phantoms of datasets/prepare_phantom.py, with the true masks of all lesions.

  DL_info.csv                            lesions, series and splits
  Images_png/<p>_<s>_<r>/<slice>.png     every slice of a series
  true_volumes.json                      masks on all slices

The import writes a volume set, which 2-D and 3-D detectors read faster than PNG slices. It has the
true masks, and boxes tight around them (boxes in DL_info.csv have a margin of 5 pixels around a
lesion's diameters).
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..data.deeplesion.key_slices import load_deeplesion
from ..data.formats.problems import short_repr
from ..data.phantoms.volumes import read_lesion_masks
from ..data.slices.ct import read_slice
from ..data.transforms.borders import slice_files
from ..data.volume_set.form import SPLITS, Lesion, Volume, lesion_of_mask
from ..structures.lesion_types import COARSE_TYPES
from ..structures.rle import decode_mask
from ..structures.slice_geometry import EXPECTED_SPACING, is_spacing
from .case import Case, ImportedVolume, Listing
from .resampling import resample

#: Name of a class -> its coarse types of DeepLesion, from 1.
Classes = Mapping[str, Sequence[int]]

ALL_TYPES = tuple(range(1, len(COARSE_TYPES) + 1))
ONE_CLASS: Classes = {"lesion": ALL_TYPES}
# DeepLesion's slices are in order from head to feet; their position is not known.
_DIRECTION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`list_cases`."""
    parser.add_argument("root", type=Path, help="folder of DL_info.csv and true_volumes.json")
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME=TYPES",
        help="coarse types of each class, such as lung=5 other=1,2,3,4,6,7,8; 'types' for a class "
        "per type (default: lesion, for all types)",
    )
    parser.add_argument(
        "--resample",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="resample to this spacing in mm (default: no resampling)",
    )


def list_cases(args: argparse.Namespace) -> Listing:
    """The listing for arguments of the command.

    Raises:
        ValueError: ``--classes`` is invalid; or see :func:`list_phantom`.
    """
    classes = ONE_CLASS if args.classes is None else parse_classes(args.classes)
    spacing = None if args.resample is None else tuple(args.resample)
    return list_phantom(args.root, classes=classes, spacing=spacing)


def parse_classes(texts: Sequence[str]) -> Classes:
    """Read ``["lung=5", "other=1,2"]`` as ``{"lung": (5,), "other": (1, 2)}``.

    Args:
        texts: one text per class, or ``["types"]`` for one class per coarse type.

    Raises:
        ValueError: a text has another format, or a name occurs twice.
    """
    if list(texts) == ["types"]:
        return dict(zip(COARSE_TYPES, zip(ALL_TYPES, strict=True), strict=True))
    classes = {}
    for text in texts:
        name, _, types = text.partition("=")
        numbers = types.split(",")
        if not name or name in classes or not all(n.isdecimal() for n in numbers):
            raise ValueError(
                f"--classes: found {short_repr(text)}, expected a unique name, '=' and coarse "
                "types separated by commas"
            )
        classes[name] = tuple(map(int, numbers))
    return classes


def list_phantom(
    root: str | os.PathLike,
    *,
    classes: Classes = ONE_CLASS,
    spacing: tuple[float, float, float] | None = None,
) -> Listing:
    """List the series of a phantom data set with their splits; each becomes a volume.

    Args:
        root: the folder that :func:`~lesion_d2.data.phantoms.phantom.write_phantom` wrote.
        classes: the classes, in order. Each coarse type that occurs must be in exactly one class.
        spacing: x, y, z in mm to resample voxels and masks to; None keeps that of each series.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: ``DL_info.csv``, ``true_volumes.json`` or the spacing is invalid, or a coarse
            type is in no class or in two.
    """
    root = Path(root)
    category_of = _categories(classes)
    if spacing is not None and not all(map(is_spacing, spacing)):
        raise ValueError(f"spacing: found {spacing}, expected x, y and z, each {EXPECTED_SPACING}")
    table, masks_file = root / "DL_info.csv", root / "true_volumes.json"
    cases = []
    for split in SPLITS:
        key_slices = load_deeplesion(table, root / "Images_png", split, first_pixel=0.0)
        _check_types(table, key_slices, category_of)
        masks = read_lesion_masks(masks_file, key_slices)
        series: dict[str, list[dict]] = {}
        for key_slice in key_slices:
            series.setdefault(os.path.dirname(key_slice["file_name"]), []).append(key_slice)
        for folder, keys in series.items():
            lesions = [
                (
                    annotation["row"],
                    category_of[annotation["coarse_type"]],
                    masks[annotation["row"]],
                )
                for key in keys
                for annotation in key["annotations"]
            ]
            files = tuple(slice_files(folder).items())
            name, patient = os.path.basename(folder), f"{keys[0]['patient']:06d}"
            read = partial(_read_case, name, patient, files, keys[0], lesions, spacing)
            sources = (*(file for _, file in files), str(table), str(masks_file))
            cases.append(Case(name, patient, read, sources, split))
    told = {"classes": {k: list(v) for k, v in classes.items()}, "spacing": spacing}
    return Listing(tuple(classes), tuple(cases), options=told)


def _categories(classes: Classes) -> dict[int, int]:
    """Coarse type -> index of its class."""
    category_of: dict[int, int] = {}
    for index, (name, types) in enumerate(classes.items()):
        for number in types:
            if number not in ALL_TYPES or number in category_of:
                raise ValueError(
                    f"class {name!r}: found the coarse type {number}, expected one from 1 to "
                    f"{len(COARSE_TYPES)} that is in no other class"
                )
            category_of[number] = index
    return category_of


def _check_types(table: Path, key_slices: list[dict], category_of: Mapping[int, int]) -> None:
    for annotation in (a for image in key_slices for a in image["annotations"]):
        if annotation["coarse_type"] not in category_of:
            raise ValueError(
                f"{table}, row {annotation['row']}: found coarse type "
                f"{annotation['coarse_type']}, expected one that is in a class: "
                f"{', '.join(map(str, sorted(category_of)))}"
            )


def _read_case(
    name: str,
    patient: str,
    files: Sequence[tuple[int, str]],
    key_slice: Mapping,
    lesions: Sequence[tuple[int, int, Mapping[int, Mapping]]],
    spacing: tuple[float, float, float] | None,
) -> ImportedVolume:
    """Read a series from its slices (number, file) and lesions (row, class, masks by slice)."""
    numbers = [number for number, _ in files]
    first, last = numbers[0], numbers[-1]
    if numbers != list(range(first, last + 1)):
        raise ValueError(
            f"{os.path.dirname(files[0][1])}: found {len(numbers)} slices from {first} to {last}, "
            "expected no gaps"
        )
    size = (key_slice["height"], key_slice["width"])
    voxels = np.stack([read_slice(file, size) for _, file in files])
    found = tuple(
        _lesion(id, category, row, masks, first, voxels.shape)
        for id, (row, category, masks) in enumerate(lesions, start=1)
    )
    volume = Volume(
        name,
        patient,
        f"images/{name}",
        voxels.shape,
        spacing=tuple(key_slice["spacing"]),
        origin=(0.0, 0.0, -first * key_slice["spacing"][2]),
        direction=_DIRECTION,
        lesions=found,
        window=tuple(key_slice["window"]),
    )
    imported = ImportedVolume(voxels, volume)
    return imported if spacing is None else resample(imported, spacing)


def _lesion(
    id: int,
    category: int,
    row: int,
    masks: Mapping[int, Mapping],
    first: int,
    shape: tuple[int, int, int],
) -> Lesion:
    low, high = min(masks), max(masks)
    if not first <= low <= high < first + shape[0]:
        raise ValueError(
            f"true_volumes.json, row {row}: found masks on slices {low} to {high}, expected slices "
            f"on disk, {first} to {first + shape[0] - 1}"
        )
    mask = np.zeros((high - low + 1, *shape[1:]), bool)
    for number, rle in masks.items():
        mask[number - low] = decode_mask(rle)
    offset = (low - first, 0, 0)
    return lesion_of_mask(id, category, mask, offset=offset, shape=shape, attributes={"row": row})
