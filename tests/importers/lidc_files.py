"""A small LIDC-IDRI: a DICOM series, and the XML file of its four readers.

Nodules (readers: malignancy):

- A, a ball of radius 5.2 px on slices 1 to 5 (5, 4, 3, 4), shifted from reader to reader; reader 0
  has a hole in it on slice 3.
- B, which touches A in the masks of readers 1 and 2 (3, 3).
- C, of reader 3 alone (5).
- D, of readers 0 and 3 (2, 3).
- E, of readers 0, 1 and 2 (4, 4, 4), in two parts on one slice.

Reader 0 has a mark of a nodule below 3 mm too, reader 1 one of a finding that is none.
"""

from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np
import pydicom
from made_up_scans import make_volume, write_series

SHAPE = (7, 48, 64)
SPACING = (0.7, 0.8, 2.5)
ORIGIN = (-100.5, -80.25, 40.0)
#: (x, y, z) of center, radius in pixels, slices on both sides: by nodule and reader.
BALLS = {
    "A": {reader: ((20 + shift, 20, 3), 5.2, 2) for reader, shift in enumerate((0, 1, 1, -1))},
    "B": {1: ((30, 20, 3), 3.3, 1), 2: ((30, 21, 3), 3.3, 1)},
    "C": {3: ((50, 10, 2), 3.3, 1)},
    "D": {0: ((50, 36, 4), 4.3, 1), 3: ((51, 36, 4), 4.3, 1)},
    "E": {0: ((12, 38, 2), 3.3, 0), 1: ((12, 38, 2), 3.3, 0), 2: ((12, 39, 2), 3.3, 0)},
}
SCORES = {
    "A": {0: 5, 1: 4, 2: 3, 3: 4},
    "B": {1: 3, 2: 3},
    "C": {3: 5},
    "D": {0: 2, 3: 3},
    "E": {0: 4, 1: 4, 2: 4},
}
HOLE = ((20, 20, 3), 1.2, 0)
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
SECOND_PART = 9  # px that the second part of E lies beside the first


def ball(center, radius: float, reach: int, shape=SHAPE) -> np.ndarray:
    """(Z, H, W) bool: smaller discs on the slices beside the center's."""
    z, y, x = np.indices(shape)
    beside = np.abs(z - center[2])
    inside = np.hypot(x - center[0], y - center[1]) <= radius - 0.8 * beside
    return inside & (beside <= reach)


def reader_mask(nodule: str, reader: int, gap: int = 0) -> np.ndarray:
    """(Z, H, W) bool in stored rows and columns; B lies so many pixels farther from A."""
    center, radius, reach = BALLS[nodule][reader]
    if nodule == "B":
        center = (center[0] + gap, *center[1:])
    mask = ball(center, radius, reach)
    if nodule == "E":
        mask |= ball((center[0] + SECOND_PART, *center[1:]), 2.3, 0)
    if (nodule, reader) == ("A", 0):
        mask &= ~_hole()
    return mask


def write_lidc(
    folder: Path, patient: str = "LIDC-IDRI-0001", gap: int = 0, **options
) -> tuple[list[Path], Path]:
    """Write ``<folder>/<patient>/<slice>.dcm`` and ``.../001.xml``; the files of slices and XML."""
    volume = make_volume(SHAPE)
    options = {"spacing": SPACING, "origin": ORIGIN, **options}
    files = write_series(folder / patient, volume, patient=patient, **options)
    sessions = [
        [
            (name, SCORES[name][reader], contours(name, reader, gap))
            for name in BALLS
            if reader in BALLS[name]
        ]
        for reader in range(4)
    ]
    xml = folder / patient / "001.xml"
    xml.write_text(readings_xml(files, sessions))
    return files, xml


def contours(nodule: str, reader: int, gap: int = 0) -> list[tuple[int, str, np.ndarray]]:
    """Slice, inclusion and points of each outline of a reader's mask."""
    filled = reader_mask(nodule, reader, gap)
    found = []
    if (nodule, reader) == ("A", 0):
        filled |= _hole()
        found = [(3, "FALSE", points) for points in outlines(_hole_inside()[3])]
    slices = np.flatnonzero(filled.any(axis=(1, 2)))
    return [(z, "TRUE", points) for z in slices for points in outlines(filled[z])] + found


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """(N, 2) x, y each: the pixels just outside of each part of a mask, one after the other."""
    grown = cv2.dilate(mask.astype(np.uint8), _CROSS)
    found, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [points[:, 0] for points in found]


def readings_xml(files, sessions, *, extra: str = "") -> str:
    """The file as the data set has it.

    Args:
        files: of the series, in order of slices.
        sessions: for each reader name, malignancy (None leaves the characteristics out) and
            contours of each nodule.
        extra: XML at the end of the first session.
    """
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<LidcReadMessage uid="1.3.6.1" xmlns="http://www.nih.gov" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">\n<ResponseHeader>'
        f"<Version>1.8.1</Version><SeriesInstanceUid>{headers[0].SeriesInstanceUID}"
        f"</SeriesInstanceUid><StudyInstanceUID>{headers[0].StudyInstanceUID}"
        "</StudyInstanceUID></ResponseHeader>\n"
    ]
    for reader, nodules in enumerate(sessions):
        parts.append("<readingSession><annotationVersion>3.12</annotationVersion>")
        for name, score, found in nodules:
            parts.append(f"<unblindedReadNodule><noduleID>{escape(name)}</noduleID>")
            if score is not None:
                parts.append(f"<characteristics><malignancy>{score}</malignancy></characteristics>")
            parts.extend(_roi(headers[z], inclusion, points) for z, inclusion, points in found)
            parts.append("</unblindedReadNodule>\n")
        if reader == 0:
            mark = _roi(headers[1], "TRUE", [(40, 5)])
            parts.append(f"<unblindedReadNodule><noduleID>S</noduleID>{mark}</unblindedReadNodule>")
            parts.append(extra)
        if reader == 1:
            parts.append(
                "<nonNodule><nonNoduleID>N</nonNoduleID><imageZposition>35</imageZposition>"
                "<locus><xCoord>5</xCoord><yCoord>40</yCoord></locus></nonNodule>"
            )
        parts.append("</readingSession>\n")
    return "".join([*parts, "</LidcReadMessage>\n"])


def _roi(header: pydicom.Dataset, inclusion: str, points) -> str:
    edges = "".join(
        f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points
    )
    return (
        f"<roi><imageZposition>{header.ImagePositionPatient[2]}</imageZposition>"
        f"<imageSOP_UID>{header.SOPInstanceUID}</imageSOP_UID><inclusion>{inclusion}</inclusion>"
        f"{edges}</roi>"
    )


def _hole_inside() -> np.ndarray:
    return ball(*HOLE)


def _hole() -> np.ndarray:
    """The hole with its outline, which is of it."""
    inside = _hole_inside().astype(np.uint8)
    return np.stack([cv2.dilate(part, _CROSS) for part in inside]).astype(bool)
