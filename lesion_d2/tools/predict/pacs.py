"""Fetches scans from a PACS, and stores results in it, by DICOMweb."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lesion_d2.scans.dicomweb import DicomWeb
from lesion_d2.utils.files import (
    locked,
    one_line,
    read_json,
    replace_folder,
    write_json,
)

from tqdm import tqdm

from .outputs import DICOM_RESULTS, FETCHED, ScanRow

_COMPLETE = "complete.json"
_STORED = "stored.json"


def fetch_study(url: str, study: str, series: str | None, output: Path) -> Path:
    """Fetch the CT series of a study, unless an earlier call did.

    Args:
        url: of the DICOMweb service.
        study, series: UIDs; no series for all CT series.
        output: the folder of results, in which fetched files are kept.

    Returns:
        A folder with DICOM files.

    Raises:
        BlockingIOError: another process fetches it.
        ValueError, OSError, ImportError: see :class:`~lesion_d2.scans.dicomweb.DicomWeb`.
    """
    server = DicomWeb(url)
    wanted = {"url": url, "study": study, "series": series}
    top = output / FETCHED
    if (found := _fetched(top, wanted)) is not None:
        return found
    name = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]
    top.mkdir(parents=True, exist_ok=True)
    with locked(top / f".{name}.fetch"):
        if (found := _fetched(top, wanted)) is not None:  # by a call that was faster
            return found
        partial, folder = top / f".{name}.new", top / name
        shutil.rmtree(partial, ignore_errors=True)
        fetched = server.fetch(study, partial, series_uid=series)
        fetched.rename(partial / "dicom")
        write_json(partial / _COMPLETE, wanted)
        replace_folder(partial, folder)
    return folder / "dicom"


def _fetched(top: Path, wanted: dict[str, str | None]) -> Path | None:
    """The folder fetched by an earlier call; names of incomplete folders begin with a dot."""
    for marker in sorted(top.glob(f"[!.]*/{_COMPLETE}")):
        if read_json(marker, "what was fetched") == wanted:
            return marker.parent / "dicom"
    return None


def store_results(url: str, rows: Iterable[ScanRow], output: Path) -> list[ScanRow]:
    """Store the structured reports and segmentations of scans, unless earlier calls did.

    Returns:
        The rows, with an error if the server did not accept a result.
    """
    try:
        server = DicomWeb(url)
    except (ValueError, ImportError) as error:
        return [_with_error(row, one_line(error)) if _results(row, output) else row for row in rows]
    return [_store(server, row, output) for row in tqdm(list(rows), "store", unit="scan")]


def _results(row: ScanRow, output: Path) -> list[Path]:
    """The files of a scan to store in a PACS."""
    if row.slices is None:
        return []
    files = (output / row.scan / name for name in DICOM_RESULTS)
    return [file for file in files if file.is_file()]


def _store(server: DicomWeb, row: ScanRow, output: Path) -> ScanRow:
    files, marker = _results(row, output), output / row.scan / _STORED
    if not files:
        return row
    try:
        if marker.is_file() and read_json(marker, "where results are") == {"url": server.url}:
            return row
        server.store(files)
        write_json(marker, {"url": server.url})
    except (ValueError, OSError) as error:
        return _with_error(row, one_line(error))
    return row


def _with_error(row: ScanRow, text: str) -> ScanRow:
    return replace(row, error="; ".join(filter(None, (row.error, f"not stored: {text}"))))
