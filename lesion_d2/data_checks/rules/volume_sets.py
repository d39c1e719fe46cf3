"""Checks of volume sets: orientations, and patients without a split."""

from collections.abc import Mapping, Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...data.volume_set.dicts import read_cached
from ...data.volume_set.records import Volume
from ..faults import FaultLog
from ..loading import LoadedSet, splits_of

_AXES = np.diag([1.0, 1.0, -1.0])  # columns to Left, rows to Posterior, slices to Inferior
_MAX_TILT = 45.0  # degrees


def check_volume_sets(sets: Sequence[LoadedSet], log: FaultLog) -> None:
    """Log volumes with other axes than the project's, and patients in no split.

    Args:
        sets: data sets; those that are not volume sets are skipped.
        log: where faults go.
    """
    families: dict[tuple[str, str], list[LoadedSet]] = {}
    for loaded in sets:
        root = MetadataCatalog.get(loaded.name).get("volume_set")
        if root is not None and loaded.images:  # those that were refused have none
            families.setdefault((root, loaded.family), []).append(loaded)
    for (root, family), ones in families.items():
        volumes = {volume.name: volume for volume in read_cached(root).volumes}
        for loaded in ones:
            _check_axes(loaded, volumes, log)
        splits = splits_of(family, DatasetCatalog.list())
        has_all = all(_has_every_slice(one.name) for one in ones)  # of those without a lesion, too
        if has_all and len(splits) > 1 and set(splits) == {one.name for one in ones}:
            _check_patients(ones, root, {one.patient for one in volumes.values()}, log)


def _has_every_slice(name: str) -> bool:
    return MetadataCatalog.get(name).evaluator_type == "lesion_volume"


def _check_patients(
    ones: Sequence[LoadedSet], root: str, patients: set[str], log: FaultLog
) -> None:
    shown = {image["patient"] for one in ones for image in one.images}
    for patient in sorted(patients - shown):
        log.add("in_no_split", f"{root}: found patient {patient!r} in none of the splits")


def _check_axes(loaded: LoadedSet, volumes: Mapping[str, Volume], log: FaultLog) -> None:
    shown: dict[str, int] = {}
    for number, image in loaded.numbered():
        shown.setdefault(image["volume"], number)
    for name, number in shown.items():
        tilts = _tilts(volumes[name])
        if max(tilts) > _MAX_TILT:
            found = ", ".join(f"{tilt:.0f}" for tilt in tilts)
            text = (
                f"{loaded.name}, volume {name}: found axes x, y and z {found} degrees away from "
                f"left, posterior and inferior, expected {_MAX_TILT:g} at most"
            )
            log.add("odd_orientation", text, number)


def _tilts(volume: Volume) -> list[float]:
    """Angle in degrees between each axis and its expected direction; 0 if unknown."""
    if volume.direction is None:
        return [0.0] * 3
    cosines = (np.reshape(volume.direction, (3, 3)) * _AXES).sum(axis=0)
    return np.degrees(np.arccos(np.clip(cosines, -1, 1))).tolist()
