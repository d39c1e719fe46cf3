"""Pictures of mined hard negatives, as Fig. 3 of Tang et al."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass

from lesion_d2.data.catalog import load_records
from lesion_d2.data.dataset_options import DatasetOptions
from lesion_d2.visualization import (
    HIDDEN_LEGEND,
    NEGATIVE_LEGEND,
    PAGE_STYLES,
    LesionVisualizer,
    parse_window,
    truth_boxes,
)

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou

from .dataset import mask_source
from .pictures import (
    check_output,
    names_of_pictures,
    picture_name,
    remove_pictures,
    write_pictures,
)
from .results import HARD_NEGATIVE, read_results

PICKS = ("most", "random")


@dataclass
class MinedImage:
    """An image's Detectron2 dict and its hard negatives: see :func:`read_results`."""

    record: dict
    negatives: Instances

    def num_on_hidden(self) -> int:
        """Number of negatives that are lesions with hidden annotations, at a box IoU of 0.5."""
        hidden = torch.from_numpy(truth_boxes(self.record, "hidden_annotations")).float()
        ious = pairwise_iou(self.negatives.pred_boxes, Boxes(hidden))
        return int((ious >= 0.5).any(dim=1).sum())

    def title(self) -> str:
        """Name of the image and number of its negatives, two lines."""
        number = len(self.negatives)
        return f"{self.record['image_id']}\n{number} hard negative{'' if number == 1 else 's'}"


def draw_negatives(args: argparse.Namespace) -> list[str]:
    """Write the pictures of a run's hard negatives; return their paths, the contact sheet last."""
    window = parse_window(args.window)
    options = DatasetOptions(
        allow_missing=args.allow_missing,
        hidden_share=args.hidden_share,
        hidden_seed=args.hidden_seed,
    )
    records = load_records(args.dataset, options)
    output = args.output or os.path.join(os.path.dirname(args.results), "hard_negatives")
    check_output(output, records, args.dataset)
    mined = read_mined(args.results, records, args.dataset)
    masks_of = mask_source(args.masks)
    total = sum(len(image.negatives) for image in mined)
    summary, legend = f"{total} hard negatives on {len(mined)} of {len(records)} images", []
    if args.hidden_share > 0:
        hidden = sum(image.num_on_hidden() for image in mined)
        summary += f"; {hidden} of them have an IoU of 0.5 or more with a hidden lesion"
        legend = HIDDEN_LEGEND
    print(summary)
    chosen = pick_mined(mined, args.pick, args.num, seed=args.seed)
    drawings = [(picture_name(image.record), image.title(), image) for image in chosen]

    def draw(visualizer: LesionVisualizer, image: MinedImage) -> None:
        """Draw lesions and negatives of one image."""
        visualizer.draw_negatives(image.record, image.negatives, masks_of(image.record))

    remove_pictures(output, names_of_pictures(records))
    legend, style = NEGATIVE_LEGEND + legend, PAGE_STYLES[args.style]
    return write_pictures(args.dataset, window, drawings, draw, output, legend, style=style)


def read_mined(path: str, records: Sequence[dict], dataset: str) -> list[MinedImage]:
    """Read the images with hard negatives, in the order of the data set.

    Args:
        path: ``hard_negatives.json`` of a training.
        records: the data set's dicts.
        dataset: its name, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as :func:`read_results`, or the file contains no hard negative.
    """
    negatives = read_results(path, records, dataset, required=HARD_NEGATIVE)
    mined = [MinedImage(record, negatives[str(record["image_id"])]) for record in records]
    mined = [image for image in mined if len(image.negatives)]
    if not mined:
        raise ValueError(f"{path}: found no hard negative, expected at least one")
    return mined


def pick_mined(
    mined: Sequence[MinedImage], pick: str, num: int, *, seed: int = 0
) -> list[MinedImage]:
    """Choose images to draw.

    Args:
        mined: images with hard negatives.
        pick: "most" for those with the most negatives, and of as many, the highest sum of scores;
            or "random".
        num: maximum number of images.
        seed: of the random pick.
    """
    if pick == "random":
        order = np.random.default_rng(seed).permutation(len(mined))
        return [mined[i] for i in order[:num]]
    by_number = [(-len(i.negatives), -float(i.negatives.scores.sum())) for i in mined]
    return [mined[i] for i in sorted(range(len(mined)), key=by_number.__getitem__)[:num]]
