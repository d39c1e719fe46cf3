"""CT series in a folder, with their patients."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..scans import ScanCandidate, ScanList, find_scans
from ..scans.dicom.files import quiet, read_dataset
from ..scans.names import safe_name, unique_names
from ..scans.stored import files_below
from ..utils.files import printable


class PatientSeries(NamedTuple):
    """A CT series that can be read.

    Args:
        name: name of its volume: the patient, numbered if there are several.
        patient: Patient ID.
        candidate: the scan.
    """

    name: str
    patient: str
    candidate: ScanCandidate


def list_series(
    root: str | os.PathLike, *, progress: bool = False
) -> tuple[list[PatientSeries], ScanList]:
    """List the CT series in a folder with their patients.

    A series without a Patient ID counts as its own patient, named by its UID. Zip archives are left
    out, as files of readers and regions are only searched in folders.

    Returns:
        The DICOM series, and the full search result with what was left out and why.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f"{root}: no such folder, expected one with DICOM series")
    found = find_scans([root], progress=progress)
    archives = [str(file) for file in other_files(root, ()) if file.suffix.lower() == ".zip"]
    lines = [f"{file}: found an archive, expected a folder; unpack it" for file in archives]
    found = replace(found, left_out=(*found.left_out, *lines))
    archives = set(map(os.path.realpath, archives))
    candidates = [
        c for c in found.candidates if c.format == "dicom" and archives.isdisjoint(c.files)
    ]
    candidates.sort(key=lambda candidate: candidate.files[0])
    patients = [_patient(candidate) for candidate in candidates]
    names = unique_names(map(safe_name, patients))
    return [PatientSeries(*entry) for entry in zip(names, patients, candidates, strict=True)], found


def other_files(root: str | os.PathLike, series: Sequence[PatientSeries]) -> Iterator[Path]:
    """All files below a folder that do not belong to these series, sorted by name.

    As in the search for series, links are followed, and hidden files and folders are skipped.
    """
    known = {file for entry in series for file in entry.candidate.files}
    for folder, names in files_below(os.fspath(root), lambda folder: False):
        for name in names:
            file = Path(folder, name)
            if not known or os.path.realpath(file) not in known:
                yield file


def _patient(candidate: ScanCandidate) -> str:
    try:
        with quiet(), open(candidate.files[0], "rb") as opened:
            dataset = read_dataset(opened, stop_before_pixels=True, specific_tags=["PatientID"])
        text = printable(dataset.get("PatientID") or "")
    except Exception:  # pydicom raises any kind of error for damaged values
        text = ""
    return text or candidate.series_uid or candidate.name
