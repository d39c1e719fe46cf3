"""Pictures of a data set's images with their annotations."""

import argparse
from collections.abc import Callable
from functools import partial

from lesion_d2.data.catalog import load_records
from lesion_d2.data.dataset_options import DatasetOptions
from lesion_d2.data.pseudo_masks import METHODS, grabcut_image, lesion_ends, pseudo_mask
from lesion_d2.data.pseudo_masks.files import PseudoMasks, load_mask_file
from lesion_d2.data.slices.ct import read_slice
from lesion_d2.structures.boxes import xyxy_box
from lesion_d2.structures.ignore_regions import lesions_of
from lesion_d2.structures.rle import decode_mask
from lesion_d2.visualization import (
    PAGE_STYLES,
    TRUTH_LEGEND,
    LesionVisualizer,
    parse_window,
    truth_boxes,
)

import numpy as np

from .pictures import (
    check_output,
    names_of_pictures,
    pick_records,
    picture_name,
    remove_pictures,
    truth_title,
    write_pictures,
)


def draw_dataset(args: argparse.Namespace) -> list[str]:
    """Write pictures of a data set's annotations; return their paths, the contact sheet last."""
    window = parse_window(args.window)
    records = load_records(args.dataset, DatasetOptions(allow_missing=args.allow_missing))
    check_output(args.output, records, args.dataset)
    masks_of = mask_source(args.masks)
    chosen = pick_records(records, args.pick, args.num, seed=args.seed)
    drawings = [(picture_name(record), truth_title(record), record) for record in chosen]

    def draw(visualizer: LesionVisualizer, record: dict) -> None:
        """Draw the annotations of one image."""
        if args.zoom:
            visualizer.zoom(truth_boxes(record))
        visualizer.draw_dataset_dict(record, masks_of(record))

    remove_pictures(args.output, names_of_pictures(records))
    style = PAGE_STYLES[args.style]
    return write_pictures(
        args.dataset, window, drawings, draw, args.output, TRUTH_LEGEND, style=style
    )


def mask_source(name: str) -> Callable[[dict], list[np.ndarray]]:
    """Return a function from an image's dict to the masks of its lesions.

    Args:
        name: "none"; "ellipse" or "grabcut", for lesions without a mask in the data set; or the
            path of a mask file.

    Raises:
        FileNotFoundError: there is no such mask file.
        ValueError: it is not a mask file. The function raises it for a lesion not in the file.
    """
    if name == "none":
        return lambda record: []
    if name in METHODS:
        return partial(_computed_masks, name)
    return partial(_stored_masks, load_mask_file(name))


def _computed_masks(method: str, record: dict) -> list[np.ndarray]:
    """As in the mapper: a mask of the data set takes precedence over a pseudo-mask."""
    hu = read_slice(record["file_name"], (record["height"], record["width"]))
    image = grabcut_image(hu, record["window"])
    return [
        decode_mask(a["segmentation"], (record["height"], record["width"]))
        if "segmentation" in a
        else pseudo_mask(method, image, lesion_ends(a), xyxy_box(a)).mask
        for a in lesions_of(record["annotations"])
    ]


def _stored_masks(masks: PseudoMasks, record: dict) -> list[np.ndarray]:
    return [masks.mask(record, a) for a in lesions_of(record["annotations"])]
