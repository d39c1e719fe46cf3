"""Lists the series of LIDC-IDRI."""

import argparse
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...data.volume_set.form import Lesion, lesion_of_mask
from ...scans import Scan, ScanCandidate
from ...structures.slice_geometry import is_spacing
from ...utils.display_windows import WINDOWS
from ..case import Case, ImportedVolume, Listing
from ..dicom_series import list_series, other_files
from ..resampling import resample
from ..scan_volumes import imported_scan
from .nodules import VOTES, Nodule, annotation_mask, cluster_annotations, consensus, split_by_reader
from .xml import Annotation, Contour, Readings, read_readings

CLASSES = ("benign", "malignant")
#: x, y, z in mm, of Jaeger et al., section 4.4.1.
PAPER_SPACING = (0.7, 0.7, 1.25)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``import_data lidc``."""
    parser.add_argument("root", type=Path, help="folder of the DICOM series, of any depth")
    parser.add_argument("--xml", type=Path, help="folder of the XML files (default: the same)")
    parser.add_argument(
        "--votes",
        choices=VOTES,
        default="authors",
        help="count votes of readers as in the published code of Jaeger et al., or as in their "
        "paper (default: authors)",
    )
    parser.add_argument(
        "--resample",
        type=float,
        nargs="*",
        metavar="MM",
        help="resample to a spacing x y z, without numbers 0.7 0.7 1.25 (default: no resampling)",
    )


def list_cases(args: argparse.Namespace) -> Listing:
    """The listing for arguments of the command.

    Raises:
        ValueError: ``--resample`` has other than none or three numbers.
    """
    spacing = args.resample
    if spacing is not None and len(spacing) not in (0, 3):
        raise ValueError(f"--resample: found {len(spacing)} numbers, expected none or x y z")
    if spacing is not None:
        spacing = tuple(spacing) or PAPER_SPACING
    return list_lidc(args.root, args.xml, votes=args.votes, spacing=spacing, progress=True)


def list_lidc(
    root: str | os.PathLike,
    xml_root: str | os.PathLike | None = None,
    *,
    votes: str = "authors",
    spacing: tuple[float, float, float] | None = None,
    progress: bool = False,
) -> Listing:
    """List the CT series of LIDC-IDRI that have an XML file.

    Args:
        root: the folder with the DICOM files.
        xml_root: the folder with the XML files; None for ``root``.
        votes: how votes are counted, see :func:`~lesion_d2.importers.lidc.nodules.consensus`.
        spacing: x, y, z in mm to resample to; None keeps that of each series.
        progress: show a progress bar over files.

    Raises:
        FileNotFoundError: a folder does not exist, or has no XML file of LIDC-IDRI.
        ValueError: ``votes`` or ``spacing`` is invalid.
    """
    if votes not in VOTES:
        raise ValueError(f"votes: found {votes!r}, expected one of {', '.join(VOTES)}")
    if spacing is not None and not all(0.05 <= number <= 50 for number in spacing):
        raise ValueError(f"spacing: found {spacing}, expected x, y and z from 0.05 to 50 mm")
    xml_root = root if xml_root is None else xml_root
    if not os.path.isdir(xml_root):
        raise FileNotFoundError(f"{xml_root}: no such folder, expected one with XML files")
    series, found = list_series(root, progress=progress)
    by_series, left_out, damaged = _find_readings(xml_root, progress)
    cases = []
    largest = {}
    for candidate in sorted((entry.candidate for entry in series), key=lambda c: c.num_slices):
        largest[candidate.series_uid] = candidate
    for name, patient, candidate in series:
        chosen = largest[candidate.series_uid]
        if candidate is not chosen:
            left_out.append(
                f"{candidate.source}: found {candidate.num_slices} slices, but "
                f"{chosen.num_slices} others of its series, which are used instead"
            )
            continue
        entry = by_series.pop(candidate.series_uid, None)
        if entry is None:
            left_out.append(f"{candidate.source}: found no XML file with its annotations")
            continue
        file, readings = entry
        read = partial(_read_case, candidate, name, patient, file, readings, votes, spacing)
        cases.append(Case(name, patient, read, (*candidate.files, file)))
    for file, readings in by_series.values():
        left_out.append(f"{file}: found no CT series {readings.series_uid}, which it annotates")
    return Listing(
        CLASSES,
        tuple(cases),
        (*found.left_out, *left_out, *damaged),
        (*found.damaged, *damaged),
        options={"votes": votes, "spacing": None if spacing is None else list(spacing)},
    )


def _find_readings(
    root: str | os.PathLike, progress: bool
) -> tuple[dict[str, tuple[str, Readings]], list[str], list[str]]:
    """Series UID -> XML file and its content; lines about other files, and about damaged ones."""
    found, others, damaged = {}, [], []
    files = [file for file in other_files(root, ()) if file.suffix.lower() == ".xml"]
    for file in tqdm(files, disable=not progress, unit="XML file"):
        try:
            readings = read_readings(file)
        except (ValueError, OSError) as error:
            damaged.append(str(error))
            continue
        if readings is None:
            others.append(file)
        elif readings.series_uid not in found:
            found[readings.series_uid] = (os.fspath(file), readings)
        elif file.read_bytes() != Path(found[readings.series_uid][0]).read_bytes():
            damaged.append(
                f"{file}: found a second file for series {readings.series_uid} besides "
                f"{found[readings.series_uid][0]}, expected one"
            )
    if not found and not damaged:
        raise FileNotFoundError(f"{root}: found no XML file of LIDC-IDRI in it")
    lines = []
    if others:
        lines.append(f"{others[0]}: found {len(others)} XML files that are not annotations of CT")
    return found, lines, damaged


def _read_case(
    candidate: ScanCandidate,
    name: str,
    patient: str,
    file: str,
    readings: Readings,
    votes: str,
    spacing: tuple[float, float, float] | None,
) -> ImportedVolume:
    scan = candidate.read()
    left_out = []
    if readings.num_small or readings.num_others:
        left_out.append(
            f"{file}: {readings.num_small} marks of nodules below 3 mm and {readings.num_others} "
            "of findings that are not nodules"
        )
    lesions = []
    for nodule, where in _nodules(scan, file, readings.annotations, votes):
        if not nodule.masks:
            left_out.append(f"{where}, readers: {nodule.readers}: no voxel has a majority")
            continue
        lesion = _lesion(len(lesions) + 1, nodule, scan)
        if lesion.ignore:
            left_out.append(f"{where}: no reader gave a malignancy; it becomes a region to ignore")
        lesions.append(lesion)
    imported = imported_scan(scan, name, patient, lesions, left_out, WINDOWS["lung"])
    return imported if spacing is None else resample(imported, spacing)


def _nodules(
    scan: Scan, file: str, annotations: Sequence[Annotation], votes: str
) -> Iterator[tuple[Nodule, str]]:
    """Yield each nodule in stored rows and columns, with its name for messages."""
    shape = scan.to_source_slice(scan.volume[0]).shape
    masks, points = [], []
    for annotation in annotations:
        where = f"{file}, reading session {annotation.reader + 1}, nodule {annotation.nodule!r}"
        try:
            placed = _placed(scan, annotation.contours)
            masks.append(annotation_mask(placed, shape))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        points.append(
            np.concatenate([np.insert(c.points, 2, number, axis=1) for number, c in placed])
        )
    readers = [annotation.reader for annotation in annotations]
    clusters = cluster_annotations(points, _slice_thickness(scan))
    groups = [part for found in clusters for part in split_by_reader(found, readers, masks)]
    for group in groups:
        names = ", ".join(dict.fromkeys(annotations[index].nodule for index in group))
        found = [(annotations[index], masks[index]) for index in group]
        yield consensus(found, votes), f"{file}, nodule {names}"


def _slice_thickness(scan: Scan) -> float:
    """Slice thickness in mm from the header, or the slice spacing if that is missing or invalid."""
    try:
        thickness = float(scan.headers[0].get("SliceThickness") or 0)
    except (TypeError, ValueError):
        thickness = 0.0
    return thickness if is_spacing(thickness) else scan.spacing[2]


def _placed(scan: Scan, contours: Sequence[Contour]) -> list[tuple[int, Contour]]:
    """Contours with the slice of their image, or else the slice at their position.

    If slices were resampled, an image may be the nearest one of several slices.
    """
    slices: dict[str, list[int]] = {}
    for number, source in enumerate(scan.sources):
        slices.setdefault(source.sop_instance_uid or "", []).append(number)
    center = np.array(scan.volume.shape[:0:-1]) / 2  # x, y
    steps = np.column_stack([np.tile(center, (len(scan.sources), 1)), np.arange(len(scan.sources))])
    heights = scan.to_patient(steps)[:, 2]
    placed = []
    for contour in contours:
        numbers = slices.get(contour.sop_instance_uid) if contour.sop_instance_uid else None
        if numbers is None:
            nearest = int(np.abs(heights - contour.z).argmin())
            if abs(heights[nearest] - contour.z) > scan.spacing[2] / 2:
                raise ValueError(
                    f"found a roi at z = {contour.z:g} mm of an image that is not in the series, "
                    f"expected one from {heights.min():g} to {heights.max():g} mm"
                )
            numbers = [nearest]
        placed.extend((number, contour) for number in numbers)
    return placed


def _lesion(id: int, nodule: Nodule, scan: Scan) -> Lesion:
    first, last = min(nodule.masks), max(nodule.masks)
    mask = np.zeros((last - first + 1, *scan.volume.shape[1:]), bool)
    for number, stored in nodule.masks.items():
        mask[number - first] = scan.slice_turn.apply(stored)
    attributes = {"readers": nodule.readers}
    if nodule.malignancy is not None:
        attributes["malignancy"] = round(nodule.malignancy, 4)
    return lesion_of_mask(
        id,
        int(nodule.is_malignant),
        mask,
        offset=(first, 0, 0),
        shape=scan.volume.shape,
        ignore=nodule.malignancy is None,
        attributes=attributes,
    )
