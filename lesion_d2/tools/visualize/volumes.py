"""Pictures of an evaluation in 3-D: strips of slices through lesions and false positives."""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lesion_d2.data.catalog import load_records
from lesion_d2.data.dataset_options import DatasetOptions
from lesion_d2.evaluation import Criterion, read_volume_detections
from lesion_d2.evaluation.volumetric.volumes import VolumeTruth
from lesion_d2.structures.ignore_regions import lesions_of
from lesion_d2.structures.rle import decode_mask
from lesion_d2.utils.files import read_json
from lesion_d2.visualization import (
    MASK_COLOR,
    NO_FINDINGS,
    OUTCOME_LEGEND,
    PAGE_STYLES,
    LesionVisualizer,
    VolumeOutcome,
    contact_sheet,
    match_volume_outcomes,
    parse_window,
    save_picture,
    slice_marks,
    slice_range,
    window_image,
)

import numpy as np
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from .pictures import (
    CONTACT_SHEET,
    MAX_COLUMNS,
    TILE_SIDE,
    picture_name,
    remove_pictures,
    with_regions,
)
from .predictions import PICKS, pick_notes, pick_outcomes, run_summary, threshold_at_fps

# Keys of masks: of data sets, and of phantoms that are only for 3-D models.
_MASK_KEYS = ("segmentation", "true_segmentation")
_LEGEND = [*OUTCOME_LEGEND, ("mask of a lesion", MASK_COLOR, "fill")]


@dataclass
class Strip:
    """A lesion with its hits, or a false positive, and the slices to draw.

    Attributes:
        title: one line.
        boxes: (n, 4) XYXY in the plane, the view is around them; none for the whole slice.
        center: number of the slice in the middle.
        numbers: numbers of the slices, ascending, with the center among them.
    """

    title: str
    boxes: np.ndarray
    center: int
    numbers: list[int]


@dataclass
class Page:
    """A volume that is drawn.

    Attributes:
        name: of the pick and its number, such as ("best", 1).
        outcome: how detections match the lesions.
        slices: number -> Detectron2 dict.
        strips: all of them, also those that are not drawn.
    """

    name: tuple[str, int]
    outcome: VolumeOutcome
    slices: Mapping[int, dict]
    strips: Sequence[Strip]

    @property
    def title(self) -> str:
        """The pick and the name of the volume."""
        return "{} {}: {}".format(*self.name, self.outcome.name)


def draw_volumes(args: argparse.Namespace) -> list[str]:
    """Write the pictures of an evaluation in 3-D; return their paths, the contact sheet last."""
    window = parse_window(args.window)
    dataset, records, outcomes, summary = _read_outcomes(args)
    pages, counts = [], dict.fromkeys(args.pick, 0)
    for pick, outcome in pick_outcomes(outcomes, args.pick, args.num, seed=args.seed):
        slices = {r["slice_index"]: r for r in records if r["volume"] == outcome.name}
        strips = find_strips(outcome, sorted(slices), args.slices)
        counts[pick] += 1
        pages.append(Page((pick, counts[pick]), outcome, slices, strips))
    if not pages:
        raise ValueError(
            f"{dataset}: found no volume to draw, expected one for {', '.join(counts)}"
        )
    output = args.output or os.path.join(os.path.dirname(args.results), "pictures")
    remove_pictures(output, [f"{pick}_[0-9][0-9]*_*.png" for pick in PICKS])
    legend = with_regions(_LEGEND, [r for page in pages for r in page.slices.values()])
    style = PAGE_STYLES[args.style]
    paths, centers, titles = [], [], []
    for page in tqdm(pages, desc="pictures", disable=None):
        tiles, tile_titles = [], []
        for strip in page.strips[: args.findings]:
            row = list(_draw_strip(dataset, window, page, strip))
            centers.append(row[0])
            titles.append(f"{page.title}\n{strip.title}, slice {strip.center}")
            row += [np.full_like(row[0], style.background)] * (1 + args.slices - len(row))
            tiles += row
            tile_titles += _titles(page, strip, args.slices, args.findings)
        sheet = contact_sheet(tiles, tile_titles, legend, columns=1 + args.slices, style=style)
        name = "{}_{:02d}_".format(*page.name) + picture_name({"image_id": page.outcome.name})
        paths.append(save_picture(sheet, os.path.join(output, name)))
    columns, notes = min(MAX_COLUMNS, len(centers)), [f"{dataset}, {summary}."]
    notes += pick_notes(counts, "volume")
    sheet = contact_sheet(centers, titles, legend, columns=columns, notes=notes, style=style)
    return [*paths, save_picture(sheet, os.path.join(output, CONTACT_SHEET))]


def _read_outcomes(args: argparse.Namespace) -> tuple[str, list[dict], list[VolumeOutcome], str]:
    """The data set of an evaluation, its dicts, the outcome of each volume, and a summary."""
    content = read_json(args.results, "an evaluation of volumes")
    dataset = content.get("dataset") if isinstance(content, dict) else None
    if not isinstance(dataset, str):
        raise ValueError(
            f"{args.results}: found no 'dataset', expected the volumes.json of an evaluation in 3-D"
        )
    records = load_records(dataset, DatasetOptions(allow_missing=args.allow_missing))
    evaluation = read_volume_detections(args.results)
    truth = VolumeTruth.from_dicts(records, dataset)
    for name in sorted(evaluation.boxes.keys() - set(truth.names))[:1]:
        raise ValueError(f"{args.results}: found volume {name!r}, expected one of {dataset}")
    settings = evaluation.settings
    judged = (truth, evaluation.boxes, Criterion.parse(settings["criteria"]["volume"]))
    inclusive, threshold = settings["inclusive"], args.score_threshold
    if threshold is None:
        outcomes = match_volume_outcomes(*judged, inclusive=inclusive)
        threshold = threshold_at_fps(outcomes, args.fps_per_volume)
    outcomes = match_volume_outcomes(*judged, inclusive=inclusive, score_threshold=threshold)
    summary = run_summary(outcomes, threshold, "volume")
    print(summary)
    return dataset, records, outcomes, summary


def find_strips(outcome: VolumeOutcome, numbers: Sequence[int], length: int) -> list[Strip]:
    """The lesions of a volume in order, then its false positives by descending score.

    A volume without either has one strip of whole slices around its middle.

    Args:
        outcome: of the volume.
        numbers: numbers of its slices, ascending.
        length: number of slices of a strip.
    """
    lesions, detections = outcome.lesions, outcome.detections
    first, last = slice_range(lesions)
    found_first, found_last = slice_range(detections)
    strips = []
    for i, box in enumerate(lesions.boxes):
        hits = np.flatnonzero((outcome.reached == i) & outcome.is_hit)
        state = f"found at {outcome.scores[hits].max():.2f}" if len(hits) else "missed"
        if outcome.is_found[i] and not len(hits):  # by one that overlaps another lesion more
            state = "found"
        strips.append(
            _strip(
                f"lesion {i + 1} of {len(lesions.boxes)}, slices {first[i]} to {last[i]}, {state}",
                np.vstack([box, detections.boxes[hits]]),
                (min(first[i], *found_first[hits]), max(last[i], *found_last[hits]))
                if len(hits)
                else (first[i], last[i]),
                numbers,
                length,
            )
        )
    for i in np.flatnonzero(outcome.is_false_positive):
        title = (
            f"false positive {outcome.scores[i]:.2f}, slices {found_first[i]} to {found_last[i]}"
        )
        ends = found_first[i], found_last[i]
        strips.append(_strip(title, detections.boxes[[i]], ends, numbers, length))
    if not strips:
        middle = len(numbers) // 2
        ends = numbers[middle], numbers[middle]
        shown = choose_slices(np.asarray(numbers), ends, middle, length)
        shown = np.asarray(numbers)[shown].tolist()
        strips = [Strip(NO_FINDINGS, np.empty((0, 4)), int(numbers[middle]), shown)]
    return strips


def _strip(
    title: str, boxes: np.ndarray, ends: tuple[int, int], numbers: Sequence[int], length: int
) -> Strip:
    """A strip through boxes in 3-D, centered on the first, from the first to the last slice."""
    numbers = np.asarray(numbers)
    center = int(np.abs(numbers - (boxes[0, 2] + boxes[0, 5]) / 2).argmin())
    return Strip(
        title,
        boxes[:, [0, 1, 3, 4]],
        int(numbers[center]),
        numbers[choose_slices(numbers, ends, center, length)].tolist(),
    )


def choose_slices(
    numbers: np.ndarray, ends: tuple[int, int], center: int, length: int
) -> np.ndarray:
    """Indices of evenly spaced slices from the first to the last of a lesion, with its center.

    If the lesion is on fewer slices than ``length``, neighboring slices are added.

    Args:
        numbers: numbers of all slices, ascending.
        ends: numbers of the first and last slice.
        center: index of the slice in the middle.
        length: maximum number of slices.
    """
    low = min(int(np.searchsorted(numbers, ends[0])), center)
    high = max(int(np.searchsorted(numbers, ends[1], side="right")) - 1, center)
    missing = length - (high - low + 1)
    if missing > 0:
        low = max(0, min(low - missing // 2, len(numbers) - length))
        high = min(len(numbers) - 1, low + length - 1)
    chosen = np.rint(np.linspace(low, high, min(length, high - low + 1))).astype(int)
    if center not in chosen:  # keep both ends, if there is a slice between them
        inner = slice(1, -1) if len(chosen) > 2 else slice(None)
        chosen[inner][np.abs(chosen[inner] - center).argmin()] = center
    return chosen


def _draw_strip(
    dataset: str, window: tuple[float, float] | None, page: Page, strip: Strip
) -> Iterator[np.ndarray]:
    """Draw the whole center slice, then the part around the boxes on each slice."""
    for number, is_whole in [(strip.center, True), *((n, False) for n in strip.numbers)]:
        record = page.slices[number]
        image, metadata = window_image(record, window), MetadataCatalog.get(dataset)
        marks = slice_marks(record, window)
        visualizer = LesionVisualizer(image, metadata, side=TILE_SIDE, **marks)
        if not is_whole:
            visualizer.zoom(strip.boxes)
        for mask in _lesion_masks(record):
            visualizer.draw_soft_mask(mask.astype(np.float32), MASK_COLOR, alpha=0.35)
        yield visualizer.draw_outcome(page.outcome.on_slice(record)).get_image()


def _lesion_masks(record: Mapping) -> list[np.ndarray]:
    """The (H, W) bool masks in the data set."""
    masks = [
        annotation[key]
        for annotation in lesions_of(record.get("annotations", ()))
        for key in _MASK_KEYS
        if key in annotation
    ]
    size = record["height"], record["width"]
    return [decode_mask(mask, size) for mask in masks]


def _titles(page: Page, strip: Strip, length: int, most: int) -> list[str]:
    """Titles of the whole slice, of each slice of a strip, and of the empty tiles after them."""
    shown = f"{most} of {len(page.strips)} shown" if len(page.strips) > most else ""
    words = ", ".join(filter(None, [page.title, page.outcome.summary(), shown]))
    titles = [f"{words}\n{strip.title}, slice {strip.center}"]
    titles += [f"slice {n}{', center' if n == strip.center else ''}" for n in strip.numbers]
    return titles + [""] * (1 + length - len(titles))
