"""Preprocessed folders of the medical detection toolkit: <pid>_img.npy, <pid>_rois.npy, info_df.

The toolkit's preprocessing of LIDC-IDRI clips HU to -1200..600, normalizes each image and drops its
position in the patient. --hu-range -1200 600 --spacing 0.7 0.7 1.25 reverts this as far as
possible: if the lowest HU of a scan was above -1200, air becomes too dark. If you have the DICOM
files, use the format lidc, which is exact.

Annotations are read from the first of info_df.csv, info_df.pickle and meta_info_<pid>.pickle that
exists (pickles with a restricted unpickler). Their columns or keys are pid and class_target, which
has one number per region of <pid>_rois.npy, in order, for example "[1.5, 4]" in info_df.csv.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tokenize import TokenError

import numpy as np

from ...data.formats.problems import short_repr
from ...data.formats.restricted_pickle import load_pickle
from ...data.volume_set.form import Lesion, Volume
from ...scans.limits import check_size
from ...scans.names import safe_name, unique_names
from ...structures.slice_geometry import EXPECTED_SPACING, is_spacing
from ...utils.files import one_line
from ..case import Case, ImportedVolume, Listing
from ..task_folders.label_maps import instance_lesions
from ..task_folders.split_files import patient_names
from .tables import read_targets

_INT16 = np.iinfo(np.int16)
_RATED = ("benign", "malignant")
_MALIGNANT = 3.0  # the toolkit's threshold of mean ratings
_MAX_RATING = 5.0
_MIN_HU_RANGE = 100  # values of normalized images span a few standard deviations
# What NumPy raises for damaged arrays; their headers are Python literals.
_DAMAGED = (
    ValueError,
    OSError,
    EOFError,
    OverflowError,
    SyntaxError,
    TokenError,
    RecursionError,
    MemoryError,
)
_IMAGE, _ROIS = "_img.npy", "_rois.npy"


@dataclass(frozen=True)
class MdtOptions:
    """Options for reading a folder of the toolkit.

    Args:
        spacing: x, y, z of the arrays' voxels in mm; None if unknown. The toolkit's tables have the
            spacing before resampling.
        hu_range: HU of the lowest and highest value of each image; None if the values are HU.
        head_first: whether the first slice is nearest to the head. In arrays of SimpleITK, it is
            nearest to the feet.
        classes: names of the class targets 0, 1, ...; empty if the targets are ratings from 0 to 5,
            which are converted to benign (below 3) and malignant.
        fold_ids: path of the toolkit's ``fold_ids.pickle``, or None.
        patient_pattern: see :func:`~lesion_d2.importers.task_folders.split_files.patient_names`.
    """

    spacing: tuple[float, float, float] | None
    hu_range: tuple[float, float] | None = None
    head_first: bool = False
    classes: tuple[str, ...] = ()
    fold_ids: str | os.PathLike | None = None
    patient_pattern: str | None = None

    def __post_init__(self):
        if self.spacing is not None and not all(map(is_spacing, self.spacing)):
            raise ValueError(
                f"spacing: found {self.spacing}, expected x, y and z, each {EXPECTED_SPACING}"
            )
        if self.hu_range is not None:
            low, high = self.hu_range
            if not _INT16.min <= low < high <= _INT16.max:
                raise ValueError(f"hu_range: found {self.hu_range}, expected two HU, low < high")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes: found {list(self.classes)}, expected unique names")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`list_cases`."""
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="folder of <pid>_img.npy and info_df.pickle")
    add(
        "--spacing",
        type=float,
        nargs=3,
        required=True,
        metavar=("X", "Y", "Z"),
        help="spacing of the arrays in mm: target_spacing of the preprocessing, for LIDC 0.7 0.7 "
        "1.25",
    )
    add(
        "--hu-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="HU of the lowest and the highest value of each image, -1200 600 for the toolkit's "
        "preprocessing of LIDC",
    )
    add("--head-first", action="store_true", help="the first slice is the one nearest to the head")
    add(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names of the class targets 0, 1, ... (default: targets are ratings from 0 to 5, and "
        "classes benign, below 3, and malignant)",
    )
    add("--fold-ids", metavar="FILE", help="fold_ids.pickle of an experiment")
    add(
        "--patient-pattern",
        metavar="REGEX",
        help="pattern whose first group is the patient in a pid (default: each pid is a patient)",
    )


def list_cases(args: argparse.Namespace) -> Listing:
    """:func:`list_mdt` with a command's options."""
    options = MdtOptions(
        tuple(args.spacing),
        args.hu_range and tuple(args.hu_range),
        args.head_first,
        tuple(args.classes),
        args.fold_ids,
        args.patient_pattern,
    )
    return list_mdt(args.folder, options)


def list_mdt(folder: str | os.PathLike, options: MdtOptions) -> Listing:
    """List the images of a folder that the medical detection toolkit preprocessed.

    ``<pid>_img.npy`` and ``<pid>_rois.npy`` are (Z, H, W) arrays. The latter's regions are numbered
    from 1: region n has the n-th number of ``class_target``.

    Args:
        folder: path of the folder.
        options: options for reading it.

    Raises:
        FileNotFoundError: the folder or its table does not exist.
        ValueError: the table or the file of folds is invalid. Errors of single images are in the
            listing.
    """
    folder = Path(folder)
    table = read_targets(folder)
    damaged, found = list(table.damaged), {}
    for pid, targets in table.targets.items():
        try:
            _check_targets(table.source_of(pid), pid, targets, options)
            found[pid] = _files(folder, pid)
        except (ValueError, OSError) as error:
            damaged.append(one_line(error))
    untold = {p.name.removesuffix(_IMAGE) for p in folder.glob(f"*{_IMAGE}")} - table.targets.keys()
    damaged += [
        f"{folder / pid}{_IMAGE}: found no class_target of {pid!r}" for pid in sorted(untold)
    ]
    patients = patient_names(found, options.patient_pattern)
    names = unique_names(map(safe_name, found))
    cases = tuple(
        Case(
            name,
            patients[pid],
            partial(_read_case, files, table.targets[pid], options, name, patients[pid]),
            (*files, table.source_of(pid)),
        )
        for name, (pid, files) in zip(names, found.items(), strict=True)
    )
    folds = ()
    if options.fold_ids is not None:
        folds = _read_folds(options.fold_ids, sorted(table.targets), patients)
    told = {
        "spacing": options.spacing,
        "hu_range": options.hu_range,
        "head_first": options.head_first,
        "patient_pattern": options.patient_pattern,
    }
    classes = options.classes or _RATED
    return Listing(classes, cases, tuple(damaged), tuple(damaged), folds, told)


def _files(folder: Path, pid: str) -> tuple[str, str]:
    files = tuple(str(folder / f"{pid}{ending}") for ending in (_IMAGE, _ROIS))
    for file in files:
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{file}: no such file")
    return files


def _check_targets(source: str, pid: str, targets: Sequence[float], options: MdtOptions) -> None:
    last = len(options.classes) - 1 if options.classes else _MAX_RATING
    for target in targets:
        is_class = not options.classes or target == int(target)
        if not (0 <= target <= last and is_class):
            expected = f"a class from 0 to {last}" if options.classes else "a rating from 0 to 5"
            raise ValueError(
                f"{source}: {pid!r}: found the class target {target:g}, expected {expected}"
            )


def _read_folds(
    file: str | os.PathLike, pids: list[str], patients: dict[str, str]
) -> tuple[dict[str, tuple[str, ...]], ...]:
    """Read ``fold_ids.pickle``: for each fold, indices into the sorted list of all pids."""
    content, folds = load_pickle(file), []
    if not isinstance(content, (list, tuple)) or not content:
        raise ValueError(f"{file}: found {short_repr(content)}, expected a list of folds")
    for number, entry in enumerate(content):
        parts = list(entry)[:3] if isinstance(entry, (list, tuple, np.ndarray)) else []
        places = [part.tolist() if isinstance(part, np.ndarray) else part for part in parts]
        places = [list(part) if isinstance(part, (list, tuple)) else [None] for part in places]
        places = [[n.item() if isinstance(n, np.integer) else n for n in part] for part in places]
        are_places = all(type(n) is int and 0 <= n < len(pids) for part in places for n in part)
        if len(places) != 3 or not are_places:
            raise ValueError(
                f"{file}: fold {number}: found {short_repr(entry)}, expected three lists "
                f"(train, val, test) of indices from 0 to {len(pids) - 1}"
            )
        names = [{patients[pids[n]] for n in part if pids[n] in patients} for part in places]
        if sum(map(len, names)) != len(set.union(*names)):
            raise ValueError(
                f"{file}: fold {number}: found a patient in two of train, val and test, "
                "expected each in one of them"
            )
        folds.append(
            {s: tuple(sorted(n)) for s, n in zip(("train", "val", "test"), names, strict=True)}
        )
    return tuple(folds)


def _read_case(
    files: tuple[str, str],
    targets: tuple[float, ...],
    options: MdtOptions,
    name: str,
    patient: str,
) -> ImportedVolume:
    image_file, rois_file = files
    image, rois = _load(image_file), _load(rois_file)
    if rois.shape != image.shape:
        raise ValueError(
            f"{rois_file}: found the shape {rois.shape}, expected {image.shape} of "
            f"{os.path.basename(image_file)}"
        )
    if not options.head_first:
        image, rois = image[::-1], rois[::-1]
    labels = _labels(rois_file, rois)
    categories = {n: _category(target, options) for n, target in enumerate(targets, start=1)}
    lesions = instance_lesions(labels, categories, rois_file, "class_target")
    lesions = tuple(_rated(le, targets[le.id - 1]) if not options.classes else le for le in lesions)
    del labels
    place = {"spacing": options.spacing, "window": options.hu_range}
    volume = Volume(name, patient, f"images/{name}", image.shape, lesions=lesions, **place)
    return ImportedVolume(_to_hu(image_file, image, options.hu_range), volume)


def _load(file: str) -> np.ndarray:
    """Memory-map a numeric array with three dimensions."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except _DAMAGED as error:
        raise ValueError(f"{file}: found no readable array ({one_line(error)})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind not in "biuf":
        raise ValueError(f"{file}: found {short_repr(array)}, expected numbers of shape (Z, H, W)")
    check_size(file, array.shape)
    return array


def _labels(file: str, rois: np.ndarray) -> np.ndarray:
    labels = np.empty(rois.shape, np.uint16)
    for target, source in zip(labels, rois, strict=True):
        with np.errstate(invalid="ignore"):
            target[:] = source
        if (target != source).any():
            raise ValueError(f"{file}: found a value that is not an integer from 0 to 65535")
    return labels


def _category(target: float, options: MdtOptions) -> int:
    return int(target) if options.classes else int(target >= _MALIGNANT)


def _rated(lesion: Lesion, rating: float) -> Lesion:
    return replace(lesion, attributes={"malignancy": float(rating)})


def _to_hu(file: str, image: np.ndarray, hu_range: tuple[float, float] | None) -> np.ndarray:
    low, high = float(image.min()), float(image.max())
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{file}: found infinite values or NaN, expected finite numbers")
    if hu_range is None and (high - low < _MIN_HU_RANGE or low >= 0):
        raise ValueError(
            f"{file}: found values from {low:g} to {high:g}, expected HU; for normalized images, "
            "pass --hu-range LOW HIGH (-1200 600 for the toolkit's LIDC preprocessing)"
        )
    if low == high:
        raise ValueError(f"{file}: found {low:g} in all voxels, expected an image")
    scale = 1.0 if hu_range is None else (hu_range[1] - hu_range[0]) / (high - low)
    shift = 0.0 if hu_range is None else hu_range[0] - scale * low
    volume = np.empty(image.shape, np.int16)
    for target, source in zip(volume, image, strict=True):
        hu = source.astype(float) * scale + shift
        target[:] = np.rint(np.clip(hu, _INT16.min, _INT16.max))
    return volume
