"""Detections of volumetric models, which are 3-D boxes and need no linking of slices."""

from collections.abc import Iterable

import numpy as np

from .volumes import VolumeBoxes, VolumeTruth


def slice_runs(truth: VolumeTruth) -> dict[tuple[str, int], int]:
    """The runs of consecutive slices in the volumes of a data set.

    Returns:
        (volume, number of the first slice) -> number of slices, in the order of the data set's
        volumes.
    """
    numbers: list[list[int]] = [[] for _ in truth.names]
    for volume, number in truth.slices.values():
        numbers[volume].append(number)
    runs = {}
    for name, found in zip(truth.names, numbers, strict=True):
        found = np.unique(found)
        for run in np.split(found, np.flatnonzero(np.diff(found) > 1) + 1):
            runs[name, int(run[0])] = len(run)
    return runs


def boxes_of_run(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, first_slice: int, num_slices: int
) -> VolumeBoxes:
    """Convert detections on a run of slices for evaluation.

    On each slice whose center it contains, a detection has its in-plane box. A box so thin that it
    contains no slice center is on the slice that contains its own center.

    Args:
        boxes: (N, 6) X1Y1Z1X2Y2Z2 in voxels of the run; z = -0.5 is the first slice's edge.
        scores, classes: (N,).
        first_slice, num_slices: number of the first slice, and the number of slices.
    """
    first, last = (side.clip(0, num_slices - 1).astype(int) for side in slices_inside(boxes))
    counts = last - first + 1
    tracklets = np.repeat(np.arange(len(boxes)), counts)
    starts = np.cumsum(counts) - counts
    z = first[tracklets] + np.arange(len(tracklets)) - starts[tracklets] + first_slice
    slice_boxes = boxes[tracklets].copy()
    slice_boxes[:, 2] = slice_boxes[:, 5] = z
    # Numbers of the first and last slice; their edges are half a slice further out.
    numbers = boxes + np.array([0, 0, first_slice + 0.5, 0, 0, first_slice - 0.5])
    return VolumeBoxes(numbers, scores, classes, slice_boxes, tracklets)


def slices_inside(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last slice whose center a box contains, or else the slice of the box's center.

    Args:
        boxes: (N, 6) X1Y1Z1X2Y2Z2; the edges of slices are 0.5 from their centers.

    Returns:
        (N,), (N,) integers.
    """
    low, high = boxes[:, 2], boxes[:, 5]
    first, last = np.ceil(low), np.floor(high)
    nearest = np.floor((low + high) / 2 + 0.5)
    is_thin = first > last
    return np.where(is_thin, nearest, first), np.where(is_thin, nearest, last)


def join_volume(parts: Iterable[VolumeBoxes]) -> VolumeBoxes:
    """Join the detections of a volume's runs, by descending score.

    Detections are not linked across missing slices. A lesion on both sides of a gap is one lesion
    in the ground truth and may be found on each side; the second detection is a repeat, which is no
    false positive in the FROC but is one in AP.
    """
    parts = list(parts)
    if not parts:
        return VolumeBoxes.empty()
    starts = np.cumsum([0, *(len(part.boxes) for part in parts[:-1])])
    boxes, scores, classes, slice_boxes = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("boxes", "scores", "classes", "slice_boxes")
    )
    tracklets = np.concatenate(
        [part.tracklets + start for part, start in zip(parts, starts, strict=True)]
    )
    order = np.argsort(-scores, kind="stable")
    return VolumeBoxes(
        boxes[order], scores[order], classes[order], slice_boxes, np.argsort(order)[tracklets]
    )
