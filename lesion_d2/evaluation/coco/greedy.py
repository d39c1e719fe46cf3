"""COCO's matching of detections with objects, of all images and thresholds at once."""

import numpy as np

#: Outcomes of a detection, int8: it takes no object, one that counts, or one to ignore.
NOTHING, HIT, IGNORED = range(3)


def match_greedily(
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    images: np.ndarray,
    ignored: np.ndarray,
    is_crowd: np.ndarray,
    thresholds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """What detections take, one after the other in their image, as COCO's evaluation defines it.

    A detection takes the object that it overlaps most among those which it reaches and which are
    not taken yet; of equal overlaps, the last one. Objects to ignore are for those that can take no
    other one. A crowd is never taken up. In round i all images match their i-th detection: only as
    many rounds are gone through as an image has detections that reach any object.

    Args:
        pairs: detections (P,), objects (P,) and their overlaps (P,), image after image; in an image
            the detections by falling score, and the objects of each in their order.
        images: (N,) index of each detection's image.
        ignored: (M, A) bool, whether an object is to be ignored, in A ways such as ranges of area.
        is_crowd: (M,) bool, objects that any number of detections may take; ignored in all ways.
        thresholds: (T,) overlaps that are reached by ``>=``.

    Returns:
        (C,) the detections that are in a pair, rising, and (C, T, A) their outcomes.
    """
    detections, objects, overlaps = pairs
    candidates, pair_candidates = np.unique(detections, return_inverse=True)
    _, first, sizes = np.unique(images[candidates], return_index=True, return_counts=True)
    rounds = (np.arange(len(candidates)) - np.repeat(first, sizes))[pair_candidates]
    # The number of a pair tells which of two is to be taken.
    by_preference = np.lexsort((objects, overlaps))
    preference = np.empty(len(objects), dtype=int)
    preference[by_preference] = np.arange(len(objects))
    bonus = np.where(ignored, 0, len(objects))
    reaches = overlaps[:, None, None] >= thresholds[:, None]

    shape = len(thresholds), ignored.shape[1]
    outcomes = np.full((len(candidates), *shape), NOTHING, dtype=np.int8)
    taken = np.zeros((len(ignored), *shape), dtype=bool)
    order = np.argsort(rounds, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(rounds[order])) + 1) if len(order) else ():
        who, starts = np.unique(pair_candidates[rows], return_index=True)
        free = reaches[rows] & ~taken[objects[rows]]
        wanted = preference[rows, None] + bonus[objects[rows]]
        best = np.maximum.reduceat(np.where(free, wanted[:, None], -1), starts, axis=0)
        row, threshold, way = np.nonzero(best >= 0)
        chosen = objects[by_preference[best[row, threshold, way] % len(objects)]]
        taken[chosen, threshold, way] = ~is_crowd[chosen]
        is_hit = ~ignored[chosen, way]
        outcomes[who[row], threshold, way] = np.where(is_hit, HIT, IGNORED)
    return candidates, outcomes
