"""Phantom volumes in Detectron2's catalog: every slice on disk, boxes on every slice of a lesion.

DeepLesion has boxes on key slices only. The phantoms' ``true_volumes.json`` has the mask of every
lesion on every slice; the boxes for 3-D detection are computed from these masks by the same rule.
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ...structures.boxes import mask_extent
from ...structures.lesion_types import COARSE_TYPES
from ...structures.recist import measure_recist, recist_box, recist_lengths
from ...structures.rle import check_mask, decode_mask
from ...utils.files import read_json
from ...utils.values import is_whole
from ..deeplesion.csv_rows import cut_boxes
from ..deeplesion.key_slices import lesion_classes, load_deeplesion
from ..formats.problems import short_repr
from ..roots import resolve_root
from ..transforms.borders import slice_files

logger = logging.getLogger(__name__)

_SPLITS = ("train", "val", "test")
_FOLDERS = ("phantom", "phantom_columns", "phantom_clinical")
# Share of the training patients that are fully annotated, like the 744 sub-volumes of DeepLesion in
# Cai et al. and Bai et al. The value is our choice.
_ANNOTATED_SHARE = 0.2
_ENTRY_KEYS = ("image_id", "row", "masks")
_SLICE_NUMBER = re.compile("0|[1-9][0-9]{0,8}")
# Number of cached measurements: a run reads its data set several times.
_MAX_MEASURED = 2**15


def load_volumes(
    root: str | os.PathLike,
    split: str | None,
    *,
    coarse_types: bool = False,
    patients_share: float = 1.0,
) -> list[dict]:
    """Read a phantom data set into Detectron2's dicts, one per slice on disk.

    Slices without lesions are included, and gaps between the slice numbers of a series remain gaps.
    A dict has the keys of :func:`load_deeplesion`, with ``slice_index`` and ``image_id`` of this
    slice, and in addition ``volume``, ``<patient>_<study>_<series>``, and ``volume_boxes``: per
    lesion, the union of its boxes on all slices, XYXY in pixels; all dicts of a volume share this
    list. Dicts are sorted by the file's series, then by slice.

    An annotation has the keys of one on a key slice, and ``lesion_id``, the same on all slices of
    the lesion: its line number in ``DL_info.csv``, as ``row``. On its key slice ``is_key`` is True.
    ``recist``, ``bbox`` and ``diameters_mm`` are computed from the lesion's mask on this slice
    by DeepLesion's rule, rounded as in ``DL_info.csv``: on the key slice they equal those of the
    file. A single pixel has diameters too, so no mask is too small for a box. The mask is
    ``true_segmentation``, COCO's RLE. Only 3-D models are trained on it; DeepLesion has no masks,
    so 2-D models are trained without it.

    Args:
        root: the folder that holds ``DL_info.csv``, ``Images_png`` and ``true_volumes.json``.
        split: "train", "val" or "test"; None for all rows.
        coarse_types: use ``category_id`` 0..7 for the coarse types 1..8 instead of 0 for every
            lesion.
        patients_share: share of the split's patients to use, those with the lowest numbers;
            rounded, at least one patient.

    Raises:
        FileNotFoundError: a file is missing in ``root``.
        ValueError: the share is not in (0, 1], ``DL_info.csv`` is bad (see
            :func:`load_deeplesion`), ``true_volumes.json`` is not readable or does not match it, a
            mask is empty, its size differs from the slice's or its slice is not on disk, or a
            lesion's coarse type is unknown and ``coarse_types`` is set.
    """
    root = Path(root)
    key_slices = load_deeplesion(root / "DL_info.csv", root / "Images_png", split, first_pixel=0.0)
    key_slices = _of_first_patients(key_slices, patients_share)
    lesions = read_lesion_masks(root / "true_volumes.json", key_slices)
    if coarse_types:
        _check_types(root / "DL_info.csv", key_slices)
    series: dict[str, list[dict]] = {}
    for key_slice in key_slices:
        series.setdefault(os.path.dirname(key_slice["file_name"]), []).append(key_slice)
    dicts = []
    for keys in series.values():
        dicts += _volume_dicts(keys, lesions, root, coarse_types=coarse_types)
    num_lesions = sum(len(key_slice["annotations"]) for key_slice in key_slices)
    logger.info(
        f"{root}, split {split!r}: {num_lesions} lesions in {len(series)} volumes of {len(dicts)} "
        "slices"
    )
    return dicts


def _volume_dicts(
    keys: Sequence[dict], lesions: Mapping[int, Mapping], root: Path, *, coarse_types: bool
) -> list[dict]:
    """All slices of a volume, in order.

    Args:
        keys: dicts of its key slices.
        lesions: row -> masks, see :func:`read_lesion_masks`.
        root, coarse_types: see :func:`load_volumes`.
    """
    slices = _slice_dicts(os.path.dirname(keys[0]["file_name"]), keys[0])
    for key_slice, annotation in ((k, a) for k in keys for a in k["annotations"]):
        masks = lesions[annotation["row"]]
        where = f"{root / 'true_volumes.json'}, row {annotation['row']}"
        added = _add_lesion(slices, annotation, masks, where, coarse_types)
        added[key_slice["slice_index"]]["is_key"] = True
    _add_volume_boxes(slices)
    return [slices[number] for number in sorted(slices)]


def register_volumes(
    name: str,
    root: str,
    split: str | None,
    *,
    coarse_types: bool = False,
    patients_share: float = 1.0,
    never_hidden: bool = False,
) -> None:
    """Register the volumes of a phantom data set with Detectron2; they are read on first use.

    Args:
        name: its name in ``DatasetCatalog``.
        root, split, coarse_types, patients_share: see :func:`load_volumes`;
            ``$DETECTRON2_DATASETS`` in the root is expanded when the data set is read; it defaults
            to "datasets".
        never_hidden: add empty ``hidden_annotations`` to the dicts, so that the data set stays
            fully annotated in a run with simulated missing annotations.

    Raises:
        AssertionError: the name is already registered (Detectron2's check).
    """
    load = partial(
        _load_registered,
        root,
        split,
        never_hidden,
        coarse_types=coarse_types,
        patients_share=patients_share,
    )
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        **lesion_classes(coarse_types),
        evaluator_type="lesion_volume",
        can_exclude_volumes=True,
        can_be_prepared=True,
    )


def _load_registered(root: str, split: str | None, never_hidden: bool, **options) -> list[dict]:
    dicts = load_volumes(resolve_root(root), split, **options)
    if never_hidden:
        for image in dicts:
            image["hidden_annotations"] = []
    return dicts


def _register_builtin() -> None:
    types = (("", False), ("_types", True))
    for folder, split, (suffix, coarse_types) in product(_FOLDERS, _SPLITS, types):
        name = f"{folder}_volumes_{split}{suffix}"
        if name not in DatasetCatalog:  # may be registered if this module is imported again
            root = f"$DETECTRON2_DATASETS/{folder}"
            register_volumes(name, root, split, coarse_types=coarse_types)
    for folder in _FOLDERS:
        name = f"{folder}_volumes_annotated"
        if name not in DatasetCatalog:
            register_volumes(
                name,
                f"$DETECTRON2_DATASETS/{folder}",
                "train",
                patients_share=_ANNOTATED_SHARE,
                never_hidden=True,
            )


def _of_first_patients(key_slices: list[dict], share: float) -> list[dict]:
    if not 0 < share <= 1:
        raise ValueError(f"found patients_share {share}, expected a share in (0, 1]")
    patients = sorted({image["patient"] for image in key_slices})
    kept = set(patients[: max(1, round(share * len(patients)))])
    return [image for image in key_slices if image["patient"] in kept]


def read_lesion_masks(file: Path, key_slices: Iterable[Mapping]) -> dict[int, dict[int, dict]]:
    """Read the true masks of all lesions on the given key slices of a phantom data set.

    Args:
        file: ``true_volumes.json``.
        key_slices: dicts of :func:`load_deeplesion`, of one split or all.

    Returns:
        Line in ``DL_info.csv`` -> slice number -> COCO's RLE.

    Raises:
        ValueError: the file is not readable, or does not match the key slices.
    """
    sizes = {image["image_id"]: (image["height"], image["width"]) for image in key_slices}
    rows = {a["row"]: image["image_id"] for image in key_slices for a in image["annotations"]}
    key_of = {image["image_id"]: image["slice_index"] for image in key_slices}
    lesions: dict[int, dict[int, dict]] = {}
    for number, entry in enumerate(_read_entries(file)):
        row, image_id = entry["row"], entry["image_id"]
        if row not in rows and image_id not in sizes:
            continue  # in another split
        if rows.get(row) != image_id:
            raise ValueError(
                f"{file}, entry {number}: found row {row} on {image_id}, expected a lesion of "
                "DL_info.csv"
            )
        if row in lesions:
            raise ValueError(f"{file}: found row {row} twice, expected once")
        for index, rle in entry["masks"].items():
            try:
                check_mask(rle, sizes[image_id])
            except ValueError as error:
                raise ValueError(f"{file}, row {row}, slice {index}: {error}") from None
        lesions[row] = {int(index): rle for index, rle in entry["masks"].items()}
        if key_of[image_id] not in lesions[row]:
            raise ValueError(
                f"{file}, row {row}: found no mask on the key slice {key_of[image_id]}, expected "
                "one"
            )
    missing = sorted(rows.keys() - lesions.keys())
    if missing:
        raise ValueError(
            f"{file}: found no entry for {len(missing)} rows of DL_info.csv (the first: "
            f"{missing[0]}), expected one per row"
        )
    return lesions


def _read_entries(file: Path) -> list[dict]:
    entries = read_json(file, "masks on all slices")
    if not isinstance(entries, list):
        raise ValueError(f"{file}: found a {type(entries).__name__}, expected a list of lesions")
    for number, entry in enumerate(entries):
        if not _is_entry(entry):
            raise ValueError(
                f"{file}, entry {number}: found {short_repr(entry)}, expected a lesion with "
                f"{', '.join(_ENTRY_KEYS)} (slice number to run lengths)"
            )
    return entries


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and all(key in entry for key in _ENTRY_KEYS)
        and isinstance(entry["image_id"], str)
        and is_whole(entry["row"])
        and isinstance(entry["masks"], dict)
        and all(map(_SLICE_NUMBER.fullmatch, entry["masks"]))
    )


def _check_types(csv_file: Path, key_slices: Iterable[Mapping]) -> None:
    for annotation in (a for image in key_slices for a in image["annotations"]):
        if annotation["coarse_type"] < 1:
            raise ValueError(
                f"{csv_file}, row {annotation['row']}: found coarse type "
                f"{annotation['coarse_type']}, expected 1 to {len(COARSE_TYPES)}"
            )


def _slice_dicts(folder: str, key_slice: Mapping) -> dict[int, dict]:
    """Slice number -> dict without annotations, for all slices in a series' folder."""
    volume = os.path.basename(folder)
    return {
        number: {
            **key_slice,
            "file_name": file,
            "image_id": f"{volume}_{Path(file).stem}",
            "slice_index": number,
            "volume": volume,
            "annotations": [],
        }
        for number, file in slice_files(folder).items()
    }


def _add_lesion(
    slices: Mapping[int, dict],
    key_annotation: Mapping,
    masks: Mapping[int, dict],
    where: str,
    coarse_types: bool,
) -> dict[int, dict]:
    """Annotate one lesion on all its slices; ``where`` prefixes error messages.

    Returns:
        Slice number -> its annotation.
    """
    added = {}
    row, coarse_type = key_annotation["row"], key_annotation["coarse_type"]
    for number, rle in masks.items():
        if number not in slices:
            raise ValueError(f"{where}: found a mask on slice {number}, which is not on disk")
        image = slices[number]
        try:
            recist = _measure(rle["counts"], image["height"], image["width"])
        except ValueError as error:
            raise ValueError(f"{where}, slice {number}: {error}") from None
        added[number] = {
            **_measurements(recist, image),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": coarse_type - 1 if coarse_types else 0,
            "coarse_type": coarse_type,
            "row": row,
            "lesion_id": row,
            "true_segmentation": rle,
        }
        image["annotations"].append(added[number])
    return added


def _add_volume_boxes(slices: Mapping[int, dict]) -> None:
    """Add one shared list of the lesions' in-plane extents to all slices."""
    boxes: dict[int, list] = {}
    for annotation in (a for image in slices.values() for a in image["annotations"]):
        boxes.setdefault(annotation["lesion_id"], []).append(annotation["bbox"])
    extents = [
        [*np.min(found, axis=0)[:2].tolist(), *np.max(found, axis=0)[2:].tolist()]
        for found in boxes.values()
    ]
    for image in slices.values():
        image["volume_boxes"] = extents


def _measurements(recist: tuple[float, ...], image: Mapping) -> dict:
    box = _round(recist_box(recist))
    cut, _ = cut_boxes(np.array([box]), np.array([[image["width"], image["height"]]]))
    diameters = _round(recist_lengths(recist))
    return {
        "bbox": cut[0].tolist(),
        "recist": list(recist),
        "diameters_mm": tuple(d * float(np.mean(image["spacing"][:2])) for d in diameters),
    }


@lru_cache(_MAX_MEASURED)
def _measure(counts: str, height: int, width: int) -> tuple[float, ...]:
    """RECIST end points of a run-length encoded mask, (8,) in pixels.

    Raises:
        ValueError: the mask is empty.
    """
    mask = decode_mask({"size": [height, width], "counts": counts})
    extent = mask_extent(mask)
    if extent is None:
        raise ValueError("found an empty mask, expected at least one pixel")
    # The crop starts at the origin: coordinates, and hence the rounding of ties, do not change.
    return tuple(_round(measure_recist(mask[: extent[0].stop, : extent[1].stop])))


def _round(values: Iterable[float]) -> list[float]:
    """Round to six digits, as in ``DL_info.csv``."""
    return [float(f"{value:.6g}") for value in values]


_register_builtin()
