"""Pictures of a run's detections."""

import argparse
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from lesion_d2.data.catalog import load_records
from lesion_d2.evaluation.result_files import read_froc_file
from lesion_d2.visualization import (
    OUTCOME_LEGEND,
    LesionVisualizer,
    Outcome,
    judge,
    parse_window,
)

import numpy as np

from .pictures import MAX_COLUMNS, picture_name, remove_pictures, write_pictures
from .results import read_results

PICKS = ("best", "worst", "random")
AnyOutcome = TypeVar("AnyOutcome", bound=Outcome)


def draw_predictions(args: argparse.Namespace) -> list[str]:
    """Write the pictures of a run's detections; return their paths, the contact sheet last."""
    window = parse_window(args.window)
    records = load_records(args.dataset, allow_missing=args.allow_missing)
    results = read_results(args.results, records, args.dataset)
    judge_image = partial(judge, inclusive=_counts_whole_pixels(args.results))
    threshold = args.score_threshold
    if threshold is None:
        outcomes = [judge_image(r, results[str(r["image_id"])]) for r in records]
        threshold = threshold_at_fps(outcomes, args.fps_per_image)
    outcomes = [
        judge_image(r, results[str(r["image_id"])], score_threshold=threshold) for r in records
    ]
    print(run_summary(outcomes, threshold))
    drawings, counts = [], dict.fromkeys(args.pick, 0)
    for pick, outcome in pick_outcomes(outcomes, args.pick, args.num, seed=args.seed):
        counts[pick] += 1
        image_id = outcome.record["image_id"]
        title = f"{pick} {counts[pick]}: {image_id}\n{outcome.summary()}"
        name = f"{pick}_{counts[pick]:02d}_{picture_name(outcome.record)}"
        drawings.append((name, title, outcome))
    output = args.output or os.path.join(os.path.dirname(args.results), "pictures")
    remove_pictures(output, [f"{pick}_[0-9][0-9]*_*.png" for pick in PICKS])
    columns = args.num if len(args.pick) > 1 and args.num <= MAX_COLUMNS else None
    draw = LesionVisualizer.draw_outcome
    return write_pictures(
        args.dataset, window, drawings, draw, output, OUTCOME_LEGEND, columns=columns
    )


def _counts_whole_pixels(results: str) -> bool:
    """Whether the evaluation that wrote a file of results did; one without a table did not."""
    file = Path(results).parent / "froc.json"
    return file.is_file() and read_froc_file(file).get("settings", {}).get("inclusive", False)


def threshold_at_fps(outcomes: Sequence[Outcome], rate: float) -> float:
    """The lowest score threshold at which a run has at most so many false positives per image.

    Args:
        outcomes: one entry an image (or volume), with all detections of the run.
        rate: wanted false positives, over all images.

    Returns:
        keep detections with scores at or above it; 0 where all detections may stay.
    """
    scores = np.sort(np.concatenate([o.scores[o.is_false_positive] for o in outcomes]))[::-1]
    allowed = int(rate * len(outcomes))
    if len(scores) <= allowed:
        return 0.0
    return float(np.nextafter(scores[allowed], scores.dtype.type(np.inf)))


def pick_outcomes(
    outcomes: Sequence[AnyOutcome], picks: Sequence[str], num: int, *, seed: int = 0
) -> list[tuple[str, AnyOutcome]]:
    """Choose images (or volumes) to look at.

    Best images come by falling and worst ones by rising :func:`outcome_quality`; equal quality is
    ordered by the number of false positives, then by the order given. Images of quality NaN are
    only picked at random. No image is picked twice.

    Args:
        outcomes: one entry an image.
        picks: any of "best", "worst" and "random", in the order wanted.
        num: images per pick; fewer where there are no more.
        seed: of the random pick.

    Returns:
        (pick, outcome) pairs.

    Raises:
        ValueError: an unknown pick, or ``num`` below 1.
    """
    if num < 1:
        raise ValueError(f"number of images per pick is {num}, expected at least 1")
    ranked = [i for i, outcome in enumerate(outcomes) if not math.isnan(outcome.quality)]
    ranked.sort(key=lambda i: (-outcomes[i].quality, outcomes[i].is_false_positive.sum()))
    shuffled = np.random.default_rng(seed).permutation(len(outcomes)).tolist()
    orders = {"best": ranked, "worst": ranked[::-1], "random": shuffled}
    taken: set[int] = set()
    chosen = []
    for pick in picks:
        if pick not in orders:
            raise ValueError(f"unknown pick {pick!r}, expected best, worst or random")
        new = [i for i in orders[pick] if i not in taken][:num]
        taken.update(new)
        chosen += [(pick, outcomes[i]) for i in new]
    return chosen


def run_summary(outcomes: Sequence[Outcome], threshold: float, unit: str = "image") -> str:
    """What a run finds at a score threshold, as one line of text.

    Args:
        outcomes: one entry an image (or volume).
        threshold: of scores.
        unit: what an entry is.
    """
    found = sum(int(o.is_found.sum()) for o in outcomes)
    lesions = sum(len(o.is_found) for o in outcomes)
    rate = sum(int(o.is_false_positive.sum()) for o in outcomes) / len(outcomes)
    return (
        f"score threshold {threshold:.3f}: {found} of {lesions} lesions found at {rate:.2f} false "
        f"positives per {unit}, {len(outcomes)} {unit}s"
    )
