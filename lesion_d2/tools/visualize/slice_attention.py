"""How a model weighs the slices around a lesion, and their positions (Tao et al., Figs. 2, 3)."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

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
    judge,
    save_picture,
    stack_pictures,
    truth_boxes,
    upsample,
)

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from torch import Tensor, nn
from tqdm import tqdm

from .pictures import CONTACT_SHEET, TILE_SIDE, truth_title

MAX_LESIONS = 4  # of an image, that get a table of slice weights
_MIN_CELLS = 6  # across a patch around a lesion


@dataclass
class SliceRecording:
    """What a model computed for the M three-channel images around one key slice.

    Attributes:
        record: the key slice's Detectron2 dict, as it is on disk.
        sample: what the model got: ``image`` (3 M, H, W), and perhaps ``crop``.
        slices: (M, H, W) int16, the middle slices of the M images, in HU, clipped to the window of
            the model.
        contextual, spatial: (M, h, w), the attentions' weights C'' and S'', the mean over the
            channels; None without that attention.
        channels: D, how many channels the mean is over.
        stride: pixels of the image a weight.
        interval: between slices, in mm.
        predictions: the detections, in pixels of the slice, on the CPU.
    """

    record: dict
    sample: dict
    slices: Tensor
    contextual: Tensor | None
    spatial: Tensor | None
    channels: int
    stride: int
    interval: float
    predictions: Instances

    @property
    def key(self) -> int:
        """Index of the image with the key slice, the middle one."""
        return len(self.slices) // 2

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return tuple(self.sample["image"].shape[-2:])

    def name(self, index: int) -> str:
        """An image's name in the paper's Figs. 2 and 3: K - 1 is the one before the key slice's."""
        return f"K{index - self.key:+d}" if index != self.key else "K"


def has_slice_attention(model: nn.Module) -> bool:
    """Whether a model weighs the slices that it sees, or their positions."""
    backbone = getattr(model, "backbone", None)
    return isinstance(backbone, SliceImages) and any(
        attention is not None
        for attention in (backbone.contextual_attention, backbone.spatial_attention)
    )


def record_slices(model: nn.Module, mapper: LesionDatasetMapper, record: dict) -> SliceRecording:
    """Run a model on one image and record how it weighs the slices.

    Args:
        model: whose backbone is a :class:`SliceImages` with attention, in evaluation mode.
        mapper: of the model's config, for inference.
        record: the image's Detectron2 dict.
    """
    sample = mapper.load(record)
    hu = sample["image"]
    sample["image"] = hu_to_pixels(hu, mapper.hu_window)
    with torch.inference_mode(), _record_weights(model.backbone) as weights:
        (output,) = model([sample])
    maps = {name: values[0].float().mean(dim=1).cpu() for name, values in weights.items()}
    return SliceRecording(
        record,
        sample,
        slices=hu[1::3],
        contextual=maps.get("contextual"),
        spatial=maps.get("spatial"),
        channels=next(iter(weights.values())).shape[2],
        stride=model.backbone.output_shape()["images"].stride,
        interval=mapper.slice_interval or record["spacing"][2],
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

        def record(module: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            """Compute the weights that the attention is about to use."""
            weights[name] = module.weights(*inputs)

        handles.append(attention.register_forward_pre_hook(record))
    try:
        yield weights
    finally:
        for handle in handles:
            handle.remove()


def to_image(points: np.ndarray, sample: dict) -> np.ndarray:
    """Bring points on the slice to the image that was cropped and resized from it.

    Args:
        points: (n, 2) x, y in pixels of the slice, whole numbers in the middle of pixels.
        sample: ``image`` (C, H, W), ``height`` and ``width`` of the slice, and perhaps ``crop``.

    Returns:
        (n, 2) in pixels of the image.
    """
    x0, y0, x1, y1 = sample.get("crop", (0, 0, sample["width"], sample["height"]))
    height, width = sample["image"].shape[-2:]
    scale = np.array([width / (x1 - x0), height / (y1 - y0)])
    return (np.asarray(points, dtype=float) + 0.5 - (x0, y0)) * scale - 0.5


def record_on_image(record: dict, sample: dict) -> dict:
    """A Detectron2 dict with size, lesions and diameters in pixels of the image of ``sample``."""
    boxes = to_image(truth_boxes(record).reshape(-1, 2), sample).reshape(-1, 4)
    annotations = []
    for annotation, box in zip(record["annotations"], boxes, strict=True):
        moved = {**annotation, "bbox": box.tolist(), "bbox_mode": BoxMode.XYXY_ABS}
        if "recist" in annotation:
            ends = np.reshape(annotation["recist"], (4, 2))
            moved["recist"] = to_image(ends, sample).ravel().tolist()
        annotations.append(moved)
    height, width = sample["image"].shape[-2:]
    return {**record, "height": height, "width": width, "annotations": annotations}


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
    score_threshold: float | None = None,
) -> list[str]:
    """Write a page an image, and all of them as the contact sheet.

    Args:
        dataset: name of the data set.
        window: low and high in HU that become black and white; None takes ``record["window"]``.
        recordings: one an image.
        output: folder to write to.
        score_threshold: draw detections from this score on over the key slice.

    Returns:
        Paths, the contact sheet's last.
    """
    metadata = MetadataCatalog.get(dataset)
    legend = list(TRUTH_LEGEND[:2] if score_threshold is None else OUTCOME_LEGEND)
    if any(recording.contextual is not None for recording in recordings):
        legend += GRID_LEGEND
    paths, pages = [], []
    for number, recording in enumerate(tqdm(recordings, desc="pictures", disable=None), start=1):
        content = SlicePage(recording, window, metadata).draw(score_threshold)
        title = truth_title(recording.record)
        page = contact_sheet([content], [title], legend)
        path = os.path.join(output, f"{recording.record['image_id']}.png")
        paths.append(save_picture(page, path))
        is_last = number == len(recordings)
        pages.append(page if is_last else contact_sheet([content], [title], []))
    return [*paths, save_picture(stack_pictures(pages), os.path.join(output, CONTACT_SHEET))]


class SlicePage:
    """Draws what was recorded for one image, in pixels of the image that the model got.

    From the top: the middle slices of the M images; the spatial maps S'' over them, whose colors
    span their values in the M images; and for each of the first lesions its surroundings on these
    slices, with the positions of the feature map, over a table of the slice weights C'' with a row
    an image and a column a position. Fig. 2 of the paper shows C'' of one channel, and Fig. 3 S''
    of one; here both are means over the channels, so that the largest may be below 1.

    Args:
        recording: of the image.
        window: low and high in HU that become black and white; None takes ``record["window"]``.
        metadata: the data set's ``MetadataCatalog`` entry.
    """

    def __init__(
        self, recording: SliceRecording, window: tuple[float, float] | None = None, metadata=None
    ):
        self.recording = recording
        self.record = record_on_image(recording.record, recording.sample)
        self.metadata = metadata
        pixels = hu_to_pixels(recording.slices, window or recording.record["window"])
        self.images = pixels.round().byte()[..., None].expand(-1, -1, -1, 3).numpy()

    def draw(self, score_threshold: float | None = None) -> np.ndarray:
        """Draw the page as RGB uint8 picture, with detections from a score on if one is given."""
        parts = [self._draw_slices(score_threshold)]
        if self.recording.spatial is not None:
            parts.append(self._draw_spatial())
        if self.recording.contextual is not None:
            for number, box in enumerate(truth_boxes(self.record)[:MAX_LESIONS], start=1):
                region = lesion_region(
                    box, self.recording.stride, self.recording.contextual.shape[1:]
                )
                parts.append(self._draw_patches(number, region))
                parts.append(self._draw_table(number, region, width=parts[0].shape[1]))
        return stack_pictures(parts)

    def _draw_slices(self, score_threshold: float | None) -> np.ndarray:
        tiles, titles = [], []
        for index, visualizer in enumerate(self._visualizers()):
            offset = 3 * (index - self.recording.key) * self.recording.interval
            title = f"slice {self.recording.name(index)}\n{offset:+g} mm"
            if index == self.recording.key:
                title = "slice K\nthe key slice"
                if score_threshold is None:
                    visualizer.draw_dataset_dict(self.record)
                else:
                    outcome = self._judge(score_threshold)
                    visualizer.draw_outcome(outcome)
                    title = f"slice K, the key slice\n{outcome.summary()}"
            tiles.append(visualizer.get_output().get_image())
            titles.append(title)
        return contact_sheet(tiles, titles, [], columns=len(tiles))

    def _judge(self, score_threshold: float) -> ImageOutcome:
        """What was found, judged on the slice as evaluations do, in pixels of the image."""
        recording = self.recording
        outcome = judge(recording.record, recording.predictions, score_threshold=score_threshold)
        corners = outcome.predictions.pred_boxes.tensor.numpy().reshape(-1, 2)
        boxes = torch.from_numpy(to_image(corners, recording.sample).reshape(-1, 4)).float()
        fields = {**outcome.predictions.get_fields(), "pred_boxes": Boxes(boxes)}
        return replace(
            outcome, record=self.record, predictions=Instances(recording.image_size, **fields)
        )

    def _draw_spatial(self) -> np.ndarray:
        maps, size = self.recording.spatial, self.recording.image_size
        low, high = float(maps.min()), float(maps.max())
        tiles, titles = [], []
        for index, visualizer in enumerate(self._visualizers()):
            values = upsample(maps[index], self.recording.stride, size, size).numpy()
            visualizer.draw_heat_map(HeatMap(f"S'' {index}", values, low, high))
            if index == self.recording.key:
                visualizer.draw_truth_boxes(self.record)
            tile = visualizer.get_output().get_image()
            tiles.append(stack_pictures([tile, color_bar(low, high, tile.shape[1])]))
            name = self.recording.name(index)
            titles.append(f"spatial attention S'' of {name}\n{self._mean_of_channels()}")
        return contact_sheet(tiles, titles, [], columns=len(tiles))

    def _draw_patches(self, number: int, region: tuple[slice, slice]) -> np.ndarray:
        stride = self.recording.stride
        rows, columns = region
        edges = np.array([columns.start, rows.start, columns.stop, rows.stop]) * stride - 0.5
        tiles = []
        for index, visualizer in enumerate(self._visualizers()):
            visualizer.zoom(edges[None], min_side=_MIN_CELLS * stride)
            visualizer.draw_grid(edges, rows.stop - rows.start, columns.stop - columns.start)
            if index == self.recording.key:
                visualizer.draw_truth_boxes(self.record)
            tiles.append(visualizer.get_output().get_image())
        titles = [f"lesion {number} on {self.recording.name(i)}" for i in range(len(tiles))]
        return contact_sheet(tiles, titles, [], columns=len(tiles))

    def _draw_table(self, number: int, region: tuple[slice, slice], *, width: int) -> np.ndarray:
        values = self.recording.contextual[:, region[0], region[1]]
        positions = [f"{y}, {x}" for y in range(values.shape[1]) for x in range(values.shape[2])]
        names = [self.recording.name(i) for i in range(len(values))]
        table = heat_table(values.flatten(1).numpy(), names, positions, width=width)
        title = (
            f"contextual attention C'' at lesion {number}, by position (y, x) of the cells above\n"
            f"{self._mean_of_channels()}, each divided by its largest weight over the slices"
        )
        return contact_sheet([table], [title], [])

    def _mean_of_channels(self) -> str:
        return f"mean of {self.recording.channels} channels"

    def _visualizers(self) -> Iterator[LesionVisualizer]:
        for image in self.images:
            yield LesionVisualizer(image, self.metadata, side=TILE_SIDE)
