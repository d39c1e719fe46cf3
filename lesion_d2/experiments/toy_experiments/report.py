"""Tables of the grid: all runs, means over seeds, and the paper's claims as differences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from lesion_d2.tools.common.run_files import write_rows
from lesion_d2.tools.compare_runs import seeds_cell

import numpy as np
from detectron2.config import CfgNode
from tabulate import tabulate

from .grid import Result, Run

LABELS = {
    "retina_unet": "Retina U-Net",
    "retinanet": "RetinaNet",
    "u_faster_rcnn_plus": "U-Faster R-CNN+",
    "mask_rcnn": "Mask R-CNN",
    "faster_rcnn_plus": "Faster R-CNN+",
    "det_unet": "DetU-Net",
}
TASK_LABELS = {
    "donuts_shape": "(a) shapes",
    "donuts_pattern": "(b) patterns",
    "circles_scale": "(c) scales",
}
#: A model with full segmentation, and the same without.
SEGMENTATION = (("retina_unet", "retinanet"), ("u_faster_rcnn_plus", "faster_rcnn_plus"))
STAGES = (("u_faster_rcnn_plus", "retina_unet"), ("faster_rcnn_plus", "retinanet"))
MASK_HEAD = (("mask_rcnn", "faster_rcnn_plus"),)
#: Claims of section 4.6.2: heading, tasks, and the compared pairs of models.
CLAIMS = (
    (
        "Gain from segmentation (the paper: in (a) and (b), larger for smaller n; none in (c))",
        tuple(TASK_LABELS),
        SEGMENTATION,
    ),
    ("Two stages against one (the paper: better in (c))", ("circles_scale",), STAGES),
    ("Gain from a mask head (the paper: none at small n)", tuple(TASK_LABELS), MASK_HEAD),
)
#: Task, model, n -> seed -> AP at an IoU of 0.1 in percent.
Scores = Mapping[tuple[str, str, int], Mapping[int, float]]


def collect_scores(results: Mapping[Run, Result]) -> Scores:
    """The runs' AP by task, model and n, then by seed."""
    scores: dict[tuple[str, str, int], dict[int, float]] = {}
    for run, result in results.items():
        scores.setdefault((run.task, run.model, run.size), {})[run.seed] = result.ap10
    return scores


def write_csv(results: Mapping[Run, Result], file: Path) -> None:
    """Write a line for every run with a result."""
    rows = [
        {
            "task": run.task,
            "model": run.model,
            "n": run.size,
            "seed": run.seed,
            "test_images": run.num_test,
            "config": run.config,
            "opts": " ".join(run.opts),
            **asdict(result),
        }
        for run, result in results.items()
    ]
    write_rows(rows, file)


def figure_title(runs: Sequence[Run], num_results: int, cfg: CfgNode) -> str:
    """The common settings of the runs: models, images, iterations and numbers.

    Args:
        runs: of a grid, with or without a result.
        num_results: number of runs with a result.
        cfg: the config of any of them.
    """
    size, solver = cfg.INPUT.CT.IMAGE_SIZE, cfg.SOLVER
    parts = [
        "Toy experiments" + (": small models" if runs[0].small else ""),
        f"{size} x {size} pixels",
        f"{solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} images",
        "n = " + ", ".join(str(n) for n in dict.fromkeys(run.size for run in runs)),
        f"{runs[0].num_test} test images",
        f"seeds {', '.join(str(seed) for seed in dict.fromkeys(run.seed for run in runs))}",
    ]
    if num_results < len(runs):
        parts.append(f"{num_results} of {len(runs)} runs")
    return "; ".join(parts)


def model_table(scores: Scores, task: str, models: Sequence[str], sizes: Sequence[int]) -> str:
    """A task's table: a line per model, a column per n, mean and standard deviation over seeds."""
    values = {(m, n): [*scores.get((task, m, n), {}).values()] for m in models for n in sizes}
    lines = [[LABELS[m], *(seeds_cell(values[m, n]) for n in sizes)] for m in models]
    return _table(lines, ["mAP@0.1 (%)"], sizes)


def paired_gains(scores: Scores, task: str, pair: tuple[str, str], size: int) -> list[float]:
    """Difference of the first and the second model, for every seed that both have."""
    first, second = (scores.get((task, model, size), {}) for model in pair)
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def claim_tables(
    scores: Scores, tasks: Sequence[str], models: Sequence[str], sizes: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """Heading and table of every claim that these tasks and models cover.

    A line is a pair of models in a task: mean and standard deviation over seeds of their difference
    with the same seed, and the number of n for which the mean is above the standard deviation.
    """
    for heading, its_tasks, pairs in CLAIMS:
        lines = []
        for task in (t for t in its_tasks if t in tasks):
            for pair in (p for p in pairs if set(p) <= set(models)):
                gains = [paired_gains(scores, task, pair, n) for n in sizes]
                names = " - ".join(LABELS[model] for model in pair)
                cells = (seeds_cell(values, "+") for values in gains)
                lines.append([TASK_LABELS[task], names, *cells, _count_clear(gains)])
        if lines:
            yield heading, _table(lines, ["task", "percentage points"], sizes, "mean > spread")


def _count_clear(gains: Sequence[Sequence[float]]) -> str:
    known = [values for values in gains if len(values) > 1]
    clear = sum(np.mean(values) > np.std(values, ddof=1) for values in known)
    return f"{clear} of {len(known)}"


def _table(lines: list[list[str]], first: Sequence[str], sizes: Sequence[int], *last: str) -> str:
    headers = [*first, *(f"n = {n}" for n in sizes), *last]
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)
