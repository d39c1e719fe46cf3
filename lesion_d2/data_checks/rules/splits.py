"""Checks between splits: shared patients, missing classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from ..faults import FaultLog
from ..loading import LoadedSet
from .annotations import Lesion

_SIZE_RATIO = 3.0
_MIN_LESIONS = 10  # required to compare median sizes


def check_splits(
    sets: Sequence[LoadedSet], lesions: Mapping[str, Sequence[Lesion]], log: FaultLog
) -> None:
    """Log faults between data sets, and splits without a lesion.

    Patients are only compared between splits of one family (``mine_train`` and ``mine_val``), as
    elsewhere the same name may be another patient.

    Args:
        sets: the data sets.
        lesions: name of the data set -> lesions.
        log: where faults go.
    """
    for loaded in sets:
        if loaded.images and not lesions[loaded.name]:
            log.add(
                "no_lesion",
                f"{loaded.name}: found no lesion on {len(loaded.images)} images, expected some",
            )
    for one, other in combinations(sets, 2):
        if one.split == other.split:
            continue
        if one.family == other.family:
            _check_patients(one, other, log)
        _check_sizes((one, other), lesions, log)
    _check_classes(sets, lesions, log)


def patients_of(loaded: LoadedSet) -> dict[object, int]:
    """Patient -> number of the first image; empty if patients are unknown."""
    patients: dict[object, int] = {}
    for number, image in loaded.numbered():
        if image.get("patient") is not None:
            patients.setdefault(image["patient"], number)
    return patients


def _check_patients(one: LoadedSet, other: LoadedSet, log: FaultLog) -> None:
    patients = patients_of(one)
    for patient, number in patients_of(other).items():
        if patient in patients:
            text = f"found patient {patient}, who is in {one.name} too, expected another"
            log.add("patient_in_two_splits", f"{other.name}: {text}", number)


def _check_sizes(
    pair: Sequence[LoadedSet], lesions: Mapping[str, Sequence[Lesion]], log: FaultLog
) -> None:
    for in_mm, unit in ((True, "mm"), (False, "pixels")):
        sizes = [[x.size for x in lesions[one.name] if x.in_mm == in_mm] for one in pair]
        if min(map(len, sizes)) < _MIN_LESIONS:
            continue
        low, high = sorted(zip(map(np.median, sizes), (one.name for one in pair), strict=True))
        if high[0] > _SIZE_RATIO * low[0]:
            text = (
                f"found lesions of {high[0]:.3g} {unit} in the median, and of {low[0]:.3g} in "
                f"{low[1]}, expected about the same"
            )
            log.add("split_sizes", f"{high[1]}: {text}")


def _check_classes(
    sets: Sequence[LoadedSet], lesions: Mapping[str, Sequence[Lesion]], log: FaultLog
) -> None:
    lists = {one.classes for one in sets if one.classes}
    if len(lists) > 1:
        found = " and ".join(f"{list(one.classes)} in {one.name}" for one in sets[:3])
        log.add("classes_differ", f"found the classes {found}, expected one list")
        return
    (classes,) = lists or [()]
    found: dict[str, Counter] = {}
    for one in sets:
        categories = Counter(x.category for x in lesions[one.name])
        found[one.split] = found.get(one.split, Counter()) + categories
    found = {split: counts for split, counts in found.items() if counts}  # only with lesions
    for category, name in enumerate(classes):
        having = [split for split, counts in found.items() if counts[category]]
        if found and not having:
            log.add("class_missing", f"found no lesion of class {name!r}, expected some")
        for split in found if having else ():
            if split not in having:
                kind = "class_not_trained" if split == "train" else "class_missing"
                text = f"found no lesion of class {name!r}, expected some as in {having[0]}"
                log.add(kind, f"{split}: {text}")
