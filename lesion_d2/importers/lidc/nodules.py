"""Nodules of LIDC-IDRI: masks from outlines, and the consensus of readers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from ..polygons import polygon_mask
from .xml import Annotation, Contour

#: Ways to count readers' votes, see :func:`consensus`.
VOTES = ("authors", "paper")
_NUM_READERS = 4
_LEAST_TOLERANCE, _SHRINK = 0.1, 0.9
_MALIGNANT = 3


@dataclass(frozen=True, eq=False)
class Nodule:
    """A consensus nodule.

    Args:
        masks: slice -> (H, W) bool, only slices where a voxel has a majority.
        malignancy: mean score; None if no reader gave one.
        is_malignant: its class.
        readers: number of readers who outlined it.
    """

    masks: dict[int, np.ndarray]
    malignancy: float | None
    is_malignant: bool
    readers: int


def cluster_annotations(
    points: Sequence[np.ndarray], tolerance: float, most: int = _NUM_READERS
) -> list[list[int]]:
    """Group the annotations of a scan by nodule, as pylidc 0.2.3 does.

    Two annotations belong to the same nodule if points of their outlines (including holes) are
    within the tolerance, directly or through others. While a group has more than four, all are
    grouped again with 0.9 times the tolerance, down to 0.1. As in pylidc, on which published nodule
    counts are based, distances are in pixels and slices, and the tolerance is the scan's slice
    thickness in mm.

    Args:
        points: (N, 3) x, y, slice of each annotation's outlines.
        tolerance: slice thickness, mm.
        most: maximum number of annotations in a group.

    Returns:
        Groups of ascending indices of ``points``, in the order of their first index.
    """
    count = len(points)
    if count == 0:
        return []
    trees = list(map(KDTree, points))  # all pairs of points of large nodules would take gigabytes
    distances = np.zeros((count, count))
    for first in range(count):
        for second in range(first):
            distances[first, second] = trees[second].query(points[first])[0].min()
    distances = np.maximum(distances, distances.T)
    while True:
        _, labels = connected_components(distances <= tolerance, directed=False)
        groups = [np.flatnonzero(labels == label).tolist() for label in dict.fromkeys(labels)]
        tolerance *= _SHRINK
        if max(map(len, groups), default=0) <= most or tolerance < _LEAST_TOLERANCE:
            return groups


def split_by_reader(
    group: Sequence[int], readers: Sequence[int], masks: Sequence[Mapping[int, np.ndarray]]
) -> list[list[int]]:
    """Split a group with two annotations of one reader, who saw two nodules.

    Outlines of touching nodules share pixels, so distance cannot separate them. Annotations are
    merged by descending mask overlap, but never two of the same reader. pylidc, which does not know
    the readers, does not split such groups.

    Args:
        group: indices of annotations.
        readers, masks: reader and mask of all annotations, see :func:`annotation_mask`.

    Returns:
        The group if no reader occurs twice in it, or else its parts.
    """
    if len({readers[index] for index in group}) == len(group):
        return [list(group)]
    overlaps = {pair: _overlap(masks[pair[0]], masks[pair[1]]) for pair in combinations(group, 2)}
    parts = {index: [index] for index in group}
    for first, second in sorted(overlaps, key=overlaps.get, reverse=True):
        one, other = parts[first], parts[second]
        joined = {readers[index] for index in (*one, *other)}
        if one is other or len(joined) < len(one) + len(other) or not overlaps[first, second]:
            continue
        one.extend(other)
        parts.update(dict.fromkeys(other, one))
    return sorted(sorted(part) for part in {id(part): part for part in parts.values()}.values())


def annotation_mask(
    contours: Sequence[tuple[int, Contour]], shape: tuple[int, int]
) -> dict[int, np.ndarray]:
    """The mask of one annotation.

    An outline runs just outside of the nodule, so its pixels do not belong to it. An exclusion is a
    hole including its outline; parts on the same slice are merged. pylidc 0.2.3 does the same,
    except where outlines of parts cross (it removes their pixels from earlier parts) and where
    outlines have gaps (it may keep their pixels).

    Args:
        contours: slice and outline.
        shape: H, W of a stored slice.

    Returns:
        Slice -> (H, W) bool, only slices with pixels.

    Raises:
        ValueError: a point lies outside of the slice.
    """
    masks: dict[int, np.ndarray] = {}
    for is_inclusion in (True, False):
        for number, contour in contours:
            if contour.inclusion != is_inclusion:
                continue
            if (contour.points >= (shape[1], shape[0])).any():
                raise ValueError(
                    f"found the point {contour.points.max(axis=0).tolist()} of an outline, "
                    f"expected a pixel within {shape[1]} x {shape[0]}"
                )
            mask = masks.setdefault(number, np.zeros(shape, bool))
            edge = _edge(contour.points, shape)
            inside = polygon_mask(contour.points, shape)
            if is_inclusion:
                mask |= inside & ~edge
            else:
                mask &= ~(inside | edge)
    return {number: mask for number, mask in masks.items() if mask.any()}


def consensus(
    annotations: Sequence[tuple[Annotation, Mapping[int, np.ndarray]]], votes: str
) -> Nodule:
    """Merge the annotations of a nodule by several readers.

    - ``authors``, as in the published code of Jaeger et al.: up to four readers, those without an
      annotation vote with an empty mask and a malignancy of 0. A voxel belongs to the nodule with
      at least half of the votes, and a mean of at least 3 is malignant.
    - ``paper``, as described in section 4.4.1: only readers who outlined the nodule vote. A voxel
      belongs to it with more than half of the votes; scores are averaged over readers who gave one,
      1 to 2 is benign and 3 to 5 malignant, with means rounded (2.5 to 3).

    Args:
        annotations: annotations of one nodule by different readers, each with its masks.
        votes: one of ``VOTES``.
    """
    readers = len(annotations)
    counted = max(readers, _NUM_READERS) if votes == "authors" else readers
    needed = math.ceil(counted / 2) if votes == "authors" else counted // 2 + 1
    scores = [a.malignancy for a, _ in annotations if a.malignancy is not None]
    malignancy = sum(scores) / (len(scores) + counted - readers) if scores else None
    scored = malignancy
    if malignancy is not None and votes == "paper":
        scored = math.floor(malignancy + 0.5)
    return Nodule(
        _voted([masks for _, masks in annotations], needed),
        malignancy,
        scored is not None and scored >= _MALIGNANT,
        readers,
    )


def _edge(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, the pixels of an outline, with gaps closed by straight lines."""
    drawn = np.zeros(shape, np.uint8)
    cv2.polylines(drawn, [points.astype(np.int32)[:, None]], True, 1)
    return drawn.astype(bool)


def _overlap(first: Mapping[int, np.ndarray], second: Mapping[int, np.ndarray]) -> float:
    """IoU of two annotations' masks."""
    both = sum(int((first[number] & second[number]).sum()) for number in first.keys() & second)
    total = sum(int(mask.sum()) for masks in (first, second) for mask in masks.values())
    return both / (total - both) if both else 0.0


def _voted(readers: Sequence[Mapping[int, np.ndarray]], needed: int) -> dict[int, np.ndarray]:
    masks = {}
    for number in sorted({number for reader in readers for number in reader}):
        votes = sum(reader[number].astype(np.uint8) for reader in readers if number in reader)
        if (votes >= needed).any():
            masks[number] = votes >= needed
    return masks
