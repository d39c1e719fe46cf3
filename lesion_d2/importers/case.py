"""What an importer finds at its source, and what it makes of one case."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..data.volume_set.form import Volume


@dataclass(frozen=True, eq=False)
class ImportedVolume:
    """One case, read.

    Args:
        voxels: (Z, H, W) int16, HU, in DeepLesion's orientation.
        volume: its geometry and lesions; the lesions' ids count from 1 within it, and are numbered
            anew for the whole data set.
        left_out: what of this case was left out and why, a line each.
    """

    voxels: np.ndarray
    volume: "Volume"
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A volume at its source, not read yet.

    Args:
        name: of its volume, as ``safe_name`` makes them; unique in the data set.
        patient: who it shows; all volumes of a patient go to one split.
        read: gives the case. It can be pickled, such as ``functools.partial`` of a function of a
            module: other processes call it. It raises ValueError, OSError, ImportError or
            MemoryError, each in one line, where the case cannot be read.
        sources: the files it is read from. Where one of them changes, the case is read again.
        split: "train", "val" or "test" as the source has it; None where it does not say.
    """

    name: str
    patient: str
    read: Callable[[], ImportedVolume]
    sources: tuple[str, ...]
    split: str | None = None


@dataclass(frozen=True)
class Listing:
    """What is found at a source before any voxel is read.

    Args:
        classes: names of the lesions' classes; ``Lesion.category`` is an index of them.
        cases: what can be imported.
        left_out: what is not and why, a line each.
        damaged: of ``left_out`` those that are meant as a case and cannot be read: an import ends
            without a data set, unless it is told to skip them.
        folds: the source's own folds, a dict each of patients by split; as ``VolumeSet.folds``.
        options: of the importer, JSON's types, no paths: with the format's name they become
            ``VolumeSet.source``. An import that was begun with others is not gone on with.
    """

    classes: tuple[str, ...]
    cases: tuple[Case, ...]
    left_out: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    folds: tuple[dict[str, tuple[str, ...]], ...] = ()
    options: dict = field(default_factory=dict)
