"""Pictures of a run's detections and how they match the lesions."""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from lesion_d2.data.catalog import load_records
from lesion_d2.data.dataset_options import DatasetOptions
from lesion_d2.evaluation.result_files import read_froc_file
from lesion_d2.visualization import (
    OUTCOME_LEGEND,
    PAGE_STYLES,
    LesionVisualizer,
    Outcome,
    match_outcome,
    parse_window,
)

import numpy as np

from .pictures import MAX_COLUMNS, picture_name, remove_pictures, write_pictures
from .results import read_results

PICKS = ("best", "worst", "random")
#: How images or volumes are picked, as it is written below the contact sheet.
RULES = {
    "best": "all lesions were found, and the quality is highest",
    "worst": "the quality is lowest",
    "random": "drawn from all others",
}
_QUALITY = (
    "Quality: the highest IoU x score of a detection, averaged over the lesions, divided by 1 + "
    "the number of false positives; 0 without lesions but with false positives. {unit}s without "
    "lesions and false positives are not ranked."
)
AnyOutcome = TypeVar("AnyOutcome", bound=Outcome)


def draw_predictions(args: argparse.Namespace) -> list[str]:
    """Write the pictures of a run's detections; return their paths, the contact sheet last."""
    window = parse_window(args.window)
    records = load_records(args.dataset, DatasetOptions(allow_missing=args.allow_missing))
    results = read_results(args.results, records, args.dataset)
    judge_image = partial(match_outcome, inclusive=_counts_whole_pixels(args.results))
    threshold = args.score_threshold
    if threshold is None:
        outcomes = [judge_image(r, results[str(r["image_id"])]) for r in records]
        threshold = threshold_at_fps(outcomes, args.fps_per_image)
    outcomes = [
        judge_image(r, results[str(r["image_id"])], score_threshold=threshold) for r in records
    ]
    summary = run_summary(outcomes, threshold)
    print(summary)
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
    return write_pictures(
        args.dataset,
        window,
        drawings,
        LesionVisualizer.draw_outcome,
        output,
        OUTCOME_LEGEND,
        columns=columns,
        notes=[f"{args.dataset}, {summary}.", *pick_notes(counts)],
        style=PAGE_STYLES[args.style],
    )


def pick_notes(counts: Mapping[str, int], unit: str = "image") -> list[str]:
    """The rules by which images were picked, as sentences for the contact sheet.

    Args:
        counts: number of images by pick.
        unit: what is picked.
    """
    rules = [f"{pick.capitalize()}: {RULES[pick]}." for pick in counts]
    none = [
        f"None is {pick}: there is no other {unit} that fits the rule."
        for pick, count in counts.items()
        if not count
    ]
    ranks = any(pick != "random" for pick in counts)
    return [
        " ".join([*rules, *none]),
        *([_QUALITY.format(unit=unit.capitalize())] if ranks else []),
    ]


def _counts_whole_pixels(results: str) -> bool:
    """TEST.INCLUSIVE_BOXES of the evaluation that wrote the results; False if it wrote no table."""
    file = Path(results).parent / "froc.json"
    return file.is_file() and read_froc_file(file).get("settings", {}).get("inclusive", False)


def threshold_at_fps(outcomes: Sequence[Outcome], rate: float) -> float:
    """The lowest score threshold at which a run has at most a given rate of false positives.

    Args:
        outcomes: one per image (or volume), with all detections of the run.
        rate: maximum number of false positives per image, averaged over all images.

    Returns:
        The minimum score of detections to keep; 0 if all may be kept.
    """
    scores = np.sort(np.concatenate([o.scores[o.is_false_positive] for o in outcomes]))[::-1]
    allowed = int(rate * len(outcomes))
    if len(scores) <= allowed:
        return 0.0
    return float(np.nextafter(scores[allowed], scores.dtype.type(np.inf)))


def pick_outcomes(
    outcomes: Sequence[AnyOutcome], picks: Sequence[str], num: int, *, seed: int = 0
) -> list[tuple[str, AnyOutcome]]:
    """Choose images (or volumes) to draw.

    "best" takes images of which every lesion was found, by descending :func:`outcome_quality`;
    "worst" takes any by ascending quality. Ties are ordered by the number of false positives, then
    by the order given. Images of quality NaN are only picked at random. No image is picked twice.

    Args:
        outcomes: one per image.
        picks: any of "best", "worst" and "random", in order of precedence.
        num: maximum number of images per pick.
        seed: of the random pick.

    Returns:
        (pick, outcome) pairs.

    Raises:
        ValueError: an unknown pick, or ``num`` below 1.
    """
    if num < 1:
        raise ValueError(f"number of images per pick: found {num}, expected at least 1")
    ranked = [i for i, outcome in enumerate(outcomes) if not math.isnan(outcome.quality)]
    ranked.sort(key=lambda i: (-outcomes[i].quality, outcomes[i].is_false_positive.sum()))
    shuffled = np.random.default_rng(seed).permutation(len(outcomes)).tolist()
    best = [i for i in ranked if len(outcomes[i].is_found) and outcomes[i].is_found.all()]
    orders = {"best": best, "worst": ranked[::-1], "random": shuffled}
    taken: set[int] = set()
    chosen = []
    for pick in picks:
        if pick not in orders:
            raise ValueError(f"pick: found {pick!r}, expected best, worst or random")
        new = [i for i in orders[pick] if i not in taken][:num]
        taken.update(new)
        chosen += [(pick, outcomes[i]) for i in new]
    return chosen


def run_summary(outcomes: Sequence[Outcome], threshold: float, unit: str = "image") -> str:
    """The sensitivity and false positives of a run at a score threshold, as one line of text.

    Args:
        outcomes: one per image (or volume).
        threshold: minimum score of detections.
        unit: name of what each outcome is of.
    """
    found = sum(int(o.is_found.sum()) for o in outcomes)
    lesions = sum(len(o.is_found) for o in outcomes)
    rate = sum(int(o.is_false_positive.sum()) for o in outcomes) / len(outcomes)
    return (
        f"score threshold {threshold:.3f}: {found} of {lesions} lesions found at {rate:.2f} false "
        f"positives per {unit}, {len(outcomes)} {unit}s"
    )
