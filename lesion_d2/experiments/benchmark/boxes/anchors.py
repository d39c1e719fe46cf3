"""Benchmark of the anchor search, with as many boxes as DeepLesion's validation set."""

from functools import partial
from pathlib import Path

from lesion_d2.modeling.anchors import best_anchor_iou, optimize_anchors
from lesion_d2.tools.common.box_shapes import csv_boxes
from lesion_d2.tools.optimize_anchors import RETINANET_ANCHORS

import numpy as np

from ..configs import CONFIGS, CPU_CONFIG, load_config
from ..timing import Row, time_calls

# The real boxes, which are not part of the project, if their file exists.
BOXES = CONFIGS.parents[1] / "shared" / "data" / "deeplesion_val_boxes.csv"
NUM_BOXES = 4885
# Quantiles 1, 10, 50, 90 and 99 % of the real widths, in px, to draw random boxes instead.
WIDTHS = {0.01: 13, 0.1: 17, 0.5: 27.6, 0.9: 57, 0.99: 122}


def measure_anchors(boxes: Path = BOXES, *, repeats: int = 5) -> list[Row]:
    """The search with default sizes and bounds, and its mean IoU; on DeepLesion's boxes if any."""
    is_real = boxes.exists()
    wh = read_boxes(boxes) if is_real else draw_boxes()
    found = []
    search = partial(optimize_anchors, wh, objective="mean")
    (times,) = time_calls([lambda: found.append(search())], repeats=repeats)
    source = "DeepLesion's validation set" if is_real else "random (no file of DeepLesion)"
    default = best_anchor_iou(wh, RETINANET_ANCHORS)
    time_note = f"CPU time; wall time {times.min:.2f} s; {len(wh):,} boxes, {source}"
    iou_note = f"{default.mean():.3f} with Detectron2's anchors; no limit for random boxes"
    limit = 0.884 if is_real else None
    return [
        Row("anchor search", min(times.cpu_seconds), "s", 3, time_note),
        Row("mean best IoU of its anchors", found[-1].mean_iou, "", limit, iou_note, True),
    ]


def read_boxes(file: Path) -> np.ndarray:
    """(N, 2) widths and heights of the boxes of a CSV, at 512 x 512."""
    cfg = load_config(CPU_CONFIG, "cpu")
    cfg.INPUT.CT.IMAGE_SIZE = 512
    return csv_boxes(file, cfg).wh


def draw_boxes() -> np.ndarray:
    """(4885, 2) random widths and heights with the distribution of the real ones."""
    rng = np.random.default_rng(0)
    shares = rng.uniform(0, 1, NUM_BOXES)
    width = np.exp(np.interp(shares, list(WIDTHS), np.log(list(WIDTHS.values()))))
    return np.stack([width, width * np.exp(rng.normal(0, 0.25, NUM_BOXES))], axis=1)
