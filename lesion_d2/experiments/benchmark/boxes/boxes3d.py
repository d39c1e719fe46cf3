"""Benchmark of 3-D NMS, clustering and RoIAlign against plain loops."""

import itertools
import time
from collections.abc import Callable, Iterator

from lesion_d2.inference import weighted_box_clustering
from lesion_d2.layers import nms_3d, roi_align_3d

import numpy as np
import torch
from torch import Tensor

from ..inputs import random_volume_boxes
from ..timing import Row, time_calls
from .clustering import IOU_THRESHOLD, cluster_loop
from .froc import loop_overlaps

_NMS_THRESHOLDS = (1e-5, 0.5)  # of Jaeger et al.'s code; one at which few boxes suppress others
_BINS, _STRIDES = (3, 7, 7), (1, 4, 4)


def measure_boxes3d(
    num_boxes: int = 5000, num_views: int = 20, per_view: int = 300, num_regions: int = 100
) -> Iterator[Row]:
    """Rows of all three, on the CPU and, if there is one, on a GPU."""
    yield from _measure_nms(num_boxes)
    yield from _measure_clustering(num_views, per_view)
    yield from _measure_roi_align(num_regions)


def _processor_time(call: Callable) -> tuple[float, object]:
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def _devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _best(call: Callable, device: str) -> float:
    """Seconds of the fastest of some calls: CPU time, or wall time on a GPU."""
    (times,) = time_calls([call], repeats=5, device=device)
    return times.min if device == "cuda" else min(times.cpu_seconds)


def _measure_nms(num_boxes: int) -> list[Row]:
    rng = np.random.default_rng(0)
    boxes = random_volume_boxes(rng, (num_boxes,)).astype(np.float32)
    scores = rng.uniform(0, 1, num_boxes).astype(np.float32)
    rows = []
    for threshold in _NMS_THRESHOLDS:
        loop, kept = _processor_time(lambda t=threshold: nms_loop(boxes, scores, t))
        name = f"NMS in 3-D at {threshold:g}, {num_boxes} boxes"
        for device in _devices():
            inputs = [torch.from_numpy(array).to(device) for array in (boxes, scores)]
            seconds = _best(lambda i=inputs, t=threshold: nms_3d(*i, t), device)
            same = nms_3d(*inputs, threshold).tolist() == kept.tolist()
            note = f"{len(kept)} kept, {'the same' if same else 'NOT the same'} as in a plain loop"
            rows.append(Row(f"{name}, {device}", 1e3 * seconds, "ms", None, note))
            ratio = f"plain loop / NMS in 3-D at {threshold:g}, {device}"
            note = f"a loop over the kept boxes: {1e3 * loop:.0f} ms"
            rows.append(Row(ratio, loop / seconds, "x", 1, note, at_least=True))
    return rows


def nms_loop(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Non-maximum suppression as a plain loop, as in toolkits for CPUs.

    The best remaining box is kept, and boxes that overlap it by more than the threshold are
    removed.

    Args:
        boxes: (n, 6).
        scores: (n,).
        threshold: see :func:`nms_3d`.

    Returns:
        (kept,) indices, by descending score.
    """
    left, kept = np.argsort(-scores, kind="stable"), []
    while len(left):
        kept.append(left[0])
        overlaps = loop_overlaps(boxes[left[0]], boxes[left[1:]])
        left = left[1:][overlaps <= threshold]
    return np.array(kept)


def _measure_clustering(num_views: int, per_view: int) -> list[Row]:
    rng = np.random.default_rng(0)
    views = np.repeat(np.arange(num_views), per_view)
    boxes = np.tile(random_volume_boxes(rng, (per_view,)), (num_views, 1))
    boxes += rng.uniform(-0.9, 0.9, boxes.shape)  # by less than the boxes' depth
    scores = rng.uniform(0, 1, len(boxes))

    def cluster() -> tuple[np.ndarray, np.ndarray]:
        """Boxes and scores."""
        return weighted_box_clustering(
            boxes, scores, iou_threshold=IOU_THRESHOLD, view_ids=views, num_views=num_views
        )

    seconds = _best(cluster, "cpu")
    loop, (loop_boxes, loop_scores) = _processor_time(
        lambda: cluster_loop(boxes, scores, views, num_views)
    )
    new_boxes, new_scores = cluster()
    difference = max(np.abs(new_boxes - loop_boxes).max(), np.abs(new_scores - loop_scores).max())
    size = f"{num_views} views x {per_view} boxes"
    note = (
        f"one cluster at a time: {1e3 * loop:.0f} ms; boxes and scores differ by at most "
        f"{difference:.1g}"
    )
    return [
        Row("clustering in 3-D", 1e3 * seconds, "ms", None, size),
        Row("plain loop / clustering in 3-D", loop / seconds, "x", 1, note, at_least=True),
    ]


def _measure_roi_align(num_regions: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(1, 64, 64, 32, 32, generator=generator)
    low = torch.rand(num_regions, 3, generator=generator) * torch.tensor([80.0, 80, 40])
    sides = 4 + torch.rand(num_regions, 3, generator=generator) * torch.tensor([40.0, 40, 20])
    rois = torch.cat([torch.zeros(num_regions, 1), low, low + sides], dim=1)
    scale = tuple(1 / stride for stride in _STRIDES)
    loop, expected = _processor_time(lambda: roi_align_loop(features[0], rois, scale))
    rows = []
    for device in _devices():
        inputs = (features.to(device), rois.to(device), _BINS, scale, 1)
        seconds = _best(lambda i=inputs: roi_align_3d(*i), device)
        difference = (roi_align_3d(*inputs).cpu() - expected).abs().max()
        size = f"{num_regions} regions to {_BINS}, 64 channels, one point per bin"
        rows.append(Row(f"RoIAlign in 3-D, {device}", 1e3 * seconds, "ms", None, size))
        note = f"region by region: {1e3 * loop:.0f} ms; they differ by at most {difference:.1g}"
        name = f"plain loop / RoIAlign in 3-D, {device}"
        rows.append(Row(name, loop / seconds, "x", 1, note, at_least=True))
    return rows


def roi_align_loop(features: Tensor, rois: Tensor, scale: tuple[float, float, float]) -> Tensor:
    """RoIAlign of one volume region by region, of the eight cells around each bin's center.

    Args:
        features: (C, D, H, W).
        rois: (K, 7), see :func:`roi_align_3d`.
        scale: cells per voxel along depth, height and width.

    Returns:
        (K, C, d, h, w) of ``_BINS``.
    """
    pooled = []
    for roi in rois:
        low, high = roi[[3, 2, 1]], roi[[6, 5, 4]]
        axes = []
        for i, size in enumerate(features.shape[1:]):
            side = (high[i] - low[i]) * scale[i]
            points = low[i] * scale[i] + (torch.arange(_BINS[i]) + 0.5) * side / _BINS[i]
            points = points.clamp(0, size - 1)
            floor = points.floor().long().clamp(max=max(size - 2, 0))
            axes.append((floor, points - floor))
        total = features.new_zeros(len(features), *_BINS)
        for corner in itertools.product((0, 1), repeat=3):
            (z, wz), (y, wy), (x, wx) = (
                (floor + side, share if side else 1 - share)
                for side, (floor, share) in zip(corner, axes, strict=True)
            )
            cells = features[:, z[:, None, None], y[None, :, None], x[None, None]]
            total += cells * wz[:, None, None] * wy[None, :, None] * wx[None, None]
        pooled.append(total)
    return torch.stack(pooled)
