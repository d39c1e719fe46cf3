"""Writes the folder of a scan's results, which is complete or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lesion_d2.engine import InputError
from lesion_d2.findings import Findings, write_coco, write_csv, write_findings, write_label_map
from lesion_d2.scans import Scan
from lesion_d2.utils.files import atomic_folder, one_line, read_json, write_json

STATUS = "status.json"
#: Beside the scans' folders: lists of them, and scans fetched from a PACS.
SUMMARY, INDEX, FETCHED = "summary.csv", "index.html", "fetched"
REPORT = "report.html"
REPORTS = ("short", "full", "none")
#: Results of a DICOM scan: a structured report and, if there are masks, a segmentation.
DICOM_RESULTS = ("structured_report.dcm", "segmentation.dcm")


@dataclass(frozen=True)
class ScanRow:
    """A line of the summary.

    Attributes:
        scan: its name.
        slices, findings, seconds: None if the scan was not predicted.
        error: one line.
        is_old: whether the results are from an earlier call.
    """

    scan: str
    slices: int | None = None
    findings: int | None = None
    seconds: float | None = None
    error: str | None = None
    is_old: bool = False


class OutputError(InputError):
    """Results cannot be written, for instance to a full disk, which affects all scans."""


def is_results(folder: str | os.PathLike) -> bool:
    """Whether a folder was written by this command for a scan."""
    return all(os.path.isfile(os.path.join(folder, name)) for name in (STATUS, "findings.json"))


def check_replaceable(folder: Path) -> None:
    """Refuse to replace files that may be the user's, or the scan itself.

    Raises:
        ValueError: there is something other than results of an earlier call.
    """
    if os.path.lexists(folder) and not is_results(folder):
        raise ValueError(
            f"{folder}: found files that this command did not write, expected a new folder or "
            "earlier results: choose another --output"
        )


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Context manager with a folder to write to; it replaces ``folder`` after a successful block.

    Raises:
        OutputError: a file cannot be written.
    """
    try:
        with atomic_folder(folder) as partial:
            yield partial
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {one_line(error)}") from error


def write_results(
    folder: Path, scan: Scan, findings: Findings, *, report: str, with_identity: bool
) -> list[str]:
    """Write all files of a scan.

    Args:
        folder: existing folder to write to.
        scan, findings: of the scan.
        report: one of :data:`REPORTS`.
        with_identity: whether the report has the patient's identity.

    Returns:
        A line for each file that could not be written, with the reason.
    """
    write_findings(folder / "findings.json", findings)
    write_csv(folder / "findings.csv", [findings])
    write_coco(folder / "coco_instances_results.json", [findings])
    problems = _write_dicom(folder, scan, findings) if scan.format == "dicom" else []
    if scan.grid is not None:
        write_label_map(folder / "labels.nii.gz", scan, findings)
    if report != "none":
        from lesion_d2.findings.report import write_report

        write_report(
            folder / REPORT, scan, findings, full=report == "full", with_identity=with_identity
        )
    return problems


def _write_dicom(folder: Path, scan: Scan, findings: Findings) -> list[str]:
    report, segmentation = DICOM_RESULTS
    try:
        from lesion_d2.findings.dicom import write_segmentation, write_structured_report
    except ImportError as error:  # the other results need no such package
        return [f"{report} cannot be created: {one_line(error)}"]
    writers = {report: write_structured_report}
    if any(finding.measured_on == "mask" for finding in findings.findings):
        writers[segmentation] = write_segmentation
    problems = []
    for name, write in writers.items():
        try:
            write(folder / name, scan, findings)
        except (ValueError, ImportError) as error:
            problems.append(f"{name} cannot be created: {one_line(error)}")
    return problems


def write_status(folder: Path, row: ScanRow, settings: str) -> None:
    """Mark a folder as the result of a call with these settings."""
    content = {"settings": settings, **asdict(row)}
    write_json(folder / STATUS, content, indent=1)


def read_done(folder: Path, settings: str) -> ScanRow | None:
    """The row of a scan that has results of the same settings without an error."""
    try:
        content = read_json(folder / STATUS, "the status of a scan")
        stored = content.pop("settings")
        row = ScanRow(**{**content, "is_old": True})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return row if stored == settings and row.error is None else None
