"""Record of finished cases, so that a killed import can be resumed."""

import os
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import __version__
from ..data.volume_set.diameters import with_diameters
from ..data.volume_set.form import Volume, VolumeSet, read_volume_set, write_volume_set
from ..data.volume_set.voxels import EXTENSION, write_voxels
from ..utils.files import json_digest, one_line, read_json, write_json
from .case import Case, ImportedVolume, Listing

#: Errors of a case's reader for damaged cases; all others are bugs.
_OF_CASES = (ValueError, OSError, ImportError, MemoryError)


@dataclass(frozen=True)
class DoneCase:
    """A case whose voxels have been written; ids of its lesions count from 1."""

    volume: Volume
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Journal:
    """The finished cases in an import's working folder.

    ``images`` has their voxels, and ``cases`` one data set of one volume per case, written after
    the voxels. ``failed``, beside ``cases``, has the errors of other cases, for the call that joins
    shards.

    Args:
        data: the folder that becomes the data set.
        cases: a folder beside it.
        settings: digest of the settings, see :func:`settings_of`.
        classes: classes of the data set.
    """

    data: Path
    cases: Path
    settings: str
    classes: tuple[str, ...]

    def done(self, case: Case) -> DoneCase | None:
        """A finished case; None if it is not finished, or its files or settings have changed."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = read_volume_set(self.cases / case.name)
            (volume,) = found.volumes
            if found.source["state"] == self._state(case) and (self.data / volume.image).is_file():
                return DoneCase(volume, tuple(map(str, found.source["left_out"])))
        return None

    def finish(self, case: Case) -> str | None:
        """Read and write a case; returns a one-line error if it cannot be read.

        Raises:
            OSError: it cannot be written.
        """
        state = self._state(case)
        try:
            imported = case.read()
            volume = with_diameters(_checked(case, imported))
        except Exception as error:  # a failing case must not stop the others
            return _told(case, error)
        source = {"state": state, "left_out": list(imported.left_out)}
        folder = self.cases / case.name
        try:
            write_voxels(self.data / volume.image, np.ascontiguousarray(imported.voxels))
            write_volume_set(folder, VolumeSet(self.classes, (volume,), source))
        except ValueError as error:  # the case is invalid in a data set
            return _told(case, one_line(error).removeprefix(f"{folder}{os.sep}"))
        return None

    def fail(self, case: Case, problem: str) -> None:
        """Record why a case cannot be read."""
        file = self._failure(case)
        file.parent.mkdir(exist_ok=True)
        write_json(file, {"state": self._state(case), "problem": problem})

    def problem(self, case: Case) -> str | None:
        """The error of a case; None if there is none, or its files or the settings have changed."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = read_json(self._failure(case), "a case that cannot be read")
            if found["state"] == self._state(case):
                return str(found["problem"])
        return None

    def forget_problem(self, case: Case) -> None:
        """Delete the error of a case, before it is read again."""
        self._failure(case).unlink(missing_ok=True)

    def _failure(self, case: Case) -> Path:
        return self.cases.with_name("failed") / f"{case.name}.json"

    def _state(self, case: Case) -> str:
        """Digest of a case's files and settings."""
        parts: list = [self.settings, case.name, case.patient]
        for file in case.sources:
            status = os.stat(file) if os.path.exists(file) else None
            parts.append([file, status and status.st_mtime_ns, status and status.st_size])
        return json_digest(parts)


def settings_of(format: str, listing: Listing) -> str:
    """Digest of the settings of an import, which all cases depend on."""
    return json_digest([__version__, format, listing.classes, listing.options])


def _checked(case: Case, imported: ImportedVolume) -> Volume:
    """The volume under the name of its case."""
    voxels, volume = imported.voxels, imported.volume
    if voxels.dtype != np.int16 or voxels.shape != tuple(volume.shape):
        raise ValueError(
            f"{_where(case)}: found voxels {voxels.dtype} of shape {voxels.shape}, expected int16 "
            f"of shape {tuple(volume.shape)}"
        )
    image = f"images/{case.name}{EXTENSION}"
    return replace(volume, name=case.name, patient=case.patient, image=image)


def _where(case: Case) -> str:
    return case.sources[0] if case.sources else case.name


def _told(case: Case, error: Exception | str) -> str:
    text = one_line(error)
    if isinstance(error, Exception) and not isinstance(error, _OF_CASES):
        print(f"{case.name}:\n{traceback.format_exc()}", file=sys.stderr)
        text = f"{type(error).__name__}: {text}"
    return f"case {case.name}: {text or type(error).__name__}"


def finish_case(job: tuple[Journal, Case]) -> tuple[str, str | None]:
    """:meth:`Journal.finish` for worker processes: returns the case's name and error."""
    journal, case = job
    return case.name, journal.finish(case)
