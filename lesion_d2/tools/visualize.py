"""Pictures of a data set, or of what a run found in it.

python -m lesion_d2.tools.visualize dataset --dataset phantom_train --output DIR
python -m lesion_d2.tools.visualize predictions --dataset phantom_test \
    --results OUTPUT_DIR/inference/phantom_test/coco_instances_results.json

One PNG an image and one contact sheet. Lesions are yellow, dashed where they were missed; hits are
green and false positives red. ``best`` and ``worst`` images are ranked by
:func:`lesion_d2.visualization.outcome_quality`: the mean over an image's lesions of the highest
IoU x score of a detection, divided by one plus its false positives above the score threshold.
"""

import argparse
import glob
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.data.ct import read_slice
from lesion_d2.data.deeplesion import set_allow_missing
from lesion_d2.data.pseudo_masks import (
    METHODS,
    PseudoMasks,
    grabcut_image,
    load_mask_file,
    pseudo_mask,
)
from lesion_d2.visualization import (
    OUTCOME_LEGEND,
    TRUTH_LEGEND,
    ImageOutcome,
    LesionVisualizer,
    contact_sheet,
    judge,
    parse_window,
    save_picture,
    truth_boxes,
    window_image,
)

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from tqdm import tqdm

PICTURE_SIDE = 1024
TILE_SIDE = 512
MAX_COLUMNS = 6
CONTACT_SHEET = "contact_sheet.png"
PICKS = ("best", "worst", "random")


def load_records(dataset: str, *, allow_missing: bool = False) -> list[dict]:
    """The dicts of a registered data set.

    Args:
        dataset: its name in ``DatasetCatalog``.
        allow_missing: leave out images whose file is missing.

    Raises:
        ValueError: the data set is not registered, or has no images.
    """
    if dataset not in DatasetCatalog.list():
        known = ", ".join(n for n in DatasetCatalog.list() if n.startswith(("deep", "phantom")))
        raise ValueError(f"data set {dataset!r} is not registered, expected one such as {known}")
    if allow_missing:
        set_allow_missing(dataset, True)
    records = DatasetCatalog.get(dataset)
    if not records:
        raise ValueError(f"data set {dataset!r} has no images")
    return records


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


def draw_dataset(args: argparse.Namespace) -> list[str]:
    """Write the pictures of a data set's truth; return their paths, the contact sheet last."""
    window = parse_window(args.window)
    records = load_records(args.dataset, allow_missing=args.allow_missing)
    _check_output(args.output, records, args.dataset)
    masks_of = mask_source(args.masks)
    order = np.arange(len(records))
    if args.pick == "random":
        order = np.random.default_rng(args.seed).permutation(len(records))
    drawings = []
    for record in (records[i] for i in order[: args.num]):
        number = len(record["annotations"])
        title = f"{record['image_id']}\n{number} lesion{'' if number == 1 else 's'}"
        drawings.append((f"{record['image_id']}.png", title, record))

    def draw(visualizer: LesionVisualizer, record: dict) -> None:
        """Draw the truth of one image."""
        if args.zoom:
            visualizer.zoom(truth_boxes(record))
        visualizer.draw_dataset_dict(record, masks_of(record))

    _remove_pictures(args.output, [f"{glob.escape(record['image_id'])}.png" for record in records])
    return _write_pictures(args, window, drawings, draw, args.output, TRUTH_LEGEND)


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
    _remove_pictures(output, [f"{pick}_[0-9][0-9]*_*.png" for pick in PICKS])
    columns = args.num if len(args.pick) > 1 and args.num <= MAX_COLUMNS else None
    draw = LesionVisualizer.draw_outcome
    return _write_pictures(args, window, drawings, draw, output, OUTCOME_LEGEND, columns=columns)


def _check_output(output: str, records: Sequence[dict], dataset: str) -> None:
    folders = {os.path.dirname(record["file_name"]) for record in records}
    if os.path.realpath(output) in map(os.path.realpath, folders):
        raise ValueError(
            f"{output}: holds slices of {dataset}, expected another folder to write to"
        )


def _remove_pictures(output: str, patterns: Sequence[str]) -> None:
    """Remove what an earlier call wrote, so that the folder holds one call's pictures."""
    for pattern in [*patterns, CONTACT_SHEET]:
        for path in Path(output).glob(pattern):
            path.unlink()


def _write_pictures(args, window, drawings, draw, output, legend, *, columns=None) -> list[str]:
    """Draw each (file name, title, subject) in full size and as a tile of the contact sheet."""
    metadata = MetadataCatalog.get(args.dataset)
    paths, tiles, titles = [], [], []
    for name, title, subject in tqdm(drawings, desc="pictures", disable=None):
        image = window_image(getattr(subject, "record", subject), window)
        pictures = []
        for side in (PICTURE_SIDE, TILE_SIDE):
            visualizer = LesionVisualizer(image, metadata, side=side)
            draw(visualizer, subject)
            pictures.append(visualizer.get_output().get_image())
        tiles.append(pictures[1])
        titles.append(title)
        page = contact_sheet(pictures[:1], [title], legend)
        paths.append(save_picture(page, os.path.join(output, name)))
    columns = columns or min(MAX_COLUMNS, math.ceil(math.sqrt(len(tiles))))
    sheet = contact_sheet(tiles, titles, legend, columns=columns)
    return [*paths, save_picture(sheet, os.path.join(output, CONTACT_SHEET))]


def mask_source(name: str) -> Callable[[dict], list[np.ndarray]]:
    """A function from an image's dict to the masks of its lesions.

    Args:
        name: "none", "ellipse", "grabcut", or the path of a mask file.

    Raises:
        FileNotFoundError: no such mask file.
        ValueError: not a mask file; from the function, a lesion that the file lacks.
    """
    if name == "none":
        return lambda record: []
    if name in METHODS:
        return partial(_computed_masks, name)
    return partial(_stored_masks, load_mask_file(name))


def _computed_masks(method: str, record: dict) -> list[np.ndarray]:
    image = grabcut_image(read_slice(record["file_name"]), record["window"])
    return [pseudo_mask(method, image, a["recist"], a["bbox"]).mask for a in record["annotations"]]


def _stored_masks(masks: PseudoMasks, record: dict) -> list[np.ndarray]:
    return [
        mask_util.decode(masks.get(record["image_id"], a["row"], a["recist"])).astype(bool)
        for a in record["annotations"]
    ]


def _run_summary(outcomes: Sequence[ImageOutcome], threshold: float) -> str:
    found = sum(int(o.is_found.sum()) for o in outcomes)
    lesions = sum(len(o.is_found) for o in outcomes)
    rate = sum(int(o.is_false_positive.sum()) for o in outcomes) / len(outcomes)
    return (
        f"score threshold {threshold:.3f}: {found} of {lesions} lesions found at {rate:.2f} false "
        f"positives per image, {len(outcomes)} images"
    )


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(prog="lesion_d2.tools.visualize", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    jobs = parser.add_subparsers(required=True, metavar="dataset|predictions")
    dataset = jobs.add_parser("dataset", help="lesions, RECIST diameters and masks of a data set")
    dataset.set_defaults(job=draw_dataset)
    _add_common(dataset, num=12, num_help="number of images")
    dataset.add_argument("--output", required=True, help="folder to write to")
    dataset.add_argument(
        "--masks", default="ellipse", help="none, ellipse, grabcut, or a mask file (ellipse)"
    )
    dataset.add_argument("--pick", choices=["random", "first"], default="random")
    dataset.add_argument("--zoom", action="store_true", help="show the lesions' surroundings only")
    predictions = jobs.add_parser("predictions", help="what a run found and what it missed")
    predictions.set_defaults(job=draw_predictions)
    _add_common(predictions, num=4, num_help="number of images per pick")
    predictions.add_argument("--results", required=True, help="coco_instances_results.json")
    predictions.add_argument("--output", help="folder to write to (pictures/ beside the results)")
    predictions.add_argument("--pick", nargs="+", choices=PICKS, default=PICKS)
    threshold = predictions.add_mutually_exclusive_group()
    threshold.add_argument("--score-threshold", type=float, help="leave out lower scores")
    threshold.add_argument(
        "--fps-per-image",
        type=float,
        default=1.0,
        help="take the score threshold at which the run has so many false positives per image (1)",
    )
    return parser


def _add_common(parser: argparse.ArgumentParser, *, num: int, num_help: str) -> None:
    parser.add_argument("--dataset", required=True, help="a registered data set: phantom_test")
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave out images whose file is missing"
    )
    parser.add_argument("--num", type=_positive, default=num, help=f"{num_help} ({num})")
    parser.add_argument("--seed", type=int, default=0, help="of the random pick (0)")
    parser.add_argument(
        "--window",
        nargs="+",
        default=["dicom"],
        metavar="WINDOW",
        help="dicom (each image's own), a name such as lung or abdomen, or LOW HIGH in HU (dicom)",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, print the paths written, and return the exit code."""
    args = get_parser().parse_args(argv)
    try:
        paths = args.job(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
