"""Volumes and lesions from registered data sets, folders in DeepLesion's layout, and scans."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog

from ..data.catalog import is_registered, load_records
from ..data.deeplesion.csv_rows import CSV_COLUMNS, read_csv, read_once
from ..data.deeplesion.key_slices import lesion_classes, load_deeplesion
from ..data.slices.ct import read_slice
from ..data.transforms.borders import slice_files
from ..data.volume_set.catalog import volume_names
from ..data.volume_set.dicts import read_cached
from ..data.volume_set.form import SPLITS, Lesion, Volume, VolumeSet
from ..data.volume_set.voxels import read_voxels
from ..scans import ScanCandidate, find_scans
from ..scans.names import safe_name, unique_names
from ..scans.volume_file import stem_of
from ..structures.boxes import xyxy_box
from ..structures.ignore_regions import is_region
from ..structures.rle import decode_mask, encode_mask
from ..structures.slice_geometry import EXPECTED_SPACING, is_spacing
from .case import ImportedVolume
from .scan_volumes import imported_scan

_TABLE, _IMAGES = "DL_info.csv", "Images_png"


@dataclass(frozen=True)
class SourceVolume:
    """A volume of a source, before it is read.

    ``name``, ``patient``, ``read``, ``sources`` and ``split`` are those of
    :class:`~lesion_d2.importers.case.Case`.

    Args:
        classes: classes of the source; categories of lesions are indices into them.
        origin: namespace of ``patient``: the same name with another origin is another patient.
            Empty for volume sets, whose patient names are taken as they are.
    """

    name: str
    patient: str
    read: Callable[[], ImportedVolume]
    sources: tuple[str, ...]
    split: str | None
    classes: tuple[str, ...]
    origin: str = ""


@dataclass(frozen=True)
class Sources:
    """The content of one or more sources.

    Args:
        classes: classes of all sources, those of the first source first.
        volumes: volumes of all sources, with unique names.
        left_out, damaged, folds: see :class:`~lesion_d2.importers.case.Listing`.
    """

    classes: tuple[str, ...]
    volumes: tuple[SourceVolume, ...]
    left_out: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    folds: tuple[Mapping[str, tuple[str, ...]], ...] = ()


def find_sources(
    texts: Sequence[str], spacing: tuple[float, float, float] | None = None
) -> Sources:
    """List the volumes of sources, without reading voxels.

    A source is the name of a registered data set, a folder with ``DL_info.csv`` and
    ``Images_png``, or a path in which :func:`~lesion_d2.scans.find_scans` finds scans. A prefix
    ``train=``, ``val=`` or ``test=``, or a data set's suffix such as ``_train``, sets the split of
    all its patients; otherwise, the source's splits are kept. Each scan is its own patient.

    Volumes with the same name get numbers, and so do patients with the same name from different
    folders. Patients of different volume sets with the same name are the same patient.

    Args:
        texts: the sources.
        spacing: x, y, z in mm for PNG folders and data sets without spacing.

    Raises:
        FileNotFoundError, ValueError: a source is missing, unknown or damaged.
    """
    if spacing is not None and not all(map(is_spacing, spacing)):
        raise ValueError(
            f"--spacing: found {spacing}, expected x, y and z, each {EXPECTED_SPACING}"
        )
    parts = []
    for text in texts:
        split, separator, source = text.partition("=")
        if not separator or split not in SPLITS:
            split, source = None, text
        found = _find_source(source, spacing)
        if split is not None:
            volumes = tuple(replace(volume, split=split) for volume in found.volumes)
            found = replace(found, volumes=volumes, folds=())
        parts.append(found)
    volumes = [volume for part in parts for volume in part.volumes]
    names = unique_names(volume.name for volume in volumes)
    patients = _patients_of(volumes)
    named = [
        replace(volume, name=name, patient=patient)
        for volume, name, patient in zip(volumes, names, patients, strict=True)
    ]
    return Sources(
        tuple(dict.fromkeys(name for part in parts for name in part.classes)),
        tuple(named),
        tuple(line for part in parts for line in part.left_out),
        tuple(line for part in parts for line in part.damaged),
        parts[0].folds if len(parts) == 1 else (),
    )


def _patients_of(volumes: Sequence[SourceVolume]) -> list[str]:
    """Patient of each volume, with a number if a patient of another origin has the same name."""
    origins = {volume.patient: volume.origin for volume in reversed(volumes)}  # the first wins
    others = dict.fromkeys(
        (volume.origin, volume.patient)
        for volume in volumes
        if volume.origin != origins[volume.patient]
    )
    numbered = unique_names((patient for _, patient in others), taken=origins)
    name_of = dict(zip(others, numbered, strict=True))
    return [name_of.get((volume.origin, volume.patient), volume.patient) for volume in volumes]


def _find_source(source: str, spacing: tuple[float, float, float] | None) -> Sources:
    if not is_registered(source) and os.path.exists(source):
        if os.path.isfile(os.path.join(source, _TABLE)):
            return _of_deeplesion(Path(source), spacing)
        return _of_scans(source, spacing)
    split = next((split for split in SPLITS if source.endswith(f"_{split}")), None)
    if is_registered(source):
        root = MetadataCatalog.get(source).get("volume_set")
        if root is not None:
            return _of_volume_set(root, read_cached(root), volume_names(source), split, spacing)
    dicts = load_records(source)
    classes = tuple(MetadataCatalog.get(source).thing_classes)
    return Sources(classes, tuple(_volumes_of_dicts(dicts, classes, split, spacing)))


def _of_scans(source: str, spacing: tuple[float, float, float] | None) -> Sources:
    found = find_scans(source, spacing=spacing)
    volumes = [
        SourceVolume(
            c.name, c.name, partial(_read_scan, c), c.files, None, (), os.path.realpath(c.files[0])
        )
        for c in found.candidates
    ]
    return Sources((), tuple(volumes), found.left_out, found.damaged)


def _read_scan(candidate: ScanCandidate) -> ImportedVolume:
    return imported_scan(candidate.read(), candidate.name, candidate.name, ())


def _of_deeplesion(root: Path, spacing: tuple[float, float, float] | None) -> Sources:
    """All splits of a folder in DeepLesion's layout, without images whose files are missing."""
    classes = tuple(lesion_classes(False)["thing_classes"])
    volumes = []
    with read_once():
        table = read_csv(root / _TABLE, CSV_COLUMNS)
        table = table[table["Possibly_noisy"].str.strip() != "1"]
        codes = table["Train_Val_Test"].str.strip()
        rows = {split: table[codes == str(n)] for n, split in enumerate(SPLITS, start=1)}
        named = [split for split in SPLITS if len(rows[split])]
        found = [split for split in named if _has_image(root, rows[split]["File_name"])]
        for split in found or [None]:
            dicts = load_deeplesion(root / _TABLE, root / _IMAGES, split, allow_missing=True)
            volumes += _volumes_of_dicts(dicts, classes, split, spacing)
    left_out = (
        f"{root / _TABLE}: found no image of split {split!r} in {root / _IMAGES}"
        for split in named
        if split not in found
    )
    return Sources(classes, tuple(volumes), tuple(left_out))


def _has_image(root: Path, names: Iterable[str]) -> bool:
    """Whether the file of any of these key slices exists; names are those of the table."""
    folders = (name.rpartition("_")[::2] for name in names)
    return any((root / _IMAGES / folder / file).is_file() for folder, file in folders)


def _of_volume_set(
    root: str,
    volume_set: VolumeSet,
    names: set[str],
    split: str | None,
    spacing: tuple[float, float, float] | None,
) -> Sources:
    """The volumes with these names in a volume set, all in ``split`` if it is given."""
    split_of = {p: split for split, patients in volume_set.splits.items() for p in patients}
    volumes = [
        SourceVolume(
            volume.name,
            volume.patient,
            partial(_read_volume, os.path.join(root, volume.image), volume, spacing),
            (os.path.join(root, volume.image), os.path.join(root, "volume_set.json")),
            split or split_of.get(volume.patient),
            volume_set.classes,
        )
        for volume in volume_set.volumes
        if volume.name in names
    ]
    folds = volume_set.folds if split is None else ()
    return Sources(volume_set.classes, tuple(volumes), folds=folds)


def _read_volume(
    file: str, volume: Volume, spacing: tuple[float, float, float] | None
) -> ImportedVolume:
    voxels = read_voxels(file, 0, volume.shape[0])
    return ImportedVolume(voxels, replace(volume, spacing=volume.spacing or spacing))


def _volumes_of_dicts(
    dicts: Sequence[Mapping],
    classes: tuple[str, ...],
    split: str | None,
    spacing: tuple[float, float, float] | None,
) -> Iterator[SourceVolume]:
    """Yield the volumes of slices that are given as Detectron2's dicts.

    Slices are grouped by folder and by their key ``volume``, if there is one (sub-volumes may share
    a folder); each run of consecutive slices is a volume.
    """
    series: dict[tuple[str, str | None], list[Mapping]] = {}
    for image in dicts:
        key = (os.path.dirname(image["file_name"]), image.get("volume"))
        series.setdefault(key, []).append(image)
    root = os.path.commonpath([Path(folder).absolute().parents[1] for folder, _ in series])
    listed: dict[str, dict[int, str]] = {}
    for (folder, volume), images in series.items():
        if folder not in listed:
            listed[folder] = slice_files(folder)
        files, images = listed[folder], {_number(image): image for image in images}
        slice_range = next(iter(images.values())).get("slice_range")
        if volume is not None and slice_range is not None:
            begin, end = slice_range
            files = {number: file for number, file in files.items() if begin <= number <= end}
        for run in _runs(sorted(files)):
            shown = {number: images[number] for number in run if number in images}
            if not shown:
                continue
            first = next(iter(shown.values()))
            whole = name = safe_name(volume or stem_of(os.path.basename(folder)))
            if len(run) < len(files):
                name = safe_name(f"{name}_{run[0]}-{run[-1]}")
            patient, origin = first.get("patient", whole), root if "patient" in first else folder
            patient = f"{patient:06d}" if isinstance(patient, int) else str(patient)
            paths = tuple(files[number] for number in run)
            known = spacing if first["spacing"] is None else _floats(first["spacing"])
            read = partial(_read_slices, name, patient, paths, run[0], shown, known)
            yield SourceVolume(name, patient, read, _on_disk(paths), split, classes, origin)


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(map(float, values))


def _on_disk(paths: Sequence[str]) -> tuple[str, ...]:
    """The slices' own files, or the files of their volumes."""
    return tuple(dict.fromkeys(p if os.path.isfile(p) else os.path.dirname(p) for p in paths))


def _number(image: Mapping) -> int:
    return int(Path(image["file_name"]).stem)


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Split ascending numbers into runs of consecutive numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _read_slices(
    name: str,
    patient: str,
    paths: Sequence[str],
    first: int,
    images: Mapping[int, Mapping],
    spacing: tuple[float, float, float] | None,
) -> ImportedVolume:
    """Read a volume from slices; ``images`` has the annotated ones (slice number -> dict)."""
    size = next((image["height"], image["width"]) for image in images.values())
    voxels = np.stack([read_slice(path, size) for path in paths])
    found: dict[object, dict[int, Mapping]] = {}
    for number, image in images.items():
        for index, annotation in enumerate(image["annotations"]):
            key = annotation.get("lesion_id", (number, index))
            found.setdefault(key, {})[number - first] = annotation
    lesions = [_lesion(n, annotations) for n, annotations in enumerate(found.values(), start=1)]
    for lesion, annotations in zip(tuple(lesions), found.values(), strict=True):
        if _is_alone(annotations) and spacing is not None and not lesion.ignore:
            lesions += _unannotated(len(lesions) + 1, lesion, spacing, len(voxels))
    image = next(iter(images.values()))
    volume = Volume(
        name,
        patient,
        "",
        voxels.shape,
        spacing=None if spacing is None else _floats(spacing),
        lesions=tuple(lesions),
        window=image.get("window"),
    )
    return ImportedVolume(voxels, volume)


def _is_alone(annotations: Mapping[int, Mapping]) -> bool:
    """Whether a lesion is annotated on its key slice only, so that its extent is unknown."""
    first = next(iter(annotations.values()))
    if "lesion_id" not in first:
        return True
    return len(annotations) == 1 and bool(first.get("is_key")) and _mask_key(first) is None


def _lesion(id: int, annotations: Mapping[int, Mapping]) -> Lesion:
    """A lesion from its annotations (slice index from 0 -> annotation)."""
    boxes = {z: tuple(map(float, xyxy_box(a))) for z, a in sorted(annotations.items())}
    x1, y1, x2, y2 = zip(*boxes.values(), strict=True)
    masks = {z: _counts(a) for z, a in annotations.items() if _mask_key(a)}
    recist = {z: tuple(map(float, a["recist"])) for z, a in annotations.items() if "recist" in a}
    first = next(iter(annotations.values()))
    return Lesion(
        id,
        first["category_id"],
        (min(x1), min(y1), float(min(boxes)), max(x2), max(y2), float(max(boxes))),
        boxes=boxes,
        masks=masks or None,
        recist=recist or None,
        diameters_mm=max(
            (tuple(a["diameters_mm"]) for a in annotations.values() if "diameters_mm" in a),
            default=None,
        ),
        ignore=is_region(first),
    )


def _mask_key(annotation: Mapping) -> str | None:
    keys = ("segmentation", "true_segmentation")
    return next((key for key in keys if key in annotation), None)


def _counts(annotation: Mapping) -> str:
    return encode_mask(decode_mask(annotation[_mask_key(annotation)]))["counts"]


def _unannotated(
    id: int, lesion: Lesion, spacing: tuple[float, float, float], depth: int
) -> list[Lesion]:
    """A region to ignore on the neighbors of a key slice, which may show its lesion.

    It reaches half of the box's longer side, in mm, to both sides of the key slice.
    """
    x1, y1, z, x2, y2, _ = lesion.box
    reach = int(max((x2 - x1) * spacing[0], (y2 - y1) * spacing[1]) / 2 / spacing[2])
    numbers = range(max(int(z) - reach, 0), min(int(z) + reach + 1, depth))
    boxes = {number: (x1, y1, x2, y2) for number in numbers if number != z}
    if not boxes:
        return []
    box = (x1, y1, float(min(boxes)), x2, y2, float(max(boxes)))
    return [Lesion(id, lesion.category, box, boxes=boxes, ignore=True)]
