"""What all jobs share: the images to draw, and the files that are written."""

import glob
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lesion_d2.ignore_regions import lesions_of, regions_of
from lesion_d2.visualization import (
    REGION_LEGEND,
    LesionVisualizer,
    contact_sheet,
    save_picture,
    window_image,
)

import numpy as np
from detectron2.data import MetadataCatalog
from tqdm import tqdm

PICTURE_SIDE = 1024
TILE_SIDE = 512
MAX_COLUMNS = 6
CONTACT_SHEET = "contact_sheet.png"


def pick_records(records: Sequence[dict], pick: str, num: int, *, seed: int = 0) -> list[dict]:
    """The first ``num`` images where ``pick`` is "first", else some at random."""
    order = np.arange(len(records))
    if pick == "random":
        order = np.random.default_rng(seed).permutation(len(records))
    return [records[i] for i in order[:num]]


def truth_title(record: dict) -> str:
    """Name of an image and number of its lesions, two lines."""
    number = len(lesions_of(record["annotations"]))
    return f"{record['image_id']}\n{number} lesion{'' if number == 1 else 's'}"


def check_output(output: str, records: Sequence[dict], dataset: str) -> None:
    """Check that a folder holds no slices, which pictures could replace.

    Raises:
        ValueError: it does.
    """
    folders = {os.path.dirname(record["file_name"]) for record in records}
    if os.path.realpath(output) in map(os.path.realpath, folders):
        raise ValueError(
            f"{output}: holds slices of {dataset}, expected another folder to write to"
        )


def picture_name(record: Mapping) -> str:
    """The file of an image's picture, in no other folder whatever the image is called."""
    return f"{record['image_id']}.png".replace("/", "_").replace("\0", "_")


def names_of_pictures(records: Sequence[dict]) -> list[str]:
    """Patterns of the pictures that are named by their image alone."""
    return [glob.escape(picture_name(record)) for record in records]


def remove_pictures(output: str, patterns: Sequence[str]) -> None:
    """Remove what an earlier call wrote, so that the folder holds one call's pictures."""
    for pattern in [*patterns, CONTACT_SHEET]:
        for path in Path(output).glob(pattern):
            path.unlink()


def with_regions(legend: Sequence[tuple], records: Sequence[dict]) -> list[tuple]:
    """A legend, with regions to ignore where one of the images has any."""
    has_regions = any(regions_of(record.get("annotations", ())) for record in records)
    return [*legend, *(REGION_LEGEND if has_regions else [])]


def write_pictures(
    dataset: str,
    window: tuple[float, float] | None,
    drawings: Sequence[tuple],
    draw: Callable,
    output: str,
    legend: Sequence[tuple],
    *,
    columns: int | None = None,
) -> list[str]:
    """Draw each image in full size and as a tile of the contact sheet.

    Args:
        dataset: name of the data set.
        window: of :func:`window_image`.
        drawings: (file name, title, subject) an image; the subject is the image's dict, or has it
            as ``record``.
        draw: called with a visualizer and a subject.
        output: folder to write to.
        legend: of :func:`contact_sheet`; regions to ignore, where there are any, are added.
        columns: of the contact sheet.

    Returns:
        Paths, the contact sheet's last.
    """
    metadata = MetadataCatalog.get(dataset)
    legend = with_regions(legend, [getattr(x, "record", x) for _, _, x in drawings])
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
