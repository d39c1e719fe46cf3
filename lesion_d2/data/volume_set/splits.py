"""Splits and folds of patients, alike in classes and sizes of lesions."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from .form import SPLITS, Lesion, Volume, VolumeSet, read_volume_set, write_volume_set

#: Train, val and test in percent: Jaeger et al., section 4.1, in each of five folds.
DEFAULT_SHARES = (60.0, 20.0, 20.0)
# Groups of a class's lesions, each with as many.
_SIZES = ("small", "middle", "large")
# Tries of which the best one is taken, and how often each goes through the patients, to swap them
# with another one of so many.
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
    """Give a data set the splits and folds of its source, and what is missing of them.

    Patients that the source has in no split are shared among the splits that it does not have, in
    the proportion of ``shares``; where it has all three, they are in none. Where it has folds
    alone, the splits are those of the first fold.

    Args:
        volume_set: its own splits and folds do not count.
        known: patient -> split, of the source.
        folds: of the source. Patients that are in no volume are left out of both.
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
    """Share the patients among train, val and test.

    Each gets its share of the patients, to the nearest whole numbers, and as nearly as that allows
    of the patients without a lesion and of the lesions of every class and size: small, middle and
    large ones of the class, a third each, by the longer side of their box in the slice, in mm where
    every volume with a lesion has its spacing and else in pixels.

    Args:
        volume_set: its splits do not count.
        shares: of train, val and test, at least 0, in any unit.
        seed: another one gives other splits; with the same one the order of volumes does not count.

    Returns:
        split -> patients, sorted; without splits that have none.

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
    """Folds of a cross-validation (Jaeger et al., section 4.1): train, val and test in each.

    The patients are shared among ``num_folds`` parts, see :func:`split_patients`; each part is the
    test split of one fold. Of the others, val comes from the parts that follow, in a circle, so
    that with five folds and 60/20/20 it is the next part: every patient is then in val once, too.

    Args:
        volume_set: its folds do not count.
        num_folds: at least 2.
        shares: of train, val and test. That of test is one in ``num_folds`` in any case; the rest
            is shared in the proportion of the other two.
        seed: see :func:`split_patients`.

    Returns:
        A split -> patients, sorted, for each fold.

    Raises:
        ValueError: fewer than 2 folds, or more than there are patients; or see
            :func:`check_choice`.
    """
    patients = sorted({volume.patient for volume in volume_set.volumes})
    if not 2 <= num_folds <= len(patients):
        raise ValueError(
            f"found {num_folds} folds, expected 2 to {len(patients)}, the number of patients"
        )
    train, val, _ = check_choice(shares, seed)
    if train <= 0:
        raise ValueError(f"found shares {list(shares)}, expected some for train")
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
    """Split a data set on disk anew, or give it folds.

    Args:
        root: its folder; ``volume_set.json`` is written whole, unless it has just these already.
        num_folds: of :func:`make_folds`; None for the splits of :func:`split_patients`.
        shares, seed: see there.
        overwrite: replace other ones that it has, such as those of its source.

    Returns:
        The data set as it is now.

    Raises:
        FileNotFoundError: there is no data set.
        ValueError: it is damaged, it has others, or see :func:`make_folds`.
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
            f"{root}: found {number} other than those asked for; pass --overwrite to replace them"
        )
    volume_set = replace(volume_set, **{kind: made})
    write_volume_set(root, volume_set)
    return volume_set


def describe_strata(volume_set: VolumeSet) -> tuple[list[str], np.ndarray]:
    """What splits are to be alike in: names of S strata, and (P, S) counts of each patient.

    Patients are sorted. The first stratum is the patients themselves, the second those without a
    lesion; the others count lesions, not ignored regions.
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
    """All lesions with the longer side of their box in the slice."""
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
    """Refuse what no patients can be chosen by.

    Returns:
        The shares.

    Raises:
        ValueError: shares that are not three numbers from 0 on with a sum above 0, or a seed below
            0.
    """
    shares = list(map(float, shares))
    if len(shares) != len(SPLITS) or not all(0 <= s < math.inf for s in shares) or not sum(shares):
        raise ValueError(
            f"found shares {shares}, expected one of {', '.join(SPLITS)} each, from 0 on, not all 0"
        )
    if seed < 0:
        raise ValueError(f"found the seed {seed}, expected one from 0 on")
    return shares


def _partition(
    volume_set: VolumeSet, patients: Sequence[str], shares: Sequence[float], seed: int
) -> np.ndarray:
    """(P,) the part of each of these patients: the best of some tries."""
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
    """How far parts are from their shares of every stratum: 0 where they have them exactly.

    Args:
        counts: (P, S), see :func:`describe_strata`.
        part_of: (P,) in 0..K-1.
        shares: (K,), their sum is 1.

    Returns:
        The sum over strata and parts of the squared difference, over the stratum's number.
    """
    found = np.array([counts[part_of == k].sum(axis=0) for k in range(len(shares))])
    total = counts.sum(axis=0)
    missed = found - np.outer(shares, total)
    return float((missed**2 / np.maximum(total, 1)).sum())


def _deal(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deal patients out, those of the rarest stratum first (Sechidis et al., 2011).

    A patient goes to the part that lacks most of that stratum; of equal ones to the one that lacks
    most patients, or to any. A part takes no more patients than are its share.
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
    """Swap patients of different parts as long as that lowers the :func:`imbalance`."""
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
    """(K,) numbers that are nearest to the shares and sum to the total."""
    exact = total * shares
    numbers = np.floor(exact + 1e-9).astype(int)
    rest = np.argsort(numbers - exact, kind="stable")[: total - numbers.sum()]
    numbers[rest] += 1
    return numbers
