"""What all jobs share: choosing images, and writing pictures."""

import glob
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lesion_d2.structures.ignore_regions import lesions_of, regions_of
from lesion_d2.visualization import (
    PAGE_STYLES,
    REGION_LEGEND,
    LesionVisualizer,
    PageStyle,
    contact_sheet,
    save_picture,
    slice_marks,
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
    """The first ``num`` images if ``pick`` is "first", random ones if it is "random"."""
    order = np.arange(len(records))
    if pick == "random":
        order = np.random.default_rng(seed).permutation(len(records))
    return [records[i] for i in order[:num]]


def truth_title(record: dict) -> str:
    """Name of an image and number of its lesions, two lines."""
    number = len(lesions_of(record["annotations"]))
    return f"{record['image_id']}\n{number or 'no'} lesion{'' if number == 1 else 's'}"


def check_output(output: str, records: Sequence[dict], dataset: str) -> None:
    """Check that a folder contains no slices, which pictures could overwrite.

    Raises:
        ValueError: it does.
    """
    folders = {os.path.dirname(record["file_name"]) for record in records}
    if os.path.realpath(output) in map(os.path.realpath, folders):
        raise ValueError(
            f"{output}: found slices of {dataset}, expected another folder to write to"
        )


def picture_name(record: Mapping) -> str:
    """The file name of an image's picture, without path separators whatever the image id is."""
    return f"{record['image_id']}.png".replace("/", "_").replace("\0", "_")


def names_of_pictures(records: Sequence[dict]) -> list[str]:
    """Glob patterns of the pictures whose name is that of their image."""
    return [glob.escape(picture_name(record)) for record in records]


def remove_pictures(output: str, patterns: Sequence[str]) -> None:
    """Remove the pictures of an earlier call, so that the folder has those of one call."""
    for pattern in [*patterns, CONTACT_SHEET]:
        for path in Path(output).glob(pattern):
            path.unlink()


def with_regions(legend: Sequence[tuple], records: Sequence[dict]) -> list[tuple]:
    """A legend, with an entry for regions to ignore if one of the images has any."""
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
    notes: Sequence[str] = (),
    style: PageStyle = PAGE_STYLES["screen"],
) -> list[str]:
    """Draw each image in full size and as a tile of the contact sheet.

    Args:
        dataset: name of the data set.
        window: of :func:`window_image`.
        drawings: (file name, title, subject) per image; the subject is the image's dict, or has it
            as ``record``.
        draw: called with a visualizer and a subject.
        output: folder to write to.
        legend: of :func:`contact_sheet`; regions to ignore are added, if there are any.
        columns, notes: of the contact sheet.
        style: of all pages.

    Returns:
        Paths, the contact sheet's last.
    """
    metadata = MetadataCatalog.get(dataset)
    legend = with_regions(legend, [getattr(x, "record", x) for _, _, x in drawings])
    paths, tiles, titles = [], [], []
    for name, title, subject in tqdm(drawings, desc="pictures", disable=None):
        record = getattr(subject, "record", subject)
        image, marks = window_image(record, window), slice_marks(record, window)
        pictures = []
        for side in (PICTURE_SIDE, TILE_SIDE):
            visualizer = LesionVisualizer(image, metadata, side=side, **marks)
            draw(visualizer, subject)
            pictures.append(visualizer.get_output().get_image())
        tiles.append(pictures[1])
        titles.append(title)
        page = contact_sheet(pictures[:1], [title], legend, style=style)
        paths.append(save_picture(page, os.path.join(output, name)))
    columns = columns or min(MAX_COLUMNS, math.ceil(math.sqrt(len(tiles))))
    sheet = contact_sheet(tiles, titles, legend, columns=columns, notes=notes, style=style)
    return [*paths, save_picture(sheet, os.path.join(output, CONTACT_SHEET))]
