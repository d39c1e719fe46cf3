"""Finds the scans of a command line."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from lesion_d2.data.slices.scan_images import slices_needed
from lesion_d2.scans import ScanCandidate, find_scans
from lesion_d2.scans.names import unique_names

from .outputs import FETCHED, INDEX, SUMMARY, ScanRow, is_results


@dataclass(frozen=True)
class Inputs:
    """Paths of scans, and how they are read.

    Attributes:
        paths: files, folders, zip archives.
        output: the folder of results, which may be inside one of the paths.
        spacing: of PNG folders, mm; None for that of DL_info.csv.
        allow_gaps: whether to interpolate missing slices.
        num_slices: of the model's input; scans with fewer slices are left out.
        slice_interval: of the model's input, mm; 0 for the scans' own slices.
    """

    paths: tuple[str, ...]
    output: Path
    spacing: tuple[float, float, float] | None = None
    allow_gaps: bool = False
    num_slices: int = 1
    slice_interval: float = 0.0

    def find(self, *, progress: bool = False) -> "FoundScans":
        """Find the scans of all paths; every call returns the same scans with the same names."""
        candidates, unreadable, left_out, known = [], [], [], set()
        for path in self.paths:
            found = find_scans(
                [path],
                spacing=self.spacing,
                allow_gaps=self.allow_gaps,
                skip=self._is_output,
                progress=progress,
            )
            new = [c for c in found.candidates if _identity(c) not in known]
            thick = [c for c in new if self._thinness(c) is None]
            lines = [line for line in found.left_out if line not in found.damaged]
            lines += [f"{c.source}: {self._thinness(c)}" for c in new if c not in thick]
            left_out += lines + _repeated(c for c in found.candidates if c not in new)
            unreadable += [ScanRow(_file_of(line), error=line) for line in found.damaged]
            if not thick and len(new) == len(found.candidates) and not found.damaged:
                more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
                reason = lines[0] if lines else f"{path}: found no scan"
                unreadable.append(ScanRow(Path(path).name or path, error=f"{reason}{more}"))
            known.update(map(_identity, new))
            candidates += thick
        names = unique_names((c.name for c in candidates), taken=(FETCHED, INDEX, SUMMARY))
        named = (replace(c, name=name) for c, name in zip(candidates, names, strict=True))
        return FoundScans(tuple(named), tuple(unreadable), tuple(left_out))

    def _is_output(self, folder: str) -> bool:
        """Whether a folder has results of this command, some of which look like scans."""
        return is_results(folder) or Path(folder).resolve() == (self.output / FETCHED).resolve()

    def _thinness(self, candidate: ScanCandidate) -> str | None:
        """The reason why the model cannot process a scan; None if it can."""
        spacing_z = candidate.spacing[2]
        needed = slices_needed(self.num_slices, self.slice_interval, spacing_z)
        if candidate.num_slices >= needed:
            return None
        return (
            f"found {candidate.num_slices} slices of {spacing_z:g} mm, expected {needed} or more "
            f"for the {self.num_slices} slices of the model's input"
        )


@dataclass(frozen=True)
class FoundScans:
    """The result of :class:`Inputs`.

    Attributes:
        candidates: the scans, with unique names.
        unreadable: a row for each damaged file, and for each path without any scan.
        left_out: a line for everything else that may be a scan, such as a localizer.
    """

    candidates: tuple[ScanCandidate, ...]
    unreadable: tuple[ScanRow, ...]
    left_out: tuple[str, ...]


def _identity(candidate: ScanCandidate) -> tuple:
    """A key that is the same if two paths lead to one scan."""
    return candidate.files, candidate.series_uid


def _repeated(candidates: Iterable[ScanCandidate]) -> list[str]:
    return [f"{c.source}: found again in another path, expected once" for c in candidates]


def _file_of(line: str) -> str:
    """The name of the file at the beginning of a line."""
    return Path(line.split(": ", 1)[0]).name
