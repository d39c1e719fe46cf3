"""Who was scanned, and a report that does not tell it."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...scans import Scan

if TYPE_CHECKING:
    import pydicom

# What a report shows with identity: DICOM keyword -> what a reader calls it.
_SHOWN = {
    "PatientName": "Patient",
    "PatientID": "ID",
    "PatientBirthDate": "Born",
    "PatientSex": "Sex",
    "StudyDate": "Study date",
    "StudyDescription": "Study",
    "SeriesDescription": "Series",
    "AccessionNumber": "Accession number",
}
# What must not stand in one without.
_NAMES = ("PatientName", "OtherPatientNames", "PatientBirthName")
_CODES = ("PatientID", "AccessionNumber", "StudyID", "IssuerOfPatientID")
_DATES = (
    "PatientBirthDate",
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
    "InstanceCreationDate",
)
_REMOVED = "[removed]"


def identity_of(scan: Scan) -> dict[str, str]:
    """Patient and study of a scan, as its headers have them; empty for formats without."""
    values = {label: _text(scan, keyword) for keyword, label in _SHOWN.items()}
    return {label: value for label, value in values.items() if value}


def identity_remover(scan: Scan) -> Callable[[str], str]:
    """Make a function that takes a scan's identity out of a text.

    Names of files and folders often hold the patient's name or ID, or the study's date. Whatever
    the DICOM headers know of these is replaced by "[removed]". Of other formats nothing is known.
    """
    words = set()
    for keyword in _NAMES:
        words.update(re.split(r"[\s^=,;\\]+", _text(scan, keyword)))
    words.update(_text(scan, keyword) for keyword in _CODES)
    for keyword in _DATES:
        date = _text(scan, keyword)
        words.update([date, f"{date[:4]}-{date[4:6]}-{date[6:]}"] if len(date) == 8 else [date])
    # One or two letters or digits are in everything and tell nobody.
    patterns = [_pattern(word) for word in sorted(words, key=len, reverse=True) if len(word) > 2]
    if not patterns:
        return lambda text: text
    expression = re.compile("|".join(patterns), re.IGNORECASE)
    return lambda text: expression.sub(_REMOVED, text)


def _pattern(word: str) -> str:
    # A folder's name has "_" or "-" where the header has a space, or nothing at all.
    escaped = r"[\s_-]*".join(map(re.escape, word.split()))
    # Short words are parts of others: they have to stand alone.
    return escaped if len(word) > 4 else rf"(?<![^\W_]){escaped}(?![^\W_])"


def _text(scan: Scan, keyword: str) -> str:
    header: pydicom.Dataset | None = scan.headers[0] if scan.headers else None
    value = header.get(keyword) if header is not None else None
    return "" if value is None else str(value).strip()
