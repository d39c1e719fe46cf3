from lesion_d2.evaluation.coco.greedy import HIT, IGNORED, NOTHING, match_greedily

import numpy as np
import pytest


def slow_match(overlaps, ignored, is_crowd, threshold):
    """One image, detections (N) by falling score x objects (M): word by word as COCO says."""
    taken, outcomes = set(), []
    for row in overlaps:
        outcome, best = NOTHING, None
        for wanted, name in ((False, HIT), (True, IGNORED)):
            for k, overlap in enumerate(row):
                is_free = k not in taken or is_crowd[k]
                if bool(ignored[k]) == wanted and is_free and overlap >= threshold:
                    best = k if best is None or overlap >= row[best] else best
            if best is not None:
                outcome = name
                taken.add(best)
                break
        outcomes.append(outcome)
    return outcomes


@pytest.mark.parametrize("seed", range(3))
def test_all_images_at_once_give_what_each_gives(seed):
    rng = np.random.default_rng(seed)
    shapes = rng.integers(0, 7, (20, 2))
    tables = [rng.integers(0, 6, shape) / 5 for shape in shapes]  # overlaps are often equal
    images = np.repeat(np.arange(20), shapes[:, 0])
    is_crowd = rng.random(shapes[:, 1].sum()) < 0.2
    ignored = is_crowd[:, None] | (rng.random((len(is_crowd), 2)) < 0.3)
    firsts = np.cumsum(shapes, axis=0) - shapes
    pairs = [
        (first[0] + d, first[1] + k, table[d, k])
        for table, first in zip(tables, firsts, strict=True)
        for d, k in np.argwhere(table >= 0.2)
    ]
    pairs = tuple(np.array(column) for column in zip(*pairs, strict=True))
    thresholds = np.array([0.2, 0.6, 0.9])
    candidates, outcomes = match_greedily(pairs, images, ignored, is_crowd, thresholds)

    assert np.array_equal(candidates, np.unique(pairs[0]))
    for t, threshold in enumerate(thresholds):
        for way in range(2):
            expected = []
            for table, first, (_, m) in zip(tables, firsts, shapes, strict=True):
                own = slice(first[1], first[1] + m)
                expected += slow_match(table, ignored[own, way], is_crowd[own], threshold)
            found = np.full(len(images), NOTHING)
            found[candidates] = outcomes[:, t, way]
            assert found.tolist() == expected
            assert {NOTHING, HIT, IGNORED} == set(expected)


def test_without_a_pair_nothing_is_taken():
    none = np.empty(0, dtype=int)
    pairs = none, none, np.empty(0)
    crowd = np.zeros(2, dtype=bool)
    candidates, outcomes = match_greedily(
        pairs, np.arange(3), np.zeros((2, 4), dtype=bool), crowd, np.array([0.5])
    )
    assert len(candidates) == 0 and outcomes.shape == (0, 1, 4)
