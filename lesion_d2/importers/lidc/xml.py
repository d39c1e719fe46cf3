"""XML files of LIDC-IDRI, with the annotations of up to four readers of a series."""

import os
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from ...data.formats.problems import short_repr
from ...utils.files import one_line

_NAMESPACE = "{http://www.nih.gov}"
_MAX_BYTES = 64 << 20  # the largest of the data set has 2 MB
_MAX_COORDINATE = 1 << 14


@dataclass(frozen=True, eq=False)
class Contour:
    """An outline on one slice.

    Args:
        sop_instance_uid: UID of the slice, or "".
        z: position of the slice in the patient in mm.
        inclusion: True for a part of the nodule, False for a hole.
        points: (N, 2) int, column and row in the stored image, from 0: the pixels of the outline,
            just outside of the nodule.
    """

    sop_instance_uid: str
    z: float
    inclusion: bool
    points: np.ndarray


@dataclass(frozen=True, eq=False)
class Annotation:
    """One reader's annotation of a nodule of 3 mm or more.

    Args:
        reader: index of the reading session in the file, from 0.
        nodule: the reader's name of the nodule.
        malignancy: 1 to 5; None if the reader gave none.
        contours: in the file's order.
    """

    reader: int
    nodule: str
    malignancy: int | None
    contours: tuple[Contour, ...]


@dataclass(frozen=True, eq=False)
class Readings:
    """The content of a file.

    Args:
        series_uid: UID of the annotated series.
        num_readers: number of reading sessions.
        annotations: annotations of all readers, in the file's order.
        num_small: number of nodules marked by one point, which are below 3 mm.
        num_others: number of findings that are not nodules.
    """

    series_uid: str
    num_readers: int
    annotations: tuple[Annotation, ...]
    num_small: int
    num_others: int


def read_readings(file: str | os.PathLike) -> Readings | None:
    """Read an XML file of LIDC-IDRI.

    A document type declaration is refused, as it could declare entities.

    Returns:
        The content, or None for files with another root element, such as those of chest
        radiographs.

    Raises:
        ValueError: invalid XML or content.
    """
    try:
        root = _parse(Path(file))
        if root.tag != f"{_NAMESPACE}LidcReadMessage":
            return None
        return _readings(root)
    except ValueError as error:
        raise ValueError(f"{file}: {one_line(error)}") from None


def _parse(file: Path) -> ElementTree.Element:
    """The root element."""
    size = file.stat().st_size
    if size > _MAX_BYTES:
        raise ValueError(f"found {size} bytes, expected at most {_MAX_BYTES}")
    content = file.read_bytes()
    checker = expat.ParserCreate()
    checker.StartDoctypeDeclHandler = _refuse_doctype
    try:
        checker.Parse(content, True)
        return ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, LookupError) as error:  # unknown encoding
        raise ValueError(f"found no readable XML ({error})") from None


def _refuse_doctype(name: str, *rest: object) -> None:
    raise ValueError(
        f"found a document type declaration ({short_repr(name)}), expected none: it could declare "
        "entities"
    )


def _readings(root: ElementTree.Element) -> Readings:
    series = _text(root, "ResponseHeader/SeriesInstanceUid", "the series that was read")
    sessions = _all(root, "readingSession")
    annotations, num_small, num_others = [], 0, 0
    for reader, session in enumerate(sessions):
        num_others += len(_all(session, "nonNodule"))
        for number, nodule in enumerate(_all(session, "unblindedReadNodule"), start=1):
            name = _find(nodule, "noduleID") or str(number)
            where = f"reading session {reader + 1}, nodule {short_repr(name)}"
            try:
                contours = tuple(map(_contour, _all(nodule, "roi")))
                malignancy = _malignancy(nodule)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            if not contours:
                raise ValueError(f"{where}: found no roi, expected outlines or a point")
            if all(len(contour.points) == 1 for contour in contours):
                num_small += 1
            else:
                annotations.append(Annotation(reader, name, malignancy, contours))
    return Readings(series, len(sessions), tuple(annotations), num_small, num_others)


def _contour(roi: ElementTree.Element) -> Contour:
    inclusion = _text(roi, "inclusion", "TRUE or FALSE").upper()
    if inclusion not in ("TRUE", "FALSE"):
        raise ValueError(f"inclusion: found {short_repr(inclusion)}, expected TRUE or FALSE")
    edges = _all(roi, "edgeMap")
    points = [[_integer(edge, key) for key in ("xCoord", "yCoord")] for edge in edges]
    if not points:
        raise ValueError("found a roi without edgeMap, expected points")
    z = _text(roi, "imageZposition", "mm")
    try:
        number = float(z)
    except ValueError:
        number = np.nan
    if not abs(number) < 1e6:
        raise ValueError(f"imageZposition: found {short_repr(z)}, expected a number of mm")
    uid = _find(roi, "imageSOP_UID")
    return Contour(uid, number, inclusion == "TRUE", np.array(points, np.int64))


def _malignancy(nodule: ElementTree.Element) -> int | None:
    """The malignancy; None if it is missing or 0, which is not a score."""
    text = _find(nodule, "characteristics/malignancy")
    if text in ("", "0"):
        return None
    if text not in ("1", "2", "3", "4", "5"):
        raise ValueError(f"malignancy: found {short_repr(text)}, expected 1 to 5")
    return int(text)


def _integer(element: ElementTree.Element, key: str) -> int:
    text = _text(element, key, "a pixel")
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= _MAX_COORDINATE:
        raise ValueError(f"{key}: found {short_repr(text)}, expected a pixel index, from 0")
    return number


def _text(element: ElementTree.Element, path: str, expected: str) -> str:
    found = _find(element, path)
    if not found:
        raise ValueError(f"found no {path}, expected {expected}")
    return found


def _find(element: ElementTree.Element, path: str) -> str:
    """A child's stripped text, or "" if it is missing."""
    return (element.findtext(_qualified(path)) or "").strip()


def _all(element: ElementTree.Element, tag: str) -> list[ElementTree.Element]:
    return element.findall(_qualified(tag))


def _qualified(path: str) -> str:
    return "/".join(_NAMESPACE + part for part in path.split("/"))
