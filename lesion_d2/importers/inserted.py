"""Synthetic lesions in real CT slices, with or without annotations.

  a registered data set                  its lesions, classes and splits are kept
  a folder or file of scans              DICOM, NIfTI, MetaImage, NRRD, <slice number>.png
  DL_info.csv with Images_png/           DeepLesion's layout, with its lesions and splits

Lesions are inserted where their type occurs, a few around each of several key slices of a volume
(lesion_d2.data.inserted). They span its slices by their size in mm, and have true masks.
"""

import argparse
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from ..data.formats.problems import short_repr
from ..data.inserted import HOSTS, InsertedLesion, insert_lesions
from ..data.inserted.boxes import box_pixels, margin_box
from ..data.inserted.painting import LIMITS, grown, mark_taken
from ..data.volume_set.form import Lesion, lesion_of_mask
from .case import Case, ImportedVolume, Listing
from .phantom import ALL_TYPES, Classes, parse_classes
from .registered import Sources, SourceVolume, find_sources

_FREE = 3.0  # minimum distance in mm between a lesion of the source and inserted ones


@dataclass(frozen=True)
class InsertOptions:
    """Options of inserted lesions.

    Args:
        copies: number of copies of each volume, with different lesions.
        max_lesions: maximum number around a key slice; at least one, if there is room.
        step_mm: distance of key slices along z; thinner volumes have one.
        types: coarse types to draw from.
        median_diameter: median diameter of the lesions in mm.
        mottle_hu: texture of the lesions, HU.
        box_margin: pixels between the diameters of an inserted lesion and its box, as in
            DeepLesion; 0 for boxes that are tight around masks.
        seed: random seed.
    """

    copies: int = 1
    max_lesions: int = 3
    step_mm: float = 30.0
    types: tuple[int, ...] = tuple(HOSTS)
    median_diameter: float = 16.0
    mottle_hu: float = 5.0
    box_margin: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            **LIMITS,
            "copies": (1, 1000),
            "step_mm": (5, 1000),
            "box_margin": (0, 50),
            "seed": (0, 2**32 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}: found {value}, expected {low} to {high}")
        if not self.types or not set(self.types) <= set(HOSTS):
            raise ValueError(
                f"types: found {short_repr(list(self.types))}, expected some of {sorted(HOSTS)}"
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`list_cases`, without the seed."""
    default, add = InsertOptions(), parser.add_argument
    add(
        "sources",
        nargs="+",
        metavar="[SPLIT=]SOURCE",
        help="registered data sets, and folders or files of scans; prefix train= and so on for "
        "sources without splits: train=scans",
    )
    add("--spacing", nargs=3, type=float, metavar=("X", "Y", "Z"), help="spacing in mm, if unknown")
    add(
        "--classes",
        nargs="+",
        metavar="NAME=TYPES",
        help="coarse types of each class of inserted lesions, such as lung=5 other=2,3,4,7,8; "
        "'types' for one class per type (default: the source's class, or lesion, for all types)",
    )
    add("--types", nargs="+", type=int, metavar="TYPE", help="coarse types to insert")
    add("--copies", type=int, default=default.copies, help="copies of each volume (default: 1)")
    add(
        "--max-lesions",
        type=int,
        default=default.max_lesions,
        help="maximum number around a key slice (default: 3)",
    )
    add(
        "--step-mm",
        type=float,
        default=default.step_mm,
        help="distance of key slices in mm (default: 30)",
    )
    add(
        "--median-diameter", type=float, default=default.median_diameter, help="in mm (default: 16)"
    )
    add(
        "--mottle-hu",
        type=float,
        default=default.mottle_hu,
        help="texture of lesions in HU (default: 5)",
    )
    add(
        "--box-margin",
        type=float,
        default=default.box_margin,
        help="margin of boxes around diameters, pixels; 0: tight around masks (default: 5)",
    )


def list_cases(args: argparse.Namespace) -> Listing:
    """The listing for arguments of the command and its ``--seed``; see :func:`list_inserted`."""
    options = InsertOptions(
        copies=args.copies,
        max_lesions=args.max_lesions,
        step_mm=args.step_mm,
        types=tuple(args.types or HOSTS),
        median_diameter=args.median_diameter,
        mottle_hu=args.mottle_hu,
        box_margin=args.box_margin,
        seed=args.seed,
    )
    classes = None if args.classes is None else parse_classes(args.classes)
    spacing = None if args.spacing is None else tuple(args.spacing)
    return list_inserted(args.sources, options, classes=classes, spacing=spacing)


def list_inserted(
    sources: Sequence[str],
    options: InsertOptions = InsertOptions(),
    *,
    classes: Classes | None = None,
    spacing: tuple[float, float, float] | None = None,
) -> Listing:
    """List the volumes that lesions are inserted into.

    Args:
        sources: see :func:`~lesion_d2.importers.registered.find_sources`.
        options: options of the inserted lesions.
        classes: classes of inserted lesions; None for the only class of the sources, or "lesion".
        spacing: x, y, z in mm for volumes with unknown spacing.

    Raises:
        FileNotFoundError, ValueError: a source is missing, unknown or damaged, or classes are
            invalid.
    """
    found = find_sources(sources, spacing)
    names, category_of = _categories(found, options.types, classes)
    cases = []
    for volume in found.volumes:
        for copy in range(options.copies):
            name = volume.name if options.copies == 1 else f"{volume.name}_{copy + 1}"
            categories = tuple(map(names.index, volume.classes))
            read = partial(_read_case, volume, copy, options, categories, category_of)
            cases.append(Case(name, volume.patient, read, volume.sources, volume.split))
    told = {
        **asdict(options),
        "types": list(options.types),
        "classes": {str(k): v for k, v in category_of.items()},
        "spacing": None if spacing is None else list(spacing),
    }
    return Listing(names, tuple(cases), found.left_out, found.damaged, found.folds, told)


def _categories(
    found: Sources, types: Collection[int], classes: Classes | None
) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names of all classes (the sources' first), and the class of each coarse type."""
    if classes is None:
        if len(found.classes) > 1:
            raise ValueError(
                f"--classes: found none for sources with the classes {', '.join(found.classes)}, "
                "expected NAME=TYPES for the inserted lesions"
            )
        classes = {(*found.classes, "lesion")[0]: ALL_TYPES}
    names = tuple(dict.fromkeys((*found.classes, *classes)))
    category_of = {number: names.index(name) for name in classes for number in classes[name]}
    missing = sorted(set(types) - set(category_of))
    if missing or sum(map(len, classes.values())) > len(category_of):
        raise ValueError(
            f"--classes: found {short_repr({k: list(v) for k, v in classes.items()})}, "
            f"expected one class for each of the coarse types {sorted(types)}"
        )
    return names, {number: category_of[number] for number in sorted(types)}


def _read_case(
    source: SourceVolume,
    copy: int,
    options: InsertOptions,
    categories: Sequence[int],
    category_of: Mapping[int, int],
) -> ImportedVolume:
    """A volume of the source with inserted lesions; the source's lesions come first.

    ``categories`` maps the source's classes, ``category_of`` coarse types.
    """
    imported = source.read()
    volume, voxels = imported.volume, np.array(imported.voxels, np.int16)
    if volume.spacing is None:
        raise ValueError("found no spacing, expected one for sizes in mm; pass --spacing X Y Z")
    known = [replace(le, category=categories[le.category]) for le in volume.lesions]
    lesions = insert_into_volume(
        voxels,
        volume.spacing,
        np.random.default_rng([options.seed, zlib.crc32(source.name.encode()), copy]),
        options,
        known,
    )
    for number, lesion in enumerate(lesions, start=len(known) + 1):
        known.append(_annotated(number, category_of[lesion.coarse_type], lesion, voxels, options))
    known = [replace(lesion, id=number) for number, lesion in enumerate(known, start=1)]
    return ImportedVolume(voxels, replace(volume, lesions=tuple(known)), imported.left_out)


def insert_into_volume(
    voxels: np.ndarray,
    spacing: tuple[float, float, float],
    rng: np.random.Generator,
    options: InsertOptions,
    known: Sequence[Lesion] = (),
) -> list[InsertedLesion]:
    """Insert lesions around key slices along a volume.

    Args:
        voxels: (Z, H, W) int16 HU in DeepLesion's orientation, modified in place.
        spacing: x, y, z in mm.
        rng: random generator.
        options: see :class:`InsertOptions`.
        known: lesions and regions of the volume, which are kept free.
    """
    pixel, depth = float(np.mean(spacing[:2])), len(voxels)
    free = _FREE / pixel
    taken: dict[int, np.ndarray] = {}
    for lesion in known:
        for number in lesion.slices:
            mark_taken(taken, number, box_pixels(lesion.box_on(number), voxels.shape[1:], free))
    step, inserted = max(1, round(options.step_mm / spacing[2])), []
    first = int(rng.integers(min(step, depth)))
    for key in range(first, depth, step):
        heights = (np.arange(depth) - key) * spacing[2]
        found = insert_lesions(
            voxels,
            heights,
            pixel,
            rng,
            number=int(rng.integers(1, options.max_lesions + 1)),
            types=options.types,
            median_diameter=options.median_diameter,
            mottle_hu=options.mottle_hu,
            taken=taken,
        )
        for number, mask in ((n, mask) for lesion in found for n, mask in lesion.masks.items()):
            mark_taken(taken, number, grown(mask, free))
        inserted += found
    return inserted


def _annotated(
    id: int, category: int, lesion: InsertedLesion, voxels: np.ndarray, options: InsertOptions
) -> Lesion:
    """A lesion of a data set, with its true masks."""
    first = min(lesion.masks)
    mask = np.stack(
        [
            lesion.masks.get(n, np.zeros(voxels.shape[1:], bool))
            for n in range(first, max(lesion.masks) + 1)
        ]
    )
    attributes = {"inserted": 1, "coarse_type": lesion.coarse_type}
    found = lesion_of_mask(
        id, category, mask, offset=(first, 0, 0), shape=voxels.shape, attributes=attributes
    )
    if not options.box_margin:
        return found
    boxes, recist = {}, {}
    for number, shown in lesion.masks.items():
        boxes[number], recist[number] = margin_box(shown, options.box_margin)
    x1, y1, x2, y2 = zip(*boxes.values(), strict=True)
    box = (min(x1), min(y1), found.box[2], max(x2), max(y2), found.box[5])
    return replace(found, box=box, boxes=boxes, recist=recist)
