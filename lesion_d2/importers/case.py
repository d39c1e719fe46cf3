"""The interface of importers: listings of cases, and imported volumes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..data.volume_set.form import Volume


@dataclass(frozen=True, eq=False)
class ImportedVolume:
    """An imported case.

    Args:
        voxels: (Z, H, W) int16, HU, in DeepLesion's orientation.
        volume: its geometry and lesions; ids of lesions count from 1 and are renumbered for the
            data set.
        left_out: what was left out of this case and why, one line each.
    """

    voxels: np.ndarray
    volume: "Volume"
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A volume at its source, before it is read.

    Args:
        name: name of its volume, safe as of ``safe_name`` and unique in the data set.
        patient: its patient; all volumes of a patient go to the same split.
        read: reads the case. It must be picklable, such as ``functools.partial`` of a module's
            function, as other processes call it. It raises ValueError, OSError, ImportError or
            MemoryError with a one-line message if the case cannot be read.
        sources: the files it is read from. If one of them changes, the case is read again.
        split: the source's split, "train", "val" or "test"; None if unknown.
    """

    name: str
    patient: str
    read: Callable[[], ImportedVolume]
    sources: tuple[str, ...]
    split: str | None = None


@dataclass(frozen=True)
class Listing:
    """The content of a source, before any voxel is read.

    Args:
        classes: names of the lesions' classes; ``Lesion.category`` is an index into them.
        cases: cases that can be imported.
        left_out: what is left out and why, one line each.
        damaged: the lines of ``left_out`` about cases that cannot be read. The import then makes no
            data set, unless they are skipped explicitly.
        folds: the source's own folds, each a dict of patients by split, as in ``VolumeSet.folds``.
        options: options of the importer, JSON types without paths. With the format's name they
            become ``VolumeSet.source``; an import with other options is not resumed.
    """

    classes: tuple[str, ...]
    cases: tuple[Case, ...]
    left_out: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    folds: tuple[dict[str, tuple[str, ...]], ...] = ()
    options: dict = field(default_factory=dict)
