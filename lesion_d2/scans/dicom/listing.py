"""Lists the scans in a set of DICOM files, and what was left out."""

from collections import Counter
from typing import NamedTuple

from ..limits import check_size, require
from ..names import safe_name
from ..stored import Storage, Stored
from .files import describe, is_dicom, read_dataset
from .frame import LISTED, Frame, Unsuitable, frames_of
from .pixels import missing_decoder
from .series import DicomSeries, split_by_phase

_DICOMDIR = "1.2.840.10008.1.3.10"
_UNDEFINED = 0xFFFFFFFF  # undefined length of an element


class Listed(NamedTuple):
    """The scans in a set of files.

    Args:
        series: the scans, in order of series numbers.
        left_out: one line for each file or series that is not a scan.
        damaged: the lines of ``left_out`` about CT that cannot be read.
    """

    series: list[DicomSeries]
    left_out: list[str]
    damaged: list[str]


class DicomListing:
    """Collects DICOM files one by one, and groups them into scans.

    Args:
        source: the folder, archive or file that contains them, for messages and names.
        stem: prefix of names, see :func:`~lesion_d2.scans.find_scans`.
    """

    def __init__(self, source: str, stem: str):
        self.source, self._stem = source, stem
        self._frames: list[Frame] = []
        # (series, reason) -> a file and the number of others; in the order they were found.
        self._left_out: Counter = Counter()
        self._first: dict[tuple[str, str], Stored] = {}
        self._damaged: set[tuple[str, str]] = set()

    def add(self, storage: Storage, stored: Stored) -> bool:
        """Add a file by its header; returns whether it is DICOM.

        Raises:
            ImportError: pydicom is not installed.
        """
        try:
            with storage.open(stored) as opened:
                if not is_dicom(opened):
                    return False
                require("pydicom")
                self._add(opened, stored)
        except ImportError:
            raise
        except Exception as error:  # from the disk, an archive or pydicom
            self._leave_out(stored, "", error)
        return True

    def scans(self, *, min_slices: int, allow_gaps: bool) -> "Listed":
        """Group the files into scans."""
        listed = Listed([], *self._lines())
        groups = [
            phase for stack in _stacks(self._unique(listed)) for phase in split_by_phase(stack)
        ]
        for frames in sorted(groups, key=_order):
            label = f"{self.source}: {_series_label(frames[0])}"
            try:
                found = DicomSeries(
                    self._name(frames[0]), frames, source=label, allow_gaps=allow_gaps
                )
                if found.num_slices < min_slices:
                    raise Unsuitable(
                        f"{label}: found {found.num_slices} slices, expected at least {min_slices}"
                    )
            except ValueError as error:
                listed.left_out.append(describe(error))
                if not isinstance(error, Unsuitable):
                    listed.damaged.append(describe(error))
            else:
                listed.series.append(found)
        return listed

    def _add(self, opened, stored: Stored) -> None:
        dataset = read_dataset(opened, stop_before_pixels=True, specific_tags=list(LISTED))
        if dataset.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR:
            return  # the index of the images on a CD
        series = _series_text(dataset)
        try:
            frames, problem = frames_of(dataset, stored)
            _check_pixels(opened, dataset, stored)
        except ValueError as error:
            self._leave_out(stored, series, error)
        else:
            self._frames.extend(frames)
            if problem is not None:
                self._leave_out(stored, series, problem)

    def _leave_out(self, stored: Stored, series: str, error: Exception) -> None:
        key = (series, describe(error))
        self._left_out[key] += 1
        self._first.setdefault(key, stored)
        if not isinstance(error, Unsuitable):
            self._damaged.add(key)

    def _lines(self) -> tuple[list[str], list[str]]:
        """Lines per series and reason, and those of them about damage."""
        lines, damaged = [], []
        for (series, reason), count in self._left_out.items():
            more = f" and {count - 1} more" if count > 1 else ""
            label = f"{self._first[series, reason]}{more}"
            lines.append(f"{label}{f' ({series})' if series else ''}: {reason}")
            if (series, reason) in self._damaged:
                damaged.append(lines[-1])
        return lines, damaged

    def _unique(self, listed: "Listed") -> list[Frame]:
        """Frames of distinct instances; for copies, that of the first file.

        Some anonymization programs give all slices the same UID; slices at different positions are
        no copies.
        """
        unique, copies = {}, []
        for frame in self._frames:
            instance = frame.sop_instance_uid or str(frame.stored)
            key = (frame.series_uid, instance, frame.index, frame.position)
            if unique.setdefault(key, frame) is not frame:
                copies.append(frame)
        if copies:
            more = f" and {len(copies) - 1} more" if len(copies) > 1 else ""
            line = f"{copies[0].label}{more}: found a copy of another file, which is read"
            listed.left_out.append(line)
        return list(unique.values())

    def _name(self, frame: Frame) -> str:
        digits = "".join(filter(str.isdigit, frame.series_uid))[-8:]
        return safe_name("_".join(filter(None, (self._stem, frame.series_number, digits))))


def _stacks(frames: list[Frame]) -> list[list[Frame]]:
    """Group the frames of one series by geometry, in the order of their first frames."""
    by_series: dict[str, list[list[Frame]]] = {}
    for frame in frames:
        stacks = by_series.setdefault(frame.series_uid, [])
        fitting = (stack for stack in stacks if stack[0].fits(frame))
        stack = next(fitting, None)
        if stack is None:
            stacks.append([frame])
        else:
            stack.append(frame)
    return [stack for stacks in by_series.values() for stack in stacks]


def _order(frames: list[Frame]) -> tuple:
    first = min(frames, key=lambda frame: str(frame.stored))
    number = first.series_number
    return int(number) if number.isdecimal() else 1 << 31, first.series_uid, str(first.stored)


def _series_label(frame: Frame) -> str:
    return f"series {frame.series_number or '?'} ({frame.series_uid[-12:]})"


def _series_text(dataset) -> str:
    uid = str(dataset.get("SeriesInstanceUID") or "")
    number = dataset.get("SeriesNumber")
    return f"series {'?' if number is None else number}, {uid[-12:]}" if uid else ""


def _check_pixels(opened, dataset, stored: Stored) -> None:
    """Refuse pixels that cannot be decoded, or that are truncated."""
    rows, columns, count = dataset.Rows, dataset.Columns, int(dataset.get("NumberOfFrames") or 1)
    check_size("the header", (count, rows, columns))
    syntax = dataset.file_meta.TransferSyntaxUID
    problem = missing_decoder(syntax)
    if problem:
        raise ValueError(problem)
    if not (syntax.is_encapsulated or syntax.is_deflated):
        declared = count * rows * columns * dataset.BitsAllocated // 8
        header = opened.read(8 if syntax.is_implicit_VR else 12)
        left = stored.size - opened.tell()
        if left < declared:
            raise ValueError(
                f"found a truncated file: {max(left, 0)} bytes of {declared} of pixels"
            )
        length = int.from_bytes(header[-4:], "little" if syntax.is_little_endian else "big")
        # A few more bytes are padding, which some programs write; many more mean another row
        # length.
        if length != _UNDEFINED and length - declared >= min(rows, columns):
            raise ValueError(f"found {length} bytes of pixels, expected {declared}")
