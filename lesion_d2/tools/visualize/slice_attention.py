"""How a model weighs the slices around a lesion, and their positions (Tao et al., Figs. 2, 3)."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lesion_d2.cropping import image_to_slice, shown_extent, slice_to_image
from lesion_d2.data.ct import hu_to_pixels
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.modeling import SliceImages
from lesion_d2.visualization import (
    GRID_LEGEND,
    OUTCOME_LEGEND,
    TRUTH_LEGEND,
    HeatMap,
    ImageOutcome,
    LesionVisualizer,
    color_bar,
    contact_sheet,
    heat_table,
    place,
    save_picture,
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

#: What sorts an image's detections: a dict of the data set and the detections in, the outcome out.
JudgeImage = Callable[[dict, Instances], ImageOutcome]
MAX_LESIONS = 4  # of an image, that get a table of slice weights
_MIN_CELLS = 6  # across a patch around a lesion


@dataclass
class SliceRecording:
    """What a model computed for the M three-channel images around one key slice.

    Attributes:
        record: the key slice's Detectron2 dict.
        slices: (M, H, W) int16, the middle slices of the M images as they are on disk, in HU,
            clipped to the window of the model.
        contextual, spatial: (M, h, w), the attentions' weights C'' and S'' at the positions with a
            part of the image; None without that attention.
        channels: of which they are, for a title: "mean of 512 channels".
        stride: pixels of the image a weight.
        image_size: height and width of the image.
        extent: of :func:`shown_extent`.
        interval: between slices, in mm; None where it is not known.
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
        """Index of the image with the key slice, the middle one."""
        return len(self.slices) // 2

    def name(self, index: int) -> str:
        """An image's name in the paper's Figs. 2 and 3: K - 1 is the one before the key slice's."""
        return f"K{index - self.key:+d}" if index != self.key else "K"


def check_channel(channel: int | None, backbone: Backbone) -> None:
    """Check that a channel's weights can be shown.

    Raises:
        ValueError: there is no such channel, or no attention to slices.
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
    """Run a model on one image and record how it weighs the slices.

    Args:
        model: whose backbone is a :class:`SliceImages` with attention, in evaluation mode.
        mapper: of the model's config, for inference.
        record: the image's Detectron2 dict.
        channel: whose weights; None for the mean over all channels.
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
        extent=shown_extent(sample, image_size),
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

            ``inputs``: the features, and their sizes without the padding, None where is none.
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
    """The positions of a feature map whose pixels a lesion's box has a part of.

    Args:
        box: XYXY in pixels of the image, whole numbers in the middle of pixels.
        stride: pixels a position; (i, j) covers [stride * i, stride * (i + 1)) x
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
) -> list[str]:
    """Write a page an image, and all of them below each other as the contact sheet.

    Args:
        dataset: name of the data set.
        window: low and high in HU that become black and white; None takes ``record["window"]``.
        recordings: one an image.
        output: folder to write to.
        judge_image: draw the detections over the key slice, as this function, such as
            :func:`~lesion_d2.visualization.judge`, sorts them.

    Returns:
        Paths, the contact sheet's last.
    """
    metadata = MetadataCatalog.get(dataset)
    legend = list(TRUTH_LEGEND[:2] if judge_image is None else OUTCOME_LEGEND)
    if any(recording.contextual is not None for recording in recordings):
        legend += GRID_LEGEND
    paths, pages = [], []
    for recording in tqdm(recordings, desc="pictures", disable=None):
        content = SlicePage(recording, window, metadata).draw(judge_image)
        pages.append(contact_sheet([content], [truth_title(recording.record)], legend))
        path = os.path.join(output, picture_name(recording.record))
        paths.append(save_picture(pages[-1], path))
    return [*paths, save_picture(stack_pictures(pages), os.path.join(output, CONTACT_SHEET))]


class SlicePage:
    """Draws what was recorded for one image, in pixels of the slice.

    From the top: the middle slices of the M images; the spatial maps S'' over them, whose colors
    span their values in the M images; and for each of the first lesions its surroundings on these
    slices, with the positions of the feature map, over a table of the slice weights C'' with a row
    an image and a column a position. Fig. 2 of the paper shows C'' of one channel, and Fig. 3 S''
    of one; where ours are means over the channels, the largest may be below 1.

    Args:
        recording: of the image.
        window: low and high in HU that become black and white; None takes ``record["window"]``.
        metadata: the data set's ``MetadataCatalog`` entry.
    """

    def __init__(
        self, recording: SliceRecording, window: tuple[float, float] | None = None, metadata=None
    ):
        self.recording = recording
        self.metadata = metadata
        pixels = hu_to_pixels(recording.slices, window or recording.record["window"])
        self.images = np.repeat(np.rint(pixels).astype(np.uint8)[..., None], 3, axis=-1)

    def draw(self, judge_image: JudgeImage | None = None) -> np.ndarray:
        """Draw the page as RGB uint8 picture, with the detections if they are judged."""
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
        return stack_pictures(parts)

    def _draw_slices(self, judge_image: JudgeImage | None) -> np.ndarray:
        recording, tiles, titles = self.recording, [], []
        for index, visualizer in enumerate(self._visualizers()):
            if index != recording.key:
                offset, unit = 3 * (index - recording.key), "slices"
                if recording.interval is not None:
                    offset, unit = offset * recording.interval, "mm"
                # Less at the end of a series, where its last slice takes the place of others.
                titles.append(f"slice {recording.name(index)}\nup to {offset:+g} {unit}")
            elif judge_image is None:
                visualizer.draw_dataset_dict(recording.record)
                titles.append("slice K\nthe key slice")
            else:
                outcome = judge_image(recording.record, recording.predictions)
                visualizer.draw_outcome(outcome)
                titles.append(f"slice K, the key slice\n{outcome.summary()}")
            tiles.append(visualizer.get_output().get_image())
        return contact_sheet(tiles, titles, [], columns=len(tiles))

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
            tiles.append(stack_pictures([tile, color_bar(low, high, tile.shape[1])]))
            titles.append(title)
        return contact_sheet(tiles, titles, [], columns=len(tiles))

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
        return contact_sheet(tiles, titles, [], columns=len(tiles))

    def _draw_table(self, number: int, region: tuple[slice, slice], *, width: int) -> np.ndarray:
        recording = self.recording
        values = recording.contextual[:, region[0], region[1]]
        positions = [f"{y}, {x}" for y in range(values.shape[1]) for x in range(values.shape[2])]
        names = [recording.name(i) for i in range(len(values))]
        table = heat_table(values.flatten(1).numpy(), names, positions, width=width)
        title = (
            f"contextual attention C'' at lesion {number}, by position (y, x) of the cells above\n"
            f"{recording.channels}, each divided by its largest weight over the slices"
        )
        return contact_sheet([table], [title], [])

    def _visualizers(self) -> Iterator[LesionVisualizer]:
        for image in self.images:
            yield LesionVisualizer(image, self.metadata, side=TILE_SIDE)
