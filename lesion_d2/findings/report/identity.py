"""Who was scanned, and a report that does not tell it."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise
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
    # One or two letters or digits are in everything and tell nobody, but in names.
    words = {word for keyword in _CODES if len(word := _text(scan, keyword)) > 2}
    for keyword in _NAMES:
        words.update(_name_words(_text(scan, keyword)))
    for keyword in _DATES:
        date = _text(scan, keyword)
        if len(date) == 8:
            year, month, day = date[:4], date[4:6], date[6:]
            words |= {f"{year} {month} {day}", f"{day} {month} {year}", f"{month} {day} {year}"}
        else:
            words.add(date)
    words = {unicodedata.normalize("NFC", word).strip() for word in words}
    words |= {_as_folder(word) for word in words}
    patterns = [_pattern(word) for word in sorted(words, key=len, reverse=True) if len(word) > 1]
    if not patterns:
        return lambda text: text
    expression = re.compile("|".join(patterns), re.IGNORECASE)
    return lambda text: expression.sub(_REMOVED, unicodedata.normalize("NFC", text))


def _name_words(name: str) -> Iterator[str]:
    """The parts of a name, and those that follow each other: short ones tell nobody alone."""
    for written in name.split("="):  # in letters, in ideographs, in sounds
        parts = [part for part in re.split(r"[\s^,;\\]+", written) if part]
        yield from (part for part in parts if len(part) > 1)
        for order in (parts, parts[::-1]):
            yield from map(" ".join, pairwise(order))


def _as_folder(word: str) -> str:
    """A word as scans are named by it, see :func:`~lesion_d2.scans.names.safe_name`."""
    # Letters with accents are one character here or, as some systems name files, two.
    kept = re.sub(r"[^A-Za-z0-9. -]", "?", word)
    return kept if len(re.sub(r"[? ]", "", kept)) > 2 else ""


def _pattern(word: str) -> str:
    # A folder's name has "_" or "-" where the header has a space, or nothing at all.
    escaped = r"[\s_.^-]*".join(map(re.escape, word.split())).replace(r"\?", "[A-Za-z]?_")
    # Short words are parts of others: they have to stand alone, but for those of ideographs.
    if len(word) > 4 or not word.isascii():
        return escaped
    return rf"(?<![^\W_]){escaped}(?![^\W_])"


def _text(scan: Scan, keyword: str) -> str:
    header: pydicom.Dataset | None = scan.headers[0] if scan.headers else None
    value = header.get(keyword) if header is not None else None
    return "" if value is None else str(value).strip()
