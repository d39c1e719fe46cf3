"""COCO's matching of detections with objects, vectorized over images and thresholds."""

import numpy as np

#: Outcomes of a detection, int8: it matches no object, an object, or an ignored object.
NOTHING, HIT, IGNORED = range(3)


def match_greedily(
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    images: np.ndarray,
    ignored: np.ndarray,
    is_crowd: np.ndarray,
    thresholds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Match detections in order of score in each image, as COCO's evaluation defines it.

    A detection takes the object that it overlaps most among those that it reaches and that are not
    yet taken; of equal overlaps, the last one. Ignored objects are taken only if there is no other.
    A crowd can be taken any number of times. Round i matches the i-th detection of all images, so
    the number of rounds is the largest number of detections in an image that reach any object.

    Args:
        pairs: detections (P,), objects (P,) and their overlaps (P,), sorted by image, descending
            score and object.
        images: (N,) index of each detection's image.
        ignored: (M, A) bool, whether an object is ignored, in A settings such as ranges of area.
        is_crowd: (M,) bool, objects that any number of detections may take; ignored in all
            settings.
        thresholds: (T,) minimum overlaps (``>=``).

    Returns:
        (C,) the detections that are in a pair, ascending, and (C, T, A) their outcomes.
    """
    detections, objects, overlaps = pairs
    candidates, pair_candidates = np.unique(detections, return_inverse=True)
    _, first, sizes = np.unique(images[candidates], return_index=True, return_counts=True)
    rounds = (np.arange(len(candidates)) - np.repeat(first, sizes))[pair_candidates]
    # Pairs are ranked by number: the higher one is taken.
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
