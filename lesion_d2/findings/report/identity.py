"""The identity of the scanned patient, and its removal from reports."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from ...scans import Scan

if TYPE_CHECKING:
    import pydicom

# Attributes that a report with identity shows: DICOM keyword -> label.
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
# Attributes whose values are removed from a report without identity.
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
    """Patient and study of a scan from its headers; empty for formats without them."""
    values = {label: _text(scan, keyword) for keyword, label in _SHOWN.items()}
    return {label: value for label, value in values.items() if value}


def identity_remover(scan: Scan) -> Callable[[str], str]:
    """Return a function that removes a scan's identity from a text.

    File and folder names often contain the patient's name or ID, or the study's date. All values of
    these in the DICOM headers are replaced by "[removed]"; other formats have no such headers.
    """
    # Values of one or two characters occur everywhere and identify nobody, except in names.
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
    """Parts of a name, and pairs of adjacent parts, as short parts alone identify nobody."""
    for written in name.split("="):  # alphabetic, ideographic, phonetic
        parts = [part for part in re.split(r"[\s^,;\\]+", written) if part]
        yield from (part for part in parts if len(part) > 1)
        for order in (parts, parts[::-1]):
            yield from map(" ".join, pairwise(order))


def _as_folder(word: str) -> str:
    """A word as it appears in names of scans, see :func:`~lesion_d2.scans.names.safe_name`."""
    # Accented letters may be one or two characters (Unicode normalization).
    kept = re.sub(r"[^A-Za-z0-9. -]", "?", word)
    return kept if len(re.sub(r"[? ]", "", kept)) > 2 else ""


def _pattern(word: str) -> str:
    # File names may have "_", "-" or nothing in place of a header's space.
    escaped = r"[\s_.^-]*".join(map(re.escape, word.split())).replace(r"\?", "[A-Za-z]?_")
    # Short words may be parts of others, so they must match as whole words, except ideographs.
    if len(word) > 4 or not word.isascii():
        return escaped
    return rf"(?<![^\W_]){escaped}(?![^\W_])"


def _text(scan: Scan, keyword: str) -> str:
    header: pydicom.Dataset | None = scan.headers[0] if scan.headers else None
    value = header.get(keyword) if header is not None else None
    return "" if value is None else str(value).strip()
