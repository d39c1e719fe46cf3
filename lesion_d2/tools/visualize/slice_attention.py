"""Attention weights of the slices around a lesion and of positions (Tao et al., Figs. 2, 3)."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.slices.ct import hu_to_pixels
from lesion_d2.modeling import SliceImages
from lesion_d2.structures.cropping import crop_box, image_to_slice, slice_to_image
from lesion_d2.visualization import (
    GRID_LEGEND,
    OUTCOME_LEGEND,
    PAGE_STYLES,
    TRUTH_LEGEND,
    HeatMap,
    ImageOutcome,
    LesionVisualizer,
    PageStyle,
    color_bar,
    contact_sheet,
    heat_table,
    place,
    save_picture,
    slice_marks,
    stack_pictures,
    truth_boxes,
)

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling.backbone import Backbone
from detectron2.structures import Instances
from torch import Tensor, nn
from tqdm import tqdm

from .pictures import CONTACT_SHEET, TILE_SIDE, picture_name, truth_title

#: Matches the detections of an image with its lesions.
JudgeImage = Callable[[dict, Instances], ImageOutcome]
MAX_LESIONS = 4  # of an image, with a table of slice weights each
_MIN_CELLS = 6  # across a patch around a lesion


@dataclass
class SliceRecording:
    """Attention weights that a model computed for the M three-channel images of one key slice.

    Attributes:
        record: the key slice's Detectron2 dict.
        slices: (M, H, W) int16, the middle slices of the M images, as on disk, in HU, clipped to
            the window of the model.
        contextual, spatial: (M, h, w), the weights C'' and S'' at positions inside the image; None
            if the model does not have that attention.
        channels: the channels, for a title: "mean of 512 channels".
        stride: pixels of the image per weight.
        image_size: height and width of the image.
        extent: of :func:`crop_box`.
        interval: between slices, in mm; None if unknown.
        predictions: the detections, in pixels of the slice, on the CPU.
    """

    record: dict
    slices: np.ndarray
    contextual: Tensor | None
    spatial: Tensor | None
    channels: str
    stride: int
    image_size: tuple[int, int]
    extent: tuple[int, int, int, int]
    interval: float | None
    predictions: Instances

    @property
    def key(self) -> int:
        """Index of the image with the key slice in its middle."""
        return len(self.slices) // 2

    def name(self, index: int) -> str:
        """An image's name as in Figs. 2 and 3 of the paper: K-1 is before that of the key slice."""
        return f"K{index - self.key:+d}" if index != self.key else "K"


def check_channel(channel: int | None, backbone: Backbone) -> None:
    """Check that a channel exists.

    Raises:
        ValueError: there is no such channel, or the model has no attention to slices.
    """
    if channel is None:
        return
    if not isinstance(backbone, SliceImages):
        raise ValueError(
            f"--channel: found {channel} with gates, which have one map for all channels; expected "
            "a model with attention to slices"
        )
    num_channels = _num_channels(backbone)
    if not 0 <= channel < num_channels:
        raise ValueError(
            f"--channel: found {channel}, expected 0 to {num_channels - 1}, a channel of the "
            "features"
        )


def _num_channels(backbone: SliceImages) -> int:
    return backbone.output_shape()[backbone.in_feature].channels


def record_slices(
    model: nn.Module, mapper: LesionDatasetMapper, record: dict, channel: int | None = None
) -> SliceRecording:
    """Run a model on one image and record its attention weights.

    Args:
        model: in evaluation mode, with a :class:`SliceImages` backbone with attention.
        mapper: of the model's config, for inference.
        record: the image's Detectron2 dict.
        channel: channel of the weights; None for the mean over all channels.
    """
    sample = mapper(record)
    image_size = tuple(sample["image"].shape[-2:])
    with torch.inference_mode(), _record_weights(model.backbone) as weights:
        (output,) = model([sample])
    stride = model.backbone.output_shape()["images"].stride
    rows, columns = (math.ceil(side / stride) for side in image_size)
    maps = {}
    for name, (values,) in weights.items():
        shown = values.float().mean(dim=1) if channel is None else values[:, channel].float()
        maps[name] = shown[:, :rows, :columns].cpu()  # without the padding, whose weights are 0
    mean = f"mean of {_num_channels(model.backbone)} channels"
    return SliceRecording(
        record,
        slices=mapper.read_stack(record)[1::3].copy(),  # a view would keep all slices
        contextual=maps.get("contextual"),
        spatial=maps.get("spatial"),
        channels=mean if channel is None else f"channel {channel}",
        stride=stride,
        image_size=image_size,
        extent=crop_box(sample, image_size),
        interval=mapper.slice_interval or record["spacing"][2] if record["spacing"] else None,
        predictions=output["instances"].to("cpu"),
    )


@contextmanager
def _record_weights(backbone: SliceImages) -> Iterator[dict[str, Tensor]]:
    """Record the weights (N, M, D, h, w) of each attention: "contextual" and "spatial"."""
    weights: dict[str, Tensor] = {}
    handles = []
    for name in ("contextual", "spatial"):
        attention = getattr(backbone, f"{name}_attention")
        if attention is None:
            continue

        def record(
            module: nn.Module,
            inputs: tuple[Tensor, Sequence[tuple[int, int]] | None],
            name: str = name,
        ) -> None:
            """Compute the weights that the attention is about to use.

            ``inputs``: the features, and their sizes without padding, or None if not padded.
            """
            weights[name] = module.weights(*inputs)

        handles.append(attention.register_forward_pre_hook(record))
    try:
        yield weights
    finally:
        for handle in handles:
            handle.remove()


def lesion_region(
    box: Sequence[float], stride: int, map_size: tuple[int, int]
) -> tuple[slice, slice]:
    """The positions of a feature map that overlap with a lesion's box.

    Args:
        box: XYXY in pixels of the image; integers are pixel centers.
        stride: pixels per position; (i, j) covers [stride * i, stride * (i + 1)) x
            [stride * j, stride * (j + 1)).
        map_size: h, w.

    Returns:
        Rows and columns; at least one of each.
    """
    edges = (np.asarray(box, dtype=float) + 0.5) / stride
    slices = []
    for low, high, size in zip(edges[:2], edges[2:], reversed(map_size), strict=True):
        start = int(np.clip(np.floor(low), 0, size - 1))
        slices.append(slice(start, int(np.clip(np.ceil(high), start + 1, size))))
    columns, rows = slices
    return rows, columns


def write_slice_pages(
    dataset: str,
    window: tuple[float, float] | None,
    recordings: Sequence[SliceRecording],
    output: str,
    *,
    judge_image: JudgeImage | None = None,
    style: PageStyle = PAGE_STYLES["screen"],
) -> list[str]:
    """Write a page per image, and all pages below each other as the contact sheet.

    Args:
        dataset: name of the data set.
        window: (low, high) in HU, shown as black and white; None uses ``record["window"]``.
        recordings: one per image.
        output: folder to write to.
        judge_image: a function such as :func:`~lesion_d2.visualization.match_outcome`; if given,
            the detections are drawn over the key slice.
        style: of the pages.

    Returns:
        Paths, the contact sheet's last.
    """
    metadata = MetadataCatalog.get(dataset)
    legend = list(TRUTH_LEGEND[:2] if judge_image is None else OUTCOME_LEGEND)
    if any(recording.contextual is not None for recording in recordings):
        legend += GRID_LEGEND
    paths, pages = [], []
    for recording in tqdm(recordings, desc="pictures", disable=None):
        content = SlicePage(recording, window, metadata, style).draw(judge_image)
        title = truth_title(recording.record)
        pages.append(contact_sheet([content], [title], legend, style=style))
        path = os.path.join(output, picture_name(recording.record))
        paths.append(save_picture(pages[-1], path))
    sheet = stack_pictures(pages, style)
    return [*paths, save_picture(sheet, os.path.join(output, CONTACT_SHEET))]


class SlicePage:
    """Draws the recording of one image, in pixels of the slice.

    From top to bottom: the middle slices of the M images; the spatial maps S'' over them, with
    colors that span their values in the M images; and for each of the first lesions, the part of
    these slices around it with the positions of the feature map, and a table of the slice weights
    C'' with a row per image and a column per position. Fig. 2 of the paper shows C'' of one
    channel, and Fig. 3 S'' of one; means over the channels may have a maximum below 1.

    Args:
        recording: of the image.
        window: (low, high) in HU, shown as black and white; None uses ``record["window"]``.
        metadata: the data set's ``MetadataCatalog`` entry.
        style: of the page.
    """

    def __init__(
        self,
        recording: SliceRecording,
        window: tuple[float, float] | None = None,
        metadata=None,
        style: PageStyle = PAGE_STYLES["screen"],
    ):
        self.recording = recording
        self.metadata = metadata
        self.style = style
        self.marks = slice_marks(recording.record, window)
        pixels = hu_to_pixels(recording.slices, window or recording.record["window"])
        self.images = np.repeat(np.rint(pixels).astype(np.uint8)[..., None], 3, axis=-1)

    def draw(self, judge_image: JudgeImage | None = None) -> np.ndarray:
        """Draw the page as an RGB uint8 picture, with detections if ``judge_image`` is given."""
        recording = self.recording
        parts = [self._draw_slices(judge_image)]
        if recording.spatial is not None:
            parts.append(self._draw_spatial())
        if recording.contextual is not None:
            boxes = truth_boxes(recording.record)[:MAX_LESIONS].reshape(-1, 2)
            boxes = slice_to_image(boxes, recording.extent, recording.image_size).reshape(-1, 4)
            for number, box in enumerate(boxes, start=1):
                region = lesion_region(box, recording.stride, recording.contextual.shape[1:])
                parts.append(self._draw_patches(number, region))
                parts.append(self._draw_table(number, region, width=parts[0].shape[1]))
        return stack_pictures(parts, self.style)

    def _draw_slices(self, judge_image: JudgeImage | None) -> np.ndarray:
        recording, tiles, titles = self.recording, [], []
        for index, visualizer in enumerate(self._visualizers()):
            if index != recording.key:
                offset, unit = 3 * (index - recording.key), "slices"
                if recording.interval is not None:
                    offset, unit = offset * recording.interval, "mm"
                # Less at the end of a series, where the last slice is repeated.
                titles.append(f"slice {recording.name(index)}\nup to {offset:+g} {unit}")
            elif judge_image is None:
                visualizer.draw_dataset_dict(recording.record)
                titles.append("slice K\nthe key slice")
            else:
                outcome = judge_image(recording.record, recording.predictions)
                visualizer.draw_outcome(outcome)
                titles.append(f"slice K, the key slice\n{outcome.summary()}")
            tiles.append(visualizer.get_output().get_image())
        return contact_sheet(tiles, titles, [], columns=len(tiles), style=self.style)

    def _draw_spatial(self) -> np.ndarray:
        recording, maps, tiles, titles = self.recording, self.recording.spatial, [], []
        low, high = float(maps.min()), float(maps.max())
        for index, visualizer in enumerate(self._visualizers()):
            title = f"spatial attention S'' of {recording.name(index)}\n{recording.channels}"
            values = place(
                maps[index],
                recording.stride,
                image_size=recording.image_size,
                extent=recording.extent,
                slice_size=recording.slices.shape[1:],
            )
            visualizer.draw_heat_map(HeatMap(title, values, low, high))
            if index == recording.key:
                visualizer.draw_truth_boxes(recording.record)
            tile = visualizer.get_output().get_image()
            bar = color_bar(low, high, tile.shape[1], self.style)
            tiles.append(stack_pictures([tile, bar], self.style))
            titles.append(title)
        return contact_sheet(tiles, titles, [], columns=len(tiles), style=self.style)

    def _draw_patches(self, number: int, region: tuple[slice, slice]) -> np.ndarray:
        recording, (rows, columns), tiles = self.recording, region, []
        corners = [[columns.start, rows.start], [columns.stop, rows.stop]]
        edges = np.array(corners) * recording.stride - 0.5
        (x0, y0), (x1, y1) = image_to_slice(edges, recording.extent, recording.image_size)
        num_rows, num_columns = rows.stop - rows.start, columns.stop - columns.start
        cell = max((x1 - x0) / num_columns, (y1 - y0) / num_rows)
        for index, visualizer in enumerate(self._visualizers()):
            visualizer.zoom(np.array([[x0, y0, x1, y1]]), min_side=_MIN_CELLS * cell)
            visualizer.draw_grid((x0, y0, x1, y1), num_rows, num_columns)
            if index == recording.key:
                visualizer.draw_truth_boxes(recording.record)
            tiles.append(visualizer.get_output().get_image())
        titles = [f"lesion {number} on {recording.name(i)}" for i in range(len(tiles))]
        return contact_sheet(tiles, titles, [], columns=len(tiles), style=self.style)

    def _draw_table(self, number: int, region: tuple[slice, slice], *, width: int) -> np.ndarray:
        recording = self.recording
        values = recording.contextual[:, region[0], region[1]]
        positions = [f"{y}, {x}" for y in range(values.shape[1]) for x in range(values.shape[2])]
        names = [recording.name(i) for i in range(len(values))]
        options = {"width": width, "style": self.style}
        table = heat_table(values.flatten(1).numpy(), names, positions, **options)
        title = (
            f"contextual attention C'' at lesion {number}, by position (y, x) of the cells above\n"
            f"{recording.channels}, each divided by its largest weight over the slices"
        )
        return contact_sheet([table], [title], [], style=self.style)

    def _visualizers(self) -> Iterator[LesionVisualizer]:
        for image in self.images:
            yield LesionVisualizer(image, self.metadata, side=TILE_SIDE, **self.marks)
