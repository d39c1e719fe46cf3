"""Lists the series with structure sets or segmentations of lesions."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from ...data.volume_set.form import lesion_of_mask
from ...scans import ScanCandidate
from ..case import Case, ImportedVolume, Listing
from ..dicom_series import list_series, other_files
from ..scan_volumes import imported_scan
from .regions import MODALITIES, RegionFile, read_region_file, region_masks

_CLASS = "lesion"
_NEIGHBORS = np.ones((3, 3, 3), bool)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``import_data dicom``."""
    parser.add_argument("root", type=Path, help="folder of all DICOM files, of any depth")
    parser.add_argument(
        "--roi",
        action="append",
        required=True,
        metavar="[CLASS=]REGEX",
        help="regular expression, searched in segment labels and ROI names (case-insensitive): "
        "matching regions are lesions of this class (default: lesion); the first match is used",
    )
    parser.add_argument(
        "--components", action="store_true", help="each connected part of a region is a lesion"
    )
    parser.add_argument(
        "--with-unannotated",
        action="store_true",
        help="include series without segmentations and structure sets, as scans without lesions "
        "(default: leave them out)",
    )


def list_cases(args: argparse.Namespace) -> Listing:
    """The listing for arguments of the command.

    Raises:
        ValueError: ``--roi`` has no regular expression.
    """
    rois: dict[str, list[str]] = {}
    for text in args.roi:
        found = re.fullmatch(r"(?:([\w -]+)=)?(.+)", text)
        if found is None:
            raise ValueError(f"--roi: found {text!r}, expected [CLASS=]REGEX")
        rois.setdefault(found[1] or _CLASS, []).append(found[2])
    return list_dicom(
        args.root,
        {name: "|".join(f"(?:{regex})" for regex in regexes) for name, regexes in rois.items()},
        components=args.components,
        with_unannotated=args.with_unannotated,
        progress=True,
    )


def list_dicom(
    root: str | os.PathLike,
    rois: Mapping[str, str],
    *,
    components: bool = False,
    with_unannotated: bool = False,
    progress: bool = False,
) -> Listing:
    """List the CT series that structure sets and segmentations refer to.

    Regions become lesions on the voxels of the series: segmentations on another grid and contours
    between slices are refused. A contour of a region inside another one on the same slice is a hole
    (the even-odd rule). All files that refer to a series are used.

    Args:
        root: the folder with all DICOM files.
        rois: class -> regular expression searched in names of regions, case-insensitive; the first
            matching class is used.
        components: whether each connected component of a region (26 neighbors) is a lesion, rather
            than each region.
        with_unannotated: include series without such a file, as scans without a lesion.
        progress: show a progress bar over files.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a regular expression is invalid.
    """
    patterns = [_pattern(regex) for regex in rois.values()]
    series, found = list_series(root, progress=progress)
    files, damaged = _region_files(root, series)
    # The listing of series reports files of regions as not being CT.
    ends = tuple(f"{modality!r}, expected CT" for modality in MODALITIES)
    left_out = [line for line in found.left_out if not line.endswith(ends)]
    by_series: dict[str, list[tuple[RegionFile, dict[int, int]]]] = {}
    known = {entry.candidate.series_uid for entry in series}
    for file in files:
        wanted, others = _chosen(file, patterns)
        if others:
            left_out.append(f"{file.file}: no --roi matches the regions {', '.join(others)}")
        for uid in file.series_uids:
            by_series.setdefault(uid, []).append((file, wanted))
        if not known.intersection(file.series_uids):
            left_out.append(f"{file.file}: found no CT series that it refers to")
    cases = []
    for name, patient, candidate in series:
        entries = by_series.get(candidate.series_uid, [])
        if not entries and not with_unannotated:
            left_out.append(f"{candidate.source}: found no segmentation or structure set of it")
            continue
        read = partial(_read_case, candidate, name, patient, entries, components)
        sources = (*candidate.files, *(file.file for file, _ in entries))
        cases.append(Case(name, patient, read, sources))
    return Listing(
        tuple(rois),
        tuple(cases),
        (*left_out, *damaged),
        (*found.damaged, *damaged),
        options={"rois": dict(rois), "components": components},
    )


def _pattern(regex: str) -> re.Pattern:
    try:
        return re.compile(regex, re.IGNORECASE)
    except re.error as error:
        raise ValueError(
            f"--roi: found {regex!r}, expected a regular expression ({error})"
        ) from None


def _region_files(root: str | os.PathLike, series: Sequence) -> tuple[list[RegionFile], list[str]]:
    """Files of regions, and lines on damaged ones."""
    files, damaged = [], []
    for file in other_files(root, series):
        try:
            found = read_region_file(file)
        except (ValueError, OSError) as error:
            damaged.append(str(error))
            continue
        if found is not None:
            files.append(found)
    return files, damaged


def _chosen(file: RegionFile, patterns: Sequence[re.Pattern]) -> tuple[dict[int, int], list[str]]:
    """Number -> class of the regions that are lesions, and names of the others."""
    wanted, others = {}, []
    for number, name in file.names.items():
        matches = (index for index, pattern in enumerate(patterns) if pattern.search(name))
        category = next(matches, None)
        if category is None:
            others.append(repr(name))
        else:
            wanted[number] = category
    return wanted, others


def _read_case(
    candidate: ScanCandidate,
    name: str,
    patient: str,
    entries: Sequence[tuple[RegionFile, dict[int, int]]],
    components: bool,
) -> ImportedVolume:
    scan = candidate.read()
    lesions, left_out = [], []
    for file, wanted in entries:
        for number, mask in region_masks(file, wanted, scan):
            region = file.names[number]
            if not mask.any():
                left_out.append(f"{file.file}: region {region!r} has no voxel on {name}")
                continue
            for part, offset in _parts(mask, components):
                lesions.append(
                    lesion_of_mask(
                        len(lesions) + 1,
                        wanted[number],
                        part,
                        offset=offset,
                        shape=mask.shape,
                        attributes={"region": region},
                    )
                )
    return imported_scan(scan, name, patient, lesions, left_out)


def _parts(mask: np.ndarray, components: bool) -> list[tuple[np.ndarray, list[int]]]:
    """Crop a mask, or its components, with the start (z, y, x) of each crop."""
    labels = ndimage.label(mask, _NEIGHBORS)[0] if components else mask.astype(np.uint8)
    regions = enumerate(ndimage.find_objects(labels), start=1)
    return [
        (labels[region] == number, [axis.start for axis in region]) for number, region in regions
    ]
