"""The scans of a command line."""

from dataclasses import dataclass, replace
from pathlib import Path

from lesion_d2.scans import ScanCandidate, find_scans
from lesion_d2.scans.names import unique_names

from .outputs import ScanRow


@dataclass(frozen=True)
class Inputs:
    """Where scans are, and how they are read.

    Attributes:
        paths: files, folders, zip archives.
        spacing: of PNG folders, mm; None for that of DL_info.csv.
        allow_gaps: whether to interpolate where slices are missing.
    """

    paths: tuple[str, ...]
    spacing: tuple[float, float, float] | None = None
    allow_gaps: bool = False

    def find(self, *, progress: bool = False) -> "FoundScans":
        """Find the scans of all paths; the same ones, by the same names, whenever it is called."""
        candidates, unreadable, left_out = [], [], []
        for path in self.paths:
            found = find_scans(
                [path], spacing=self.spacing, allow_gaps=self.allow_gaps, progress=progress
            )
            candidates += found.candidates
            left_out += [line for line in found.left_out if line not in found.damaged]
            unreadable += [ScanRow(_file_of(line), error=line) for line in found.damaged]
            if not found.candidates and not found.damaged:
                more = f" (and {len(found.left_out) - 1} more)" if len(found.left_out) > 1 else ""
                reason = found.left_out[0] if found.left_out else f"{path}: found no scan"
                unreadable.append(ScanRow(Path(path).name or path, error=f"{reason}{more}"))
        names = unique_names(candidate.name for candidate in candidates)
        named = (replace(c, name=name) for c, name in zip(candidates, names, strict=True))
        return FoundScans(tuple(named), tuple(unreadable), tuple(left_out))


@dataclass(frozen=True)
class FoundScans:
    """What :class:`Inputs` found.

    Attributes:
        candidates: with names that differ.
        unreadable: a row for each damaged file, and for each path without any scan.
        left_out: a line for all else that might have been meant as one, such as a localizer.
    """

    candidates: tuple[ScanCandidate, ...]
    unreadable: tuple[ScanRow, ...]
    left_out: tuple[str, ...]


def _file_of(line: str) -> str:
    """The name of the file that a line begins with."""
    return Path(line.split(": ", 1)[0]).name
