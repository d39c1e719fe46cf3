"""CT series of a folder, each with its patient."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..files import one_line
from ..scans import ScanCandidate, ScanList, find_scans
from ..scans.dicom.files import quiet, read_dataset
from ..scans.names import safe_name, unique_names


class PatientSeries(NamedTuple):
    """A CT series that can be read.

    Args:
        name: of its volume: the patient's, numbered where there are several.
        patient: Patient ID.
        candidate: the scan.
    """

    name: str
    patient: str
    candidate: ScanCandidate


def list_series(
    root: str | os.PathLike, *, progress: bool = False
) -> tuple[list[PatientSeries], ScanList]:
    """List the CT series of a folder, and tell the patients.

    A series without a Patient ID is a patient of its own, named by its UID.

    Returns:
        The DICOM series; and all that was found, with what is none and why.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f"{root}: no such folder, expected one with DICOM series")
    found = find_scans([root], progress=progress)
    candidates = [c for c in found.candidates if c.format == "dicom" and os.path.isfile(c.files[0])]
    candidates.sort(key=lambda candidate: candidate.files[0])
    patients = [_patient(candidate) for candidate in candidates]
    names = unique_names(map(safe_name, patients))
    return [PatientSeries(*entry) for entry in zip(names, patients, candidates, strict=True)], found


def other_files(root: str | os.PathLike, series: Sequence[PatientSeries]) -> Iterator[Path]:
    """All files below a folder that are not of these series, in order of their names."""
    known = {file for entry in series for file in entry.candidate.files}
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            file = Path(folder, name)
            if not name.startswith(".") and os.path.realpath(file) not in known:
                yield file


def _patient(candidate: ScanCandidate) -> str:
    try:
        with quiet(), open(candidate.files[0], "rb") as opened:
            dataset = read_dataset(opened, stop_before_pixels=True, specific_tags=["PatientID"])
        text = one_line(dataset.get("PatientID") or "")
    except (ValueError, OSError):  # an archive: its members are not looked into
        text = ""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text or candidate.series_uid or candidate.name
