"""What is wrong with a data set of volumes as such: orientations, and patients in no split."""

from collections.abc import Sequence

import numpy as np
from detectron2.data import MetadataCatalog

from ..data.volume_set.dicts import read_cached
from ..data.volume_set.records import Volume
from .fault_log import FaultLog
from .loading import LoadedSet

_AXES = np.diag([1.0, 1.0, -1.0])  # columns to the left, rows to posterior, slices to inferior
_MAX_TILT = 45.0  # degrees


def check_volume_sets(sets: Sequence[LoadedSet], log: FaultLog) -> None:
    """Note volumes whose axes are not the project's, and patients that no split has.

    Args:
        sets: data sets; those that are no volumes are passed over.
        log: where faults go.
    """
    patients: dict[str, set[str]] = {}
    for loaded in sets:
        root = MetadataCatalog.get(loaded.name).get("volume_set")
        if root is None:
            continue
        volumes = {volume.name: volume for volume in read_cached(root).volumes}
        shown = {image["volume"]: number for number, image in reversed([*loaded.numbered()])}
        patients.setdefault(root, set()).update(volumes[name].patient for name in shown)
        for name, number in shown.items():
            tilts = _tilts(volumes[name])
            if tilts is not None and max(tilts) > _MAX_TILT:
                found = ", ".join(f"{tilt:.0f}" for tilt in tilts)
                text = (
                    f"{loaded.name}, volume {name}: found axes x, y and z {found} degrees away "
                    f"from left, posterior and inferior, expected up to {_MAX_TILT:g}"
                )
                log.add("odd_orientation", text, number)
    for root, checked in patients.items():
        if len({one.name for one in sets if one.split != one.name}) > 1:
            left = sorted({volume.patient for volume in read_cached(root).volumes} - checked)
            for patient in left:
                log.add("in_no_split", f"{root}: found patient {patient!r} in none of the splits")


def _tilts(volume: Volume) -> list[float] | None:
    """Degrees between each axis and where it should point; None where it is not known."""
    if volume.direction is None:
        return None
    cosines = (np.reshape(volume.direction, (3, 3)) * _AXES).sum(axis=0)
    return np.degrees(np.arccos(np.clip(cosines, -1, 1))).tolist()
