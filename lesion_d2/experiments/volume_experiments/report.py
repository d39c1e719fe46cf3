"""Tables of the grid: Table 1 with the paper's numbers, and its claims as differences."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from lesion_d2.tools.common.run_files import write_rows
from lesion_d2.tools.compare_runs import seeds_cell

from tabulate import tabulate

from .grid import DIMENSIONS, METRIC, MODELS, Place, Result, Run

DIMENSION_LABELS = {"3d": "3D", "2dc": "2Dc", "2d": "2D"}
LABELS = {
    "retina_unet": "Retina U-Net",
    "retinanet": "RetinaNet",
    "det_unet": "DetU-Net",
    "u_faster_rcnn_plus": "U-Faster R-CNN+",
    "mask_rcnn": "Mask R-CNN",
}
PATIENT_METRIC = "patient_AP"
#: Rates of false positives per volume in the table.
RATES = ("0.5", "2", "8")
#: Jaeger et al., Table 1: mAP at an IoU of 0.1 and AP per patient in percent, on LIDC-IDRI.
PAPER: dict[Place, tuple[float, float]] = {
    ("3d", "retina_unet"): (49.8, 70.4),
    ("3d", "retinanet"): (45.9, 68.8),
    ("3d", "det_unet"): (36.6, 62.8),
    ("3d", "u_faster_rcnn_plus"): (50.5, 70.7),
    ("3d", "mask_rcnn"): (48.3, 71.8),
    ("2dc", "retina_unet"): (50.2, 73.9),
    ("2dc", "retinanet"): (48.2, 71.5),
    ("2dc", "det_unet"): (41.1, 66.1),
    ("2dc", "u_faster_rcnn_plus"): (49.1, 71.6),
    ("2dc", "mask_rcnn"): (45.4, 69.1),
    ("2d", "retina_unet"): (40.8, 68.0),
    ("2d", "retinanet"): (39.5, 67.7),
    ("2d", "det_unet"): (29.0, 59.8),
    ("2d", "u_faster_rcnn_plus"): (38.6, 66.4),
    ("2d", "mask_rcnn"): (35.3, 63.6),
}
#: Claims of section 4.4.2: heading, and the compared pairs of rows.
CLAIMS = (
    (
        "Segmentation of whole images (the paper: it helps in 2D, 2Dc and 3D)",
        [
            ((dimension, model), (dimension, other))
            for model, other in (("retina_unet", "retinanet"), ("u_faster_rcnn_plus", "mask_rcnn"))
            for dimension in DIMENSIONS
        ],
    ),
    (
        "Context along z (the paper: it helps)",
        [((dimension, m), ("2d", m)) for m in MODELS for dimension in ("2dc", "3d")],
    ),
    (
        "Models in 3-D against slices as channels (the paper: no gain)",
        [(("3d", model), ("2dc", model)) for model in MODELS],
    ),
    (
        "Boxes against components of a segmentation (the paper: DetU-Net is worse)",
        [((dimension, "retina_unet"), (dimension, "det_unet")) for dimension in DIMENSIONS],
    ),
)
#: Dimension and model -> seed -> a metric in percent.
Scores = Mapping[Place, Mapping[int, float]]


def collect_scores(results: Mapping[Run, Result], metric: str = METRIC) -> Scores:
    """A metric of the runs by dimension and model, then by seed; undefined values are left out."""
    scores: dict[Place, dict[int, float]] = {}
    for run, result in results.items():
        value = result.metrics.get(metric)
        if value is not None:
            scores.setdefault((run.dimension, run.model), {})[run.seed] = value
    return scores


def make_table(results: Mapping[Run, Result]) -> str:
    """Table 1's rows: mean and standard deviation over seeds, and the paper's numbers."""
    metrics = (METRIC, PATIENT_METRIC, *(f"sens@{rate}" for rate in RATES))
    scores = {metric: collect_scores(results, metric) for metric in metrics}
    lines = []
    for place in PAPER:
        seeds = scores[METRIC].get(place, {})
        if seeds:
            cells = [seeds_cell([*scores[metric].get(place, {}).values()]) for metric in metrics]
            paper = (f"{value:.1f}" for value in PAPER[place])
            names = DIMENSION_LABELS[place[0]], LABELS[place[1]]
            lines.append([*names, *cells, len(seeds), *paper])
    headers = ["dim.", "model", "mAP at 0.1", "AP of patients"]
    headers += [f"sens. at {rate} FP" for rate in RATES]
    return _table(lines, [*headers, "seeds", "paper: mAP", "paper: patients"])


def claim_tables(scores: Scores) -> Iterator[tuple[str, str]]:
    """Heading and table of each of the paper's claims that the results cover.

    A line has mean and standard deviation over seeds of the difference of two rows with the same
    seed, and the difference in the paper.
    """
    for heading, pairs in CLAIMS:
        lines = []
        for first, second in pairs:
            gains = paired_gains(scores, first, second)
            if gains:
                paper = PAPER[first][0] - PAPER[second][0]
                names = f"{_name(first)} - {_name(second)}"
                lines.append([names, seeds_cell(gains, "+"), len(gains), f"{paper:+.1f}"])
        if lines:
            yield heading, _table(lines, ["percentage points of mAP", "here", "seeds", "paper"])


def paired_gains(scores: Scores, first: Place, second: Place) -> list[float]:
    """Difference of the first and the second row, for every seed that both have."""
    a, b = scores.get(first, {}), scores.get(second, {})
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def write_csv(results: Mapping[Run, Result], file: Path) -> None:
    """Write a line for every run with a result."""
    names = dict.fromkeys(name for result in results.values() for name in result.metrics)
    rows = [
        {
            "dimension": run.dimension,
            "model": run.model,
            "seed": run.seed,
            "train": run.datasets[0],
            "test": run.datasets[1],
            "opts": " ".join(run.opts),
            **{name: result.metrics.get(name) for name in names},
            "iterations": result.iterations,
            "seconds": result.seconds,
            "resumed": result.resumed,
            "date": result.date,
        }
        for run, result in results.items()
    ]
    write_rows(rows, file)


def _name(place: Place) -> str:
    return f"{LABELS[place[1]]} {DIMENSION_LABELS[place[0]]}"


def _table(lines: list[list], headers: list[str]) -> str:
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)
