"""Pictures of a run's detections."""

import argparse
import json
import math
import os
from collections.abc import Sequence

from lesion_d2.data.deeplesion import load_records
from lesion_d2.visualization import (
    OUTCOME_LEGEND,
    ImageOutcome,
    LesionVisualizer,
    judge,
    parse_window,
)

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from .pictures import MAX_COLUMNS, remove_pictures, write_pictures

PICKS = ("best", "worst", "random")


def draw_predictions(args: argparse.Namespace) -> list[str]:
    """Write the pictures of a run's detections; return their paths, the contact sheet last."""
    window = parse_window(args.window)
    records = load_records(args.dataset, allow_missing=args.allow_missing)
    results = read_results(args.results, records, args.dataset)
    threshold = args.score_threshold
    if threshold is None:
        outcomes = [judge(r, results[str(r["image_id"])]) for r in records]
        threshold = threshold_at_fps(outcomes, args.fps_per_image)
    outcomes = [judge(r, results[str(r["image_id"])], score_threshold=threshold) for r in records]
    print(_run_summary(outcomes, threshold))
    drawings, counts = [], dict.fromkeys(args.pick, 0)
    for pick, outcome in pick_outcomes(outcomes, args.pick, args.num, seed=args.seed):
        counts[pick] += 1
        image_id = outcome.record["image_id"]
        title = f"{pick} {counts[pick]}: {image_id}\n{outcome.summary()}"
        drawings.append((f"{pick}_{counts[pick]:02d}_{image_id}.png", title, outcome))
    output = args.output or os.path.join(os.path.dirname(args.results), "pictures")
    remove_pictures(output, [f"{pick}_[0-9][0-9]*_*.png" for pick in PICKS])
    columns = args.num if len(args.pick) > 1 and args.num <= MAX_COLUMNS else None
    draw = LesionVisualizer.draw_outcome
    return write_pictures(
        args.dataset, window, drawings, draw, output, OUTCOME_LEGEND, columns=columns
    )


def read_results(path: str, records: Sequence[dict], dataset: str) -> dict[str, Instances]:
    """Read the detections of a run.

    Args:
        path: ``coco_instances_results.json`` of an evaluation: boxes XYWH in pixels.
        records: the data set's dicts.
        dataset: its name, for messages.

    Returns:
        ``Instances`` by image id, one for every image of the data set, perhaps empty: pred_boxes
        (XYXY), scores, pred_classes and, where the file has them, pred_masks_rle.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a list of COCO results, or of images that the data set does not have.
    """
    entries: dict[str, list[dict]] = {str(record["image_id"]): [] for record in records}
    for number, entry in enumerate(_read_entries(path)):
        problem = _entry_problem(entry)
        if problem:
            raise ValueError(f"{path}: entry {number} {problem}")
        if str(entry["image_id"]) not in entries:
            raise ValueError(
                f"{path}: entry {number} is of image {entry['image_id']!r}, which data set "
                f"{dataset!r} does not have (its images are such as {next(iter(entries))!r})"
            )
        entries[str(entry["image_id"])].append(entry)
    sizes = {str(record["image_id"]): (record["height"], record["width"]) for record in records}
    return {image_id: _instances(found, sizes[image_id]) for image_id, found in entries.items()}


def _read_entries(path: str) -> list:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such results file, expected what an evaluation wrote")
    try:
        with open(path) as f:
            entries = json.load(f)
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(entries, list):
        raise ValueError(f"{path}: holds a {type(entries).__name__}, expected a list of detections")
    return entries


def _entry_problem(entry) -> str:
    if not isinstance(entry, dict):
        return f"is {entry!r}, expected a detection"
    for key in ("image_id", "bbox", "score"):
        if key not in entry:
            return f"has no {key!r}"
    numbers = [entry["score"], *entry["bbox"]] if isinstance(entry["bbox"], list) else []
    if len(numbers) != 5 or not all(
        isinstance(n, int | float) and math.isfinite(n) for n in numbers
    ):
        return (
            f"has bbox {entry['bbox']!r} and score {entry['score']!r}, expected x, y, width, "
            "height and a number"
        )
    return ""


def _instances(entries: list[dict], image_size: tuple[int, int]) -> Instances:
    boxes = torch.tensor([e["bbox"] for e in entries], dtype=torch.float32).reshape(-1, 4)
    instances = Instances(image_size)
    instances.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
    instances.scores = torch.tensor([e["score"] for e in entries], dtype=torch.float32)
    instances.pred_classes = torch.tensor([e.get("category_id", 0) for e in entries]).long()
    if entries and all("segmentation" in e for e in entries):
        instances.pred_masks_rle = [e["segmentation"] for e in entries]
    return instances


def threshold_at_fps(outcomes: Sequence[ImageOutcome], fps_per_image: float) -> float:
    """The lowest score threshold at which a run has at most so many false positives per image.

    Args:
        outcomes: one entry an image, with all detections of the run.
        fps_per_image: the wanted rate, over all images.

    Returns:
        keep detections with scores at or above it; 0 where all detections may stay.
    """
    scores = [o.predictions.scores.numpy()[o.is_false_positive] for o in outcomes]
    scores = np.sort(np.concatenate(scores))[::-1]
    allowed = int(fps_per_image * len(outcomes))
    if len(scores) <= allowed:
        return 0.0
    return float(np.nextafter(scores[allowed], np.float32(np.inf)))


def pick_outcomes(
    outcomes: Sequence[ImageOutcome], picks: Sequence[str], num: int, *, seed: int = 0
) -> list[tuple[str, ImageOutcome]]:
    """Choose images to look at.

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


def _run_summary(outcomes: Sequence[ImageOutcome], threshold: float) -> str:
    found = sum(int(o.is_found.sum()) for o in outcomes)
    lesions = sum(len(o.is_found) for o in outcomes)
    rate = sum(int(o.is_false_positive.sum()) for o in outcomes) / len(outcomes)
    return (
        f"score threshold {threshold:.3f}: {found} of {lesions} lesions found at {rate:.2f} false "
        f"positives per image, {len(outcomes)} images"
    )
