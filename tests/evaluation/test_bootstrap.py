import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.evaluation import froc_curve, match_images
from lesion_d2.evaluation.bootstrap import (
    bootstrap_sensitivity,
    patient_draws,
    percentile_interval,
)
from lesion_d2.evaluation.froc import FrocCurve

import numpy as np
import pytest

RATES = [0.0, 0.2, 0.5, 1, 2, 4]


def random_images(rng, num_images, max_boxes=6, score_steps=12):
    def boxes(count):
        low = rng.integers(0, 30, (count, 2))
        return np.concatenate([low, low + rng.integers(4, 12, (count, 2))], axis=1).astype(float)

    truth = [boxes(rng.integers(0, 3)) for _ in range(num_images)]
    pred = [np.concatenate([t, boxes(rng.integers(0, max_boxes))]) for t in truth]
    scores = [rng.integers(1, score_steps, len(p)) / score_steps for p in pred]
    return pred, scores, truth


def slow_resample(pred, scores, truth, patients, counts, lesions=None, images=None):
    """The drawn images written out, a patient's as often as it was drawn."""
    order = [
        i
        for patient, count in enumerate(counts)
        for _ in range(count)
        for i in np.flatnonzero(patients == patient)
        if images is None or images[i]
    ]
    if not order:
        return np.full(len(RATES), np.nan)
    matches = match_images([pred[i] for i in order], [scores[i] for i in order],
                           [truth[i] for i in order])  # fmt: skip
    if lesions is None:
        return froc_curve([pred[i] for i in order], [scores[i] for i in order],
                          [truth[i] for i in order]).at(RATES)  # fmt: skip
    starts = np.cumsum([0] + [len(t) for t in truth])
    kept = np.concatenate([lesions[starts[i] : starts[i + 1]] for i in order])
    return FrocCurve.from_matches(matches, kept).at(RATES)


@pytest.mark.parametrize("num_images, score_steps", [(3, 4), (12, 12), (12, 10**6), (30, 40)])
def test_equals_curves_of_the_written_out_resamples(num_images, score_steps):
    rng = np.random.default_rng(num_images)
    for seed in range(6):
        pred, scores, truth = random_images(rng, num_images, score_steps=score_steps)
        patients = np.sort(rng.integers(0, 4, num_images))
        patients = np.unique(patients, return_inverse=True)[1]
        lesions = rng.random(sum(len(t) for t in truth)) < 0.5
        images = rng.random(num_images) < 0.7
        draws = patient_draws(patients.max() + 1, 15, seed)
        matches = match_images(pred, scores, truth)
        everything = np.ones(len(lesions), dtype=bool)
        fast = bootstrap_sensitivity(matches, patients, draws, RATES, [everything, lesions])
        fast_part = bootstrap_sensitivity(matches, patients, draws, RATES, images=images)
        for b, counts in enumerate(draws):
            case = (pred, scores, truth, patients, counts)
            np.testing.assert_allclose(fast[0, b], slow_resample(*case), atol=1e-12)
            np.testing.assert_allclose(fast[1, b], slow_resample(*case, lesions), atol=1e-12)
            slow = slow_resample(*case, images=images)
            np.testing.assert_allclose(fast_part[0, b], slow, atol=1e-12)


def test_resamples_without_the_patient_of_most_errors():
    # The highest scores are errors of patient 0: a resample without it has its points far down.
    rng = np.random.default_rng(0)
    box = np.array([[0.0, 0, 5, 5]])
    pred = [np.repeat(box + 50, 80, axis=0)]
    pred += [np.concatenate([box, np.repeat(box + 50, 30, axis=0)]) for _ in range(5)]
    scores = [rng.uniform(0.5, 0.9, 80)] + [rng.uniform(0.1, 0.49, 31) for _ in range(5)]
    for image_scores, score in zip(scores[1:], (0.48, 0.47, 0.45, 0.4, 0.2), strict=True):
        image_scores[0] = score  # of the detection on the lesion
    truth = [np.empty((0, 4))] + [box] * 5
    draws = patient_draws(6, 40, seed=1)
    fast = bootstrap_sensitivity(match_images(pred, scores, truth), np.arange(6), draws, RATES)
    assert 0 < fast[0, draws[:, 0] == 0, -1].mean() < 1
    for sample, counts in zip(fast[0], draws, strict=True):
        slow = slow_resample(pred, scores, truth, np.arange(6), counts)
        np.testing.assert_allclose(sample, slow, atol=1e-12)


def test_drawing_everyone_once_is_the_curve():
    pred, scores, truth = random_images(np.random.default_rng(5), 20)
    ones = np.ones((1, 20), dtype=np.int32)
    samples = bootstrap_sensitivity(match_images(pred, scores, truth), np.arange(20), ones, RATES)
    expected = froc_curve(pred, scores, truth).at(RATES)
    np.testing.assert_allclose(samples[0, 0], expected, atol=1e-12)


def test_draws_are_seeded_and_whole():
    draws = patient_draws(7, 200, seed=3)
    np.testing.assert_array_equal(draws, patient_draws(7, 200, seed=3))
    assert (draws != patient_draws(7, 200, seed=4)).any()
    assert (draws.sum(axis=1) == 7).all()
    assert abs(draws.mean(axis=0) - 1).max() < 0.3


def test_percentile_interval_passes_over_nan():
    samples = np.column_stack([np.arange(101.0), np.full(101, np.nan), np.arange(101.0)])
    samples[::2, 2] = np.nan
    low, high = percentile_interval(samples)
    np.testing.assert_allclose([low[0], high[0]], [2.5, 97.5])
    assert np.isnan([low[1], high[1]]).all()
    odd = np.percentile(np.arange(1.0, 101, 2), [2.5, 97.5])
    np.testing.assert_allclose([low[2], high[2]], odd)


def test_no_lesion_drawn_is_nan():
    box = np.array([[0.0, 0, 5, 5]])
    matches = match_images([box, box], [[0.5], [0.4]], [box, np.empty((0, 4))])
    draws = np.array([[2, 0], [0, 2]], dtype=np.int32)
    samples = bootstrap_sensitivity(matches, np.arange(2), draws, [1.0])
    assert samples[0, 0, 0] == 1
    assert np.isnan(samples[0, 1, 0])
