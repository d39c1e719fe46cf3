"""Benchmark of tracking boxes along z in a large volume."""

from lesion_d2.inference import merge_slices, track_slices

import numpy as np

from ..inputs import random_boxes
from ..timing import Row, time_calls

#: Of the time of merging the same boxes.
LIMIT = 4.0
_LENGTH = 10  # slices of a lesion


def measure_linking(num_slices: int = 300, per_slice: int = 100) -> list[Row]:
    """``track_slices`` of lesions over ten slices, and of random boxes."""
    rng = np.random.default_rng(0)
    lesions = random_boxes(rng, (-(-num_slices // _LENGTH), per_slice))
    tracks = np.repeat(lesions, _LENGTH, axis=0)[:num_slices].reshape(-1, 4)
    tracks = tracks + np.tile(rng.uniform(-2, 2, (len(tracks), 2)), 2)
    scattered = random_boxes(rng, (len(tracks),))
    scores = rng.uniform(0, 1, len(tracks))
    slices = np.repeat(np.arange(num_slices), per_slice)

    def track(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes in 3-D and scores, with the default config."""
        return track_slices(boxes, scores, slices, iou_threshold=0.3, max_gap=1)

    calls = [
        lambda: track(tracks),
        lambda: track(scattered),
        lambda: merge_slices(tracks, scores, slices, iou_threshold=0.1),
    ]
    times = time_calls(calls, repeats=3)
    seconds = [min(measured.cpu_seconds) for measured in times]
    size = f"{num_slices} slices x {per_slice} boxes"
    note = "CPU time, {:.2f} against {:.2f} s; " + size
    found = f"{note}; {len(track(tracks)[0])} lesions"
    lesions, scattered_boxes, merging = seconds
    return [
        _ratio("linking, tracking / merging", lesions, merging, found),
        _ratio("linking, tracking of random boxes / merging", scattered_boxes, merging, note),
        Row("linking, merging", merging, "s", None, size),
    ]


def _ratio(name: str, tracking: float, merging: float, note: str) -> Row:
    return Row(name, tracking / merging, "x", LIMIT, note.format(tracking, merging))
