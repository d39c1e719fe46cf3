"""Pages with a row of heat maps per image."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from lesion_d2.visualization import (
    PAGE_STYLES,
    HeatMap,
    ImageOutcome,
    LesionVisualizer,
    PageStyle,
    color_bar,
    contact_sheet,
    save_picture,
    slice_marks,
    window_image,
)

import numpy as np
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from .pictures import CONTACT_SHEET, TILE_SIDE, picture_name, truth_title, with_regions


@dataclass
class Row:
    """An image, its heat maps in order, and the detections that are drawn on the last one.

    Attributes:
        record: the image's Detectron2 dict.
        heat_maps: each of the size of the slice.
        outcome: detections to draw on the last heat map; if None, only lesions are drawn.
    """

    record: dict
    heat_maps: Sequence[HeatMap]
    outcome: ImageOutcome | None = None


def write_rows(
    dataset: str,
    window: tuple[float, float] | None,
    rows: Sequence[Row],
    output: str,
    legend: Sequence[tuple],
    style: PageStyle = PAGE_STYLES["screen"],
) -> list[str]:
    """Write a picture per row, and all rows as the contact sheet.

    Args:
        dataset: name of the data set.
        window: of :func:`window_image`.
        rows: one per image, all with the same heat maps.
        output: folder to write to.
        legend, style: of :func:`contact_sheet`.

    Returns:
        Paths, the contact sheet's last.
    """
    legend = with_regions(legend, [row.record for row in rows])
    paths, all_tiles, all_titles = [], [], []
    for row in tqdm(rows, desc="pictures", disable=None):
        image = window_image(row.record, window)
        marks, metadata = slice_marks(row.record, window), MetadataCatalog.get(dataset)
        tiles = draw_row(row, image, metadata, marks=marks, style=style)
        titles = [truth_title(row.record), *(heat_map.title for heat_map in row.heat_maps)]
        page = contact_sheet(tiles, titles, legend, columns=len(tiles), style=style)
        paths.append(save_picture(page, os.path.join(output, picture_name(row.record))))
        all_tiles += tiles
        all_titles += titles
    columns = 1 + len(rows[0].heat_maps)
    sheet = contact_sheet(all_tiles, all_titles, legend, columns=columns, style=style)
    return [*paths, save_picture(sheet, os.path.join(output, CONTACT_SHEET))]


def draw_row(
    row: Row,
    image: np.ndarray,
    metadata=None,
    *,
    marks: Mapping[str, object] = MappingProxyType({}),
    style: PageStyle = PAGE_STYLES["screen"],
) -> list[np.ndarray]:
    """Draw the slice with its lesions, then each heat map over it, above its color scale.

    Args:
        row: what to draw.
        image: of :func:`window_image`.
        metadata: the data set's ``MetadataCatalog`` entry.
        marks: of :func:`slice_marks`, for the first picture.
        style: of the page.

    Returns:
        RGB pictures of one size.
    """
    visualizer = LesionVisualizer(image, metadata, side=TILE_SIDE, **marks)
    tiles = [visualizer.draw_dataset_dict(row.record).get_image()]
    width = tiles[0].shape[1]
    bars = [color_bar(heat_map.low, heat_map.high, width, style) for heat_map in row.heat_maps]
    for number, heat_map in enumerate(row.heat_maps, start=1):
        visualizer = LesionVisualizer(image, metadata, side=TILE_SIDE)
        visualizer.draw_heat_map(heat_map)
        if row.outcome is not None and number == len(row.heat_maps):
            visualizer.draw_outcome(row.outcome)
        else:
            visualizer.draw_truth_boxes(row.record)
        tiles.append(visualizer.get_output().get_image())
    bars.insert(0, np.full_like(bars[0], style.background))
    return [np.concatenate(pair) for pair in zip(tiles, bars, strict=True)]
