"""What is wrong with a data set of volumes as such: orientations, and patients in no split."""

from collections.abc import Mapping, Sequence

import numpy as np
from detectron2.data import MetadataCatalog

from ...data.volume_set.dicts import read_cached
from ...data.volume_set.records import Volume
from ..faults import FaultLog
from ..loading import SPLITS, LoadedSet

_AXES = np.diag([1.0, 1.0, -1.0])  # columns to the left, rows to posterior, slices to inferior
_MAX_TILT = 45.0  # degrees


def check_volume_sets(sets: Sequence[LoadedSet], log: FaultLog) -> None:
    """Note volumes whose axes are not the project's, and patients that no split has.

    Args:
        sets: data sets; those that are no volumes are passed over.
        log: where faults go.
    """
    checked: dict[str, list[LoadedSet]] = {}
    for loaded in sets:
        root = MetadataCatalog.get(loaded.name).get("volume_set")
        if root is not None:
            checked.setdefault(root, []).append(loaded)
    for root, ones in checked.items():
        volumes = {volume.name: volume for volume in read_cached(root).volumes}
        for loaded in ones:
            _check_axes(loaded, volumes, log)
        if len({one.split for one in ones} & set(SPLITS)) > 1:
            patients = {image["patient"] for one in ones for image in one.images}
            for patient in sorted({one.patient for one in volumes.values()} - patients):
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
    """Degrees between each axis and where it should point; 0 where it is not known."""
    if volume.direction is None:
        return [0.0] * 3
    cosines = (np.reshape(volume.direction, (3, 3)) * _AXES).sum(axis=0)
    return np.degrees(np.arccos(np.clip(cosines, -1, 1))).tolist()
