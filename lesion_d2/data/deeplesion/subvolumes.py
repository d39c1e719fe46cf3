"""Fully annotated sub-volumes of DeepLesion in Detectron2's catalog: one dict per slice."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ...scans.nifti import is_nifti
from ...structures.boxes import set_first_pixel
from ...utils.values import MAX_LESION_SLICES
from ..formats.problems import raise_problems
from ..roots import resolve_root
from ..slices.ct import slice_size
from ..slices.nifti import nifti_geometry
from ..transforms.borders import slice_files
from .annotation_files import VolumeLesion, read_annotations
from .csv_rows import FIRST_PIXEL, BadCells, cut_boxes, read_csv, spacings, windows
from .key_slices import lesion_classes
from .volume_names import VolumeName

logger = logging.getLogger(__name__)

# File names of Cai et al. for the volumes of each split.
_PUBLISHED = {
    "train": "Revised-Train744.pkl",
    "val": "Revised-Train100.pkl",
    "test": "Revised-Test1071.pkl",
}
_PUBLISHED_3D = "3D-Box.pkl"  # 3-D boxes of some of the test volumes
_COLUMNS = ("File_name", "Spacing_mm_px_", "DICOM_windows")
# DeepLesion's most frequent window, for volumes that are not in DL_info.csv.
_WINDOW = (-175.0, 275.0)


class _Series(NamedTuple):
    spacing: tuple[float, float, float]  # x, y, z in mm
    window: tuple[float, float]  # HU


class _Volume(NamedTuple):
    files: Mapping[int, str]  # slice number -> path, first to last
    size: tuple[int, int]  # height, width
    series: _Series


def load_subvolumes(
    root: str | os.PathLike,
    annotation_file: str | os.PathLike,
    split: str | None = None,
    *,
    slice_numbers: str | None = None,
    box_columns: str | None = None,
    first_pixel: float = FIRST_PIXEL,
) -> list[dict]:
    """Read sub-volumes into Detectron2's dicts, one per slice of every volume.

    A volume has the slices from the first to the last in its name. They are read from the first of
    these that exists: the folders ``Images_png/<volume>`` and
    ``Images_png/<patient>_<study>_<series>``, and ``Images_nifti/<volume>.nii.gz`` or ``.nii``.
    Spacing comes from the NIfTI file's header, or from the first row of the series in
    ``DL_info.csv``; so does ``window``, which is (-175, 275) HU for NIfTI files without a row.

    A dict has the keys of :func:`load_deeplesion`, with the ``slice_index`` of this slice, the
    ``slice_range`` of the volume and the ``image_id`` ``<volume>_<slice>``. In addition, it has
    ``volume``, its name, and ``volume_boxes``, XYXY in pixels of all its lesions; all dicts of a
    volume share this list. An annotation has ``bbox`` (clipped to the image), ``bbox_mode``,
    ``category_id`` 0, ``lesion_id`` (from 1 in each volume) and, on the slice where it was drawn,
    ``is_key`` True. A lesion with a 3-D box has the same box on all its slices, and no ``is_key``.

    Args:
        root: the folder with ``DL_info.csv``, ``Images_png`` and ``Images_nifti``; only the last
            is needed for NIfTI files.
        annotation_file, split, slice_numbers, box_columns: see :func:`read_annotations`.
        first_pixel: the file's coordinate of the center of an image's first pixel, which is (0, 0)
            in the dicts: 1 in DeepLesion's coordinates, which published files use.

    Returns:
        In the order of the file's volumes, then of slices.

    Raises:
        FileNotFoundError: the annotation file, or the ``DL_info.csv`` that is needed, is missing.
        ValueError: the annotations are invalid, see :func:`read_annotations`; a volume or one of
            its slices is missing, a box is outside the image, a NIfTI file is damaged, or
            ``DL_info.csv`` is not readable or has no valid row of a series. All invalid volumes are
            listed.
    """
    root = Path(root)
    options = {"slice_numbers": slice_numbers, "box_columns": box_columns}
    lesions = read_annotations(annotation_file, split, **options)
    problems: list[str] = []
    files = _find_slices(root, lesions, problems)
    raise_problems(annotation_file, problems)
    series = _read_series(root / "DL_info.csv", files)
    dicts = []
    for name, volume_lesions in lesions.items():
        try:
            volume = _open_volume(files[name], series.get(name.series))
            dicts.extend(_volume_dicts(name, volume, volume_lesions, first_pixel))
        except ValueError as error:
            problems.append(f"volume {name}: {error}")
    raise_problems(annotation_file, problems)
    num_lesions = sum(map(len, lesions.values()))
    found = f"{num_lesions} lesions in {len(lesions)} volumes of {len(dicts)} slices"
    logger.info(f"{annotation_file}: {found}")
    return dicts


def register_subvolumes(
    name: str,
    root: str,
    annotation_file: str | None = None,
    split: str | None = None,
    *,
    slice_numbers: str | None = None,
    box_columns: str | None = None,
    first_pixel: float = FIRST_PIXEL,
) -> None:
    """Register sub-volumes with Detectron2; they are read on first use.

    Args:
        name: its name in ``DatasetCatalog``.
        root, split, slice_numbers, box_columns, first_pixel: see :func:`load_subvolumes`;
            ``$DETECTRON2_DATASETS`` in the root is expanded when the data set is read; it defaults
            to "datasets".
        annotation_file: see :func:`load_subvolumes`; None for the first of these that exists in the
            root: ``volumes_<split>.json``, ``volumes_<split>.pkl``, and the split's file by its
            published name, such as ``Revised-Train744.pkl``.

    Raises:
        AssertionError: the name is already registered (Detectron2's check).
    """
    layout = {
        "slice_numbers": slice_numbers,
        "box_columns": box_columns,
        "first_pixel": first_pixel,
    }
    load = partial(_load_registered, root, annotation_file, split, **layout)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        **lesion_classes(False),
        evaluator_type="lesion_volume",
        can_exclude_volumes=True,
        can_be_prepared=True,
    )
    set_first_pixel(name, first_pixel)


def _load_registered(
    root: str, annotation_file: str | None, split: str | None, **layout
) -> list[dict]:
    root = Path(resolve_root(root))
    if annotation_file is not None:
        file = Path(resolve_root(annotation_file))
    else:
        names = [f"volumes_{split}{ending}" for ending in (".json", ".pkl")]
        names += [_PUBLISHED[split]] if split in _PUBLISHED else []
        file = next(filter(Path.is_file, (root / name for name in names)), None)
        if file is None:
            others = " or ".join(names[1:])
            raise FileNotFoundError(f"{root / names[0]}: no such annotation file, nor {others}")
    return load_subvolumes(root, file, split, **layout)


def _register_builtin() -> None:
    root = "$DETECTRON2_DATASETS/DeepLesion"
    for split in _PUBLISHED:
        name = f"deeplesion_volumes_{split}"
        if name not in DatasetCatalog:  # may be registered if this module is imported again
            register_subvolumes(name, root, split=split)
    if "deeplesion_volumes_3d" not in DatasetCatalog:
        register_subvolumes("deeplesion_volumes_3d", root, f"{root}/{_PUBLISHED_3D}")


def _find_slices(
    root: Path, names: Iterable[VolumeName], problems: list[str]
) -> dict[VolumeName, dict[int, str]]:
    """Slice number -> path, for every complete volume."""
    found: dict[VolumeName, dict[int, str]] = {}
    listed: dict[Path, dict[int, str]] = {}
    for name in names:
        folder = _find_folder(root, name)
        if folder is None:
            problems.append(
                f"volume {name}: found no folder Images_png/{name} or Images_png/{name.series}, "
                f"nor Images_nifti/{name}.nii.gz, expected one of them in {root}"
            )
            continue
        if folder not in listed:
            listed[folder] = slice_files(folder)
        # Count existing slices, not those of the name, which may be arbitrarily many.
        files = {n: f for n, f in listed[folder].items() if name.first <= n <= name.last}
        num_missing = name.last - name.first + 1 - len(files)
        if num_missing:
            first = next(n for n in range(name.first, name.last + 1) if n not in files)
            more = f" and {num_missing - 1} more" if num_missing > 1 else ""
            problems.append(
                f"volume {name}: found no slice {first}{more} in {folder}, expected all from "
                f"{name.first} to {name.last}"
            )
            continue
        found[name] = files
    return found


def _find_folder(root: Path, name: VolumeName) -> Path | None:
    """The folder or NIfTI file of a volume's slices."""
    for folder in (root / "Images_png" / name.text, root / "Images_png" / name.series):
        if folder.is_dir():
            return folder
    files = [root / "Images_nifti" / f"{name}{ending}" for ending in (".nii.gz", ".nii")]
    return next(filter(Path.is_file, files), None)


def _read_series(
    csv_file: Path, volumes: Mapping[VolumeName, Mapping[int, str]]
) -> dict[str, _Series]:
    """Spacing and window of the series in ``DL_info.csv``; needed for PNG files."""
    needed = {n.series for n, files in volumes.items() if not is_nifti(_folder(files))}
    if not needed and not csv_file.is_file():
        return {}
    if not csv_file.is_file():
        raise FileNotFoundError(f"{csv_file}: no such file, expected the spacing of each series")
    table = read_csv(csv_file, _COLUMNS)
    table["series"] = table["File_name"].str.rsplit("_", n=1).str[0]
    wanted = {name.series for name in volumes}
    rows = table[table["series"].isin(wanted)].drop_duplicates("series")
    missing = sorted(needed - set(rows["series"]))
    bad = BadCells(csv_file)
    values = zip(spacings(rows, bad).tolist(), windows(rows, bad).tolist(), strict=True)
    problems = [f"found no row of series {name}, expected one" for name in missing]
    raise_problems(csv_file, problems + bad.problems())
    return {
        name: _Series(tuple(spacing), tuple(window))
        for name, (spacing, window) in zip(rows["series"], values, strict=True)
    }


def _folder(files: Mapping[int, str]) -> str:
    return os.path.dirname(next(iter(files.values())))


def _open_volume(files: Mapping[int, str], series: _Series | None) -> _Volume:
    folder = _folder(files)
    if not is_nifti(folder):
        return _Volume(files, slice_size(next(iter(files.values()))), series)
    size, spacing = nifti_geometry(folder)
    return _Volume(files, size, _Series(spacing, _WINDOW if series is None else series.window))


def _volume_dicts(
    name: VolumeName, volume: _Volume, lesions: Sequence[VolumeLesion], first_pixel: float
) -> list[dict]:
    height, width = volume.size
    num_slices = sum(lesion.last - lesion.first + 1 for lesion in lesions)
    if num_slices > MAX_LESION_SLICES:
        raise ValueError(
            f"found lesions on {num_slices} slices in total, expected at most {MAX_LESION_SLICES}"
        )
    boxes = [_cut(lesion, height, width, first_pixel) for lesion in lesions]
    dicts = {
        number: {
            "file_name": file,
            "image_id": f"{name}_{Path(file).stem}",
            "height": height,
            "width": width,
            "spacing": volume.series.spacing,
            "slice_range": (name.first, name.last),
            "slice_index": number,
            "patient": name.patient,
            "study": name.study,
            "series": name.series_number,
            "window": volume.series.window,
            "volume": name.text,
            "volume_boxes": boxes,
            "annotations": [],
        }
        for number, file in volume.files.items()
    }
    for number, (lesion, box) in enumerate(zip(lesions, boxes, strict=True), start=1):
        for index in range(lesion.first, lesion.last + 1):
            annotation = {
                "bbox": list(box),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 0,
                "lesion_id": number,
            }
            if index == lesion.key_slice:
                annotation["is_key"] = True
            dicts[index]["annotations"].append(annotation)
    return list(dicts.values())


def _cut(lesion: VolumeLesion, height: int, width: int, first_pixel: float) -> list[float]:
    """A lesion's box in pixels of the image, clipped to it."""
    box = np.array([lesion.box]) - first_pixel
    cut, is_inside = cut_boxes(box, np.array([[width, height]]))
    if not is_inside[0]:
        raise ValueError(
            f"found the box {list(lesion.box)}, expected one inside the {width} x {height} pixels"
        )
    return cut[0].tolist()


_register_builtin()
