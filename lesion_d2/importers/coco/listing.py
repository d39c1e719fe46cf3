"""Lists the volumes of files in COCO's format."""

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from ...data.coco.loading import complete_images, image_source
from ...data.coco.reading import read_coco
from ...data.coco.records import CocoFile
from ...data.formats.problems import short_repr
from ...data.slices.pictures import open_stored
from ...data.volume_set.form import SPLITS
from ..case import Case, Listing
from .groups import Group, case_names, group_images, volume_names
from .volumes import read_case


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this format's arguments."""
    parser.add_argument(
        "json",
        nargs="+",
        help="COCO JSON; several files need their splits as prefix: train=a.json val=b.json",
    )
    parser.add_argument("--images", help="folder of the images (default: that of each JSON)")
    parser.add_argument(
        "--spacing",
        nargs=3,
        type=float,
        metavar=("X", "Y", "Z"),
        help="spacing in mm of pictures without it",
    )
    parser.add_argument(
        "--hu-offset", type=int, metavar="N", help="for 16-bit pictures: HU = value - N"
    )
    parser.add_argument(
        "--hu-window",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="for 8-bit pictures: HU of 0 and of 255",
    )
    parser.add_argument(
        "--patient",
        metavar="REGEX",
        help="searched in file names; its first group, or the whole match, is the patient",
    )
    parser.add_argument(
        "--group-by",
        metavar="REGEX",
        help="searched in file names; its groups are the volume and the number of the slice",
    )
    parser.add_argument(
        "--ignore-categories",
        nargs="+",
        default=(),
        metavar="NAME",
        help="categories that are regions to ignore",
    )


def list_cases(args: argparse.Namespace) -> Listing:
    """The listing for arguments of the command, see :func:`list_coco`."""
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
    """List the volumes of files in COCO's format; reads headers of images.

    Slices ``file#k`` of the same file are one volume, the whole file, in DeepLesion's orientation.
    Pictures with the same ``volume`` (a key of images, or the first group of ``group_by``) and
    consecutive ``slice`` numbers are one volume; all others are volumes of one slice. Annotations
    of a volume with the same key ``lesion_id`` are one lesion; all others are lesions on one slice.

    Args:
        json_files: one file, or several by split.
        image_root: folder of the images; None for the folder of each file.
        spacing, hu_offset, hu_window, patient, ignore_categories: see
            :func:`~lesion_d2.data.coco.loading.load_ct_coco`. A volume without a patient is its own
            patient.
        group_by: a regular expression with two groups that is searched for in names of pictures.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        ValueError: what is wrong in a file or an option, files differ in their categories, or have
            slices of one volume.
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
        groups += group_images(split, os.fspath(json_file), os.fspath(root), images, group_by)
    _check_one_file(groups)
    cases, damaged = _cases(groups)
    options |= {"patient": patient, "group_by": group_by, "ignore_categories": ignore_categories}
    return Listing(
        classes=first[1].classes,
        cases=tuple(cases),
        left_out=tuple(damaged),
        damaged=tuple(damaged),
        options={k: _jsonable(v) for k, v in options.items() if v not in (None, ())},
    )


def _cases(groups: Sequence[Group]) -> tuple[list[Case], list[str]]:
    """Cases of groups, and a line on each group that is none."""
    cases, damaged = [], []
    for named in zip(groups, case_names(groups), volume_names(groups), strict=True):
        try:
            cases.append(_case(*named))
        except (OSError, ValueError, ImportError) as error:
            damaged.append(f"{named[0].name}: {error}")
    return cases, damaged


def _split_files(texts: Sequence[str]) -> dict[str | None, str]:
    files = {}
    for text in texts:
        split, separator, file = text.partition("=")
        if not separator or split not in SPLITS:
            split, file = None, text
        if split in files:
            named = f"for the split {split}" if split else "without a split"
            raise ValueError(
                f"{file}: found a second file {named}, expected one for each of "
                f"{', '.join(SPLITS)}, such as train=a.json"
            )
        files[split] = file
    return files


def _check_same_classes(
    first: tuple[str | os.PathLike, CocoFile], other: tuple[str | os.PathLike, CocoFile]
) -> None:
    (first_file, a), (file, b) = first, other
    if (a.classes, a.category_ids) != (b.classes, b.category_ids):
        raise ValueError(
            f"{file}: categories: found "
            f"{short_repr(dict(zip(b.category_ids, b.classes, strict=True)))},"
            f" expected those of {first_file}"
        )


def _check_one_file(groups: Iterable[Group]) -> None:
    """Refuse a volume in two JSON files, as each would lack the other's annotations."""
    found: dict[str, str] = {}
    for group in groups:
        file = os.path.realpath(group.files[0]) if group.is_stored else None
        if file is not None and found.setdefault(file, group.json_file) != group.json_file:
            raise ValueError(
                f"{group.files[0]}: found its slices in {found[file]} and {group.json_file}, "
                "expected all slices of a volume in one JSON file"
            )


def _jsonable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def _case(group: Group, name: str, volume: str) -> Case:
    """Check a group's headers; raises ValueError if the images are not a volume."""
    first = group.images[0]
    patient = volume if first.patient is None else first.patient
    for image in group.images:
        for key in ("patient", "spacing"):
            if getattr(image, key) != getattr(first, key):
                raise ValueError(
                    f"{key}: found {short_repr(getattr(image, key))} in image {image.id}, expected "
                    f"{short_repr(getattr(first, key))} as in image {first.id} of the same volume"
                )
        if (image.height, image.width) != (first.height, first.width):
            raise ValueError(
                f"found {image.width} x {image.height} pixels in image {image.id}, expected "
                f"{first.width} x {first.height} as in image {first.id} of the same volume"
            )
        image_source(image, os.path.join(group.image_root, image.file_name))
    if group.is_stored:
        turn = open_stored(group.files[0]).grid.turn
        if turn.axes[0] != 2:
            raise ValueError(
                f"{group.files[0]}: found axial slices along axis {turn.axes[0]} of the "
                "array, expected axis 2, along which #k counts slices"
            )
    return Case(
        name=name,
        patient=patient,
        read=partial(read_case, group, name, patient),
        sources=(group.json_file, *group.files),
        split=group.split,
    )
