"""Confidence intervals of FROC sensitivities by a bootstrap over patients."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .matching import Matches

#: Resamples processed at once, which limits memory.
_DRAWS_AT_ONCE = 100


class _Places(NamedTuple):
    """The two curve points around each requested rate, for each resample.

    A step is a distinct score of false positives; there are K. The curve has the highest
    sensitivity at a rate just before the next step's score, so a step's number denotes that point,
    and K the end of the curve.
    """

    step_scores: np.ndarray  # K, descending
    below: np.ndarray  # B x R, 0..K
    above: np.ndarray  # B x R, 0..K
    fraction: np.ndarray  # B x R, position between the point below (0) and the point above (1)


def patient_draws(num_patients: int, num_resamples: int, seed: int = 0) -> np.ndarray:
    """How often each resample draws each patient, with replacement.

    Returns:
        (num_resamples, num_patients) int32; every row sums to ``num_patients``.
    """
    rng = np.random.default_rng(seed)
    counts = np.empty((num_resamples, num_patients), dtype=np.int32)
    for row in counts:
        row[:] = np.bincount(rng.integers(num_patients, size=num_patients), minlength=num_patients)
    return counts


def bootstrap_sensitivity(
    matches: Matches,
    patients: np.ndarray,
    draws: np.ndarray,
    rates: Sequence[float],
    lesions: Sequence[np.ndarray] = (),
    images: np.ndarray | None = None,
) -> np.ndarray:
    """Sensitivities of each resample, exactly those of the FROC curve of the images it draws.

    Resampling patients does not change the matches, only their weights: lesions and false positives
    are sorted once, and each resample sums its weights over both.

    Args:
        matches: of all images.
        patients: (I,) index of each image's patient, in 0..P-1.
        draws: (B, P), see :func:`patient_draws`.
        rates: R false positives per image.
        lesions: S masks (M,) bool, the lesions of each stratum; one stratum of all lesions if
            empty.
        images: (I,) bool, the images that count; all by default.

    Returns:
        (S, B, R) in 0..1; NaN if a resample draws none of the lesions.
    """
    images = np.ones(matches.num_images, dtype=bool) if images is None else images
    lesions = lesions or [np.ones(len(matches.found_scores), dtype=bool)]
    places = _place_rates(matches, patients, draws, np.asarray(rates, dtype=np.float64), images)
    kept = images[matches.lesion_images]
    lesion_patients = patients[matches.lesion_images]
    return np.stack(
        [
            _sensitivity(
                matches.found_scores[mask & kept], lesion_patients[mask & kept], draws, places
            )
            for mask in lesions
        ]
    )


def percentile_interval(samples: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """Percentile interval along the first axis, without NaN.

    Args:
        samples: (B, ...).

    Returns:
        (2, ...) low and high; NaN if all resamples are NaN.
    """
    tail = 50 * (1 - confidence)
    known = np.isfinite(samples).any(axis=0)
    limits = np.full((2, *samples.shape[1:]), np.nan)
    limits[:, known] = np.nanpercentile(samples[:, known], [tail, 100 - tail], axis=0)
    return limits


def _place_rates(
    matches: Matches, patients: np.ndarray, draws: np.ndarray, rates: np.ndarray, images: np.ndarray
) -> _Places:
    errors = np.flatnonzero(matches.false_positives & images[matches.images])
    errors = errors[np.argsort(-matches.scores[errors], kind="stable")]
    scores = matches.scores[errors]
    error_patients = patients[matches.images[errors]]
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    best = _best_scores(matches, patients, draws, images)
    num_images = draws @ np.bincount(patients[images], minlength=draws.shape[1])
    wanted = num_images[:, None] * rates
    # Most false positives lie far beyond the highest rate. Steps up to slightly more than that rate
    # usually suffice; if a resample needs more, more are processed.
    most = rates.max(initial=0) * images.sum()
    for enough in (*np.searchsorted(ends, [1.25 * most, 2 * most]).tolist(), len(ends)):
        places = _place(error_patients, ends[:enough], scores[ends[:enough]], best, draws, wanted)
        if places.above.max(initial=0) < enough or enough == len(ends):
            break
    return places


def _place(
    error_patients: np.ndarray,
    ends: np.ndarray,
    step_scores: np.ndarray,
    best: np.ndarray,
    draws: np.ndarray,
    wanted: np.ndarray,
) -> _Places:
    """Locate (B, R) numbers of false positives among K steps.

    Args:
        error_patients: patients of the false positives, by descending score.
        ends: (K,) position of each step's last false positive.
        step_scores: (K,) score of each step.
        best: (B,) highest score that finds a lesion.
    """
    below, above = (np.full(wanted.shape, len(ends)) for _ in range(2))
    fraction = np.zeros(wanted.shape)
    if len(ends) == 0:
        return _Places(step_scores, below, above, fraction)
    error_patients = error_patients[: ends[-1] + 1]
    num_before = np.searchsorted(ends, np.arange(len(error_patients) + 1))  # completed steps
    # Weights are integers, so comparisons are exact.
    whole = np.floor(wanted).clip(max=np.iinfo(draws.dtype).max).astype(draws.dtype)
    for i, weights in enumerate(draws):
        total = np.cumsum(weights.take(error_patients), dtype=draws.dtype)
        step = num_before[np.searchsorted(total, whole[i], side="right")]
        inside = np.flatnonzero(step < len(ends))  # the others have the curve's last value
        step = step[inside]
        low, high = np.where(step > 0, total[ends[step - 1]], 0), total[ends[step]]
        below[i, inside] = step
        above[i, inside] = num_before[np.searchsorted(total, high, side="right")]
        # Without a hit before the first false positive, the curve has no point at rate 0.
        starts = (low > 0) | (best[i] > step_scores[step])
        fraction[i, inside] = np.where(starts, (wanted[i, inside] - low) / (high - low), 0)
    return _Places(step_scores, below, above, fraction)


def _best_scores(
    matches: Matches, patients: np.ndarray, draws: np.ndarray, images: np.ndarray
) -> np.ndarray:
    """(B,) highest score that finds a lesion in each resample; -inf if none does."""
    kept = images[matches.lesion_images]
    best = np.full(draws.shape[1], -np.inf)
    np.maximum.at(best, patients[matches.lesion_images[kept]], matches.found_scores[kept])
    return np.where(draws > 0, best, -np.inf).max(axis=1)


def _sensitivity(
    found_scores: np.ndarray, patients: np.ndarray, draws: np.ndarray, places: _Places
) -> np.ndarray:
    """(B, R) fraction of a stratum's lesions that each resample finds at the located points."""
    order = np.argsort(-found_scores, kind="stable")
    position = np.append(
        np.searchsorted(-found_scores[order], -places.step_scores, side="left"),
        np.isfinite(found_scores).sum(),
    )
    shares = np.empty(places.below.shape)
    for first in range(0, len(draws), _DRAWS_AT_ONCE):
        rows = slice(first, first + _DRAWS_AT_ONCE)
        weights = draws[rows, patients[order]]
        found = np.zeros((len(weights), len(order) + 1), dtype=draws.dtype)
        np.cumsum(weights, axis=1, dtype=draws.dtype, out=found[:, 1:])
        low = np.take_along_axis(found, position[places.below[rows]], axis=1)
        high = np.take_along_axis(found, position[places.above[rows]], axis=1)
        drawn = found[:, -1:]  # every lesion, the missed ones last
        share = low + places.fraction[rows] * (high - low)
        shares[rows] = share / np.where(drawn > 0, drawn, np.nan)
    return shares
