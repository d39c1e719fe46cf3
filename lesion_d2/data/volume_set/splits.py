"""Splits and folds of patients, stratified by classes and sizes of lesions."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from .form import SPLITS, Lesion, Volume, VolumeSet, read_volume_set, write_volume_set

#: Train, val and test in percent, as in each of the five folds of Jaeger et al., section 4.1.
DEFAULT_SHARES = (60.0, 20.0, 20.0)
# Size groups of a class's lesions, of equal number.
_SIZES = ("small", "middle", "large")
# Number of tries, of which the best is used; passes over the patients per try; and number of
# candidates for a swap.
_NUM_TRIES, _NUM_ROUNDS, _NUM_OTHERS = 3, 3, 200

Splits = dict[str, tuple[str, ...]]


def complete_splits(
    volume_set: VolumeSet,
    known: Mapping[str, str],
    folds: Sequence[Mapping[str, Sequence[str]]] = (),
    *,
    shares: Sequence[float] = DEFAULT_SHARES,
    seed: int = 0,
) -> VolumeSet:
    """Set the splits and folds of a data set from its source, and complete missing ones.

    Patients without a split in the source are distributed over the splits that it lacks, in
    proportion to ``shares``; if it has all three splits, they stay without one. If it has only
    folds, the splits are those of the first fold.

    Args:
        volume_set: the data set; its splits and folds are ignored.
        known: patient -> split in the source.
        folds: folds of the source. Patients without volumes are removed from both.
        shares, seed: see :func:`split_patients`.

    Raises:
        ValueError: see :func:`check_choice`.
    """
    shares = check_choice(shares, seed)
    patients = {volume.patient for volume in volume_set.volumes}
    folds = tuple(
        {split: tuple(p for p in names if p in patients) for split, names in fold.items()}
        for fold in folds
    )
    chosen = {patient: split for patient, split in known.items() if patient in patients}
    for split, names in folds[0].items() if folds else ():
        chosen = {**dict.fromkeys(names, split), **chosen}
    open_shares = [
        0.0 if split in chosen.values() else share
        for split, share in zip(SPLITS, shares, strict=True)
    ]
    if not folds and sum(open_shares) > 0:
        free = [patient for patient in sorted(patients) if patient not in chosen]
        part_of = _partition(volume_set, free, open_shares, seed)
        chosen |= {patient: SPLITS[part] for patient, part in zip(free, part_of, strict=True)}
    splits = {
        split: tuple(sorted(p for p, found in chosen.items() if found == split)) for split in SPLITS
    }
    return replace(volume_set, splits={k: v for k, v in splits.items() if v}, folds=folds)


def split_patients(
    volume_set: VolumeSet, shares: Sequence[float] = DEFAULT_SHARES, seed: int = 0
) -> Splits:
    """Distribute the patients over train, val and test.

    Each split gets its share of the patients, rounded, and, as far as possible, of the patients
    without lesions and of the lesions of every class and size. Sizes are terciles of the class
    (small, middle, large) by the longer in-plane side of the box, in mm if all volumes with lesions
    have a spacing, otherwise in pixels.

    Args:
        volume_set: the data set; its splits are ignored.
        shares: relative sizes of train, val and test, at least 0, in any unit.
        seed: random seed. The result does not depend on the order of volumes.

    Returns:
        split -> patients, sorted; empty splits are left out.

    Raises:
        ValueError: see :func:`check_choice`.
    """
    return dict(complete_splits(volume_set, {}, shares=shares, seed=seed).splits)


def make_folds(
    volume_set: VolumeSet,
    num_folds: int = 5,
    shares: Sequence[float] = DEFAULT_SHARES,
    seed: int = 0,
) -> tuple[Splits, ...]:
    """Make folds of a cross-validation (Jaeger et al., section 4.1) with train, val and test.

    The patients are distributed over ``num_folds`` parts, see :func:`split_patients`; each part is
    the test split of one fold. Val is taken from the following parts, cyclically. With five folds
    and 60/20/20 it is the next part, so that every patient is in val once, too.

    Args:
        volume_set: the data set; its folds are ignored.
        num_folds: at least 2.
        shares: relative sizes of train, val and test. The share of test is always 1 /
            ``num_folds``; the rest is divided in proportion to the other two.
        seed: see :func:`split_patients`.

    Returns:
        split -> patients, sorted, for each fold.

    Raises:
        ValueError: there are fewer than 2 folds, or more folds than patients; or see
            :func:`check_choice`.
    """
    patients = sorted({volume.patient for volume in volume_set.volumes})
    if not 2 <= num_folds <= len(patients):
        raise ValueError(
            f"found {num_folds} folds, expected 2 to {len(patients)}, the number of patients"
        )
    train, val, _ = check_choice(shares, seed)
    if train <= 0:
        raise ValueError(f"found shares {list(shares)}, expected a share above 0 for train")
    part_of = _partition(volume_set, patients, [1.0] * num_folds, seed)
    parts: list[list[str]] = [[] for _ in range(num_folds)]
    for patient, part in zip(patients, part_of, strict=True):
        parts[part].append(patient)
    num_val = (num_folds - 1) * val / (train + val)  # in parts
    folds = []
    for k in range(num_folds):
        rest = [parts[(k + i) % num_folds] for i in range(1, num_folds)]
        whole = math.floor(num_val + 1e-9)
        chosen = [patient for part in rest[:whole] for patient in part]
        share = num_val - whole
        if share > 1e-9:
            halves = _partition(volume_set, rest[whole], [share, 1 - share], seed)
            chosen += [p for p, half in zip(rest[whole], halves, strict=True) if half == 0]
        others = {patient for part in rest for patient in part} - set(chosen)
        fold = dict(zip(SPLITS, (others, chosen, parts[k]), strict=True))
        folds.append({split: tuple(sorted(names)) for split, names in fold.items() if names})
    return tuple(folds)


def write_splits(
    root: str | os.PathLike,
    num_folds: int | None = None,
    *,
    shares: Sequence[float] = DEFAULT_SHARES,
    seed: int = 0,
    overwrite: bool = False,
) -> VolumeSet:
    """Write new splits or folds of a data set on disk.

    Args:
        root: the data set's folder; ``volume_set.json`` is rewritten atomically, unless it already
            has these splits or folds.
        num_folds: number of folds, see :func:`make_folds`; None for the splits of
            :func:`split_patients`.
        shares, seed: see these functions.
        overwrite: replace different existing ones, such as those of its source.

    Returns:
        The resulting data set.

    Raises:
        FileNotFoundError: the data set does not exist.
        ValueError: it is damaged, it has different ones and ``overwrite`` is not set, or see
            :func:`make_folds`.
    """
    volume_set = read_volume_set(root)
    if num_folds is None:
        kind, made = "splits", split_patients(volume_set, shares, seed)
    else:
        kind, made = "folds", make_folds(volume_set, num_folds, shares, seed)
    found = getattr(volume_set, kind)
    if found == made:
        return volume_set
    if found and not overwrite:
        number = f"{len(found)} folds" if kind == "folds" else "splits"
        raise ValueError(
            f"{root}: found {number} that differ from the new ones; pass --overwrite to replace "
            "them"
        )
    volume_set = replace(volume_set, **{kind: made})
    write_volume_set(root, volume_set)
    return volume_set


def describe_strata(volume_set: VolumeSet) -> tuple[list[str], np.ndarray]:
    """Return the strata of the splits: S names, and the counts of each patient, (P, S).

    Patients are sorted. The first stratum is the patients themselves, the second those without a
    lesion; the others count lesions without regions to ignore.
    """
    patients = sorted({volume.patient for volume in volume_set.volumes})
    row_of = {patient: row for row, patient in enumerate(patients)}
    lesions = _sizes(volume_set)
    rows = np.array([row_of[volume.patient] for volume, _, _ in lesions], int)
    categories = np.array([lesion.category for _, lesion, _ in lesions], int)
    sizes = np.array([size for _, _, size in lesions])
    names, columns = ["patients", "patients without a lesion"], []
    for number, name in enumerate(volume_set.classes):
        of_class = categories == number
        shares = np.arange(1, len(_SIZES)) / len(_SIZES)
        limits = np.quantile(sizes[of_class], shares) if of_class.any() else np.zeros(len(shares))
        group = np.searchsorted(limits, sizes)
        for i, size in enumerate(_SIZES):
            names.append(f"{size} lesions of {name}")
            columns.append(np.bincount(rows[of_class & (group == i)], minlength=len(patients)))
    counts = np.array(columns).T
    empty = counts.sum(axis=1) == 0
    return names, np.column_stack([np.ones(len(patients), int), empty, counts])


def _sizes(volume_set: VolumeSet) -> list[tuple[Volume, Lesion, float]]:
    """All lesions with the longer in-plane side of their box."""
    found = [
        (volume, lesion)
        for volume in volume_set.volumes
        for lesion in volume.lesions
        if not lesion.ignore
    ]
    in_mm = all(volume.spacing is not None for volume, _ in found)
    return [
        (volume, lesion, _longer_side(lesion, volume.spacing if in_mm else (1.0, 1.0)))
        for volume, lesion in found
    ]


def _longer_side(lesion: Lesion, spacing: Sequence[float]) -> float:
    x1, y1, _, x2, y2, _ = lesion.box
    return max((x2 - x1) * spacing[0], (y2 - y1) * spacing[1])


def check_choice(shares: Sequence[float], seed: int) -> list[float]:
    """Check shares and seed of a split.

    Returns:
        The shares.

    Raises:
        ValueError: the shares are not three numbers >= 0 with a sum above 0, or the seed is
            negative.
    """
    shares = list(map(float, shares))
    if len(shares) != len(SPLITS) or not all(0 <= s < math.inf for s in shares) or not sum(shares):
        raise ValueError(
            f"found shares {shares}, expected 0 or more for each of {', '.join(SPLITS)}, not all 0"
        )
    if seed < 0:
        raise ValueError(f"found the seed {seed}, expected 0 or more")
    return shares


def _partition(
    volume_set: VolumeSet, patients: Sequence[str], shares: Sequence[float], seed: int
) -> np.ndarray:
    """The part of each patient, (P,): the best of several tries."""
    everyone = sorted({volume.patient for volume in volume_set.volumes})
    row_of = {patient: row for row, patient in enumerate(everyone)}
    _, counts = describe_strata(volume_set)
    counts = counts[[row_of[patient] for patient in patients]].astype(float)
    wanted = np.array(shares) / sum(shares)
    if len(patients) == 0:
        return np.zeros(0, int)
    rng = np.random.default_rng(seed)
    tries = [_swap(counts, _deal(counts, wanted, rng), wanted, rng) for _ in range(_NUM_TRIES)]
    return min(tries, key=lambda part_of: imbalance(counts, part_of, wanted))


def imbalance(counts: np.ndarray, part_of: np.ndarray, shares: np.ndarray) -> float:
    """Deviation of the parts from their shares of all strata; 0 if they match exactly.

    Args:
        counts: (P, S), see :func:`describe_strata`.
        part_of: (P,) part of each patient, in 0..K-1.
        shares: (K,) shares of the parts, with sum 1.

    Returns:
        The sum over strata and parts of the squared difference, divided by the stratum's count.
    """
    found = np.array([counts[part_of == k].sum(axis=0) for k in range(len(shares))])
    total = counts.sum(axis=0)
    missed = found - np.outer(shares, total)
    return float((missed**2 / np.maximum(total, 1)).sum())


def _deal(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Assign patients to parts, those of the rarest stratum first (Sechidis et al., 2011).

    A patient goes to the part that lacks most of that stratum; ties are broken by the number of
    lacking patients, then at random. No part gets more patients than its share.
    """
    room = _whole_numbers(len(counts), shares)
    lacking = np.outer(shares, counts.sum(axis=0))  # K x S
    order = rng.permutation(len(counts))
    part_of = np.full(len(counts), -1)
    while (part_of < 0).any():
        free = order[part_of[order] < 0]
        left = counts[free].sum(axis=0)
        stratum = int(np.argmin(np.where(left > 0, left, np.inf)))
        holders = free[counts[free, stratum] > 0]
        for patient in holders[np.argsort(-counts[holders, stratum], kind="stable")]:
            parts = rng.permutation(np.flatnonzero(room > 0))
            best = max(parts, key=lambda k: (lacking[k, stratum].round(9), lacking[k, 0].round(9)))
            part_of[patient] = best
            room[best] -= 1
            lacking[best] -= counts[patient]
    return part_of


def _swap(
    counts: np.ndarray, part_of: np.ndarray, shares: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Swap patients between parts as long as this reduces the :func:`imbalance`."""
    part_of, total = part_of.copy(), counts.sum(axis=0)
    weights = 1 / np.maximum(total, 1)
    found = np.array([counts[part_of == k].sum(axis=0) for k in range(len(shares))])
    missed = found - np.outer(shares, total)  # K x S
    for _ in range(_NUM_ROUNDS):
        num_swapped = 0
        for i in rng.permutation(len(counts)):
            others = np.flatnonzero(part_of != part_of[i])
            if len(others) > _NUM_OTHERS:
                others = rng.choice(others, _NUM_OTHERS, replace=False)
            if len(others) == 0:
                continue
            gains = counts[others] - counts[i]  # of i's part
            between = missed[part_of[i]] - missed[part_of[others]]
            changes = (gains * (between + gains)) @ weights
            best = int(np.argmin(changes))
            if changes[best] < -1e-9:
                j = others[best]
                missed[part_of[i]] += gains[best]
                missed[part_of[j]] -= gains[best]
                part_of[i], part_of[j] = part_of[j], part_of[i]
                num_swapped += 1
        if not num_swapped:
            break
    return part_of


def _whole_numbers(total: int, shares: np.ndarray) -> np.ndarray:
    """(K,) integers closest to the shares, with the total as their sum."""
    exact = total * shares
    numbers = np.floor(exact + 1e-9).astype(int)
    rest = np.argsort(numbers - exact, kind="stable")[: total - numbers.sum()]
    numbers[rest] += 1
    return numbers
