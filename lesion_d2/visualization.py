"""Pictures of CT slices, their lesions and a run's detections, with Detectron2's ``Visualizer``."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib as mpl
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from .data.ct import hu_to_pixels, read_slice
from .evaluation.matching import match_detections
from .files import written_whole

# The usual display windows (low, high) in Hounsfield units.
WINDOWS = {
    "abdomen": (-160.0, 240.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
    "liver": (-45.0, 105.0),
    "lung": (-1350.0, 150.0),
    "mediastinum": (-125.0, 225.0),
}

TRUTH_COLOR = (1.0, 0.9, 0.0)
HIT_COLOR = (0.1, 0.9, 0.2)
FALSE_POSITIVE_COLOR = (1.0, 0.2, 0.15)
RECIST_COLOR = (0.2, 0.85, 1.0)
MASK_COLOR = (1.0, 0.4, 0.9)

_DASHED = (0, (3, 1.5))
_DOTTED = (0, (1, 1))
_BOX_WIDTH = 1.6  # points
_HIT_WIDTH = 2.6  # a hit stays visible under the thinner box of its lesion
_FOUND_WIDTH = 1.0
_FONT_SIZE = 9  # points
_LABEL_MARGIN = 4  # pixels around a label's letters
_DPI = 100
_PIXEL_CENTER = 0.5  # from a pixel's upper left corner, where Matplotlib's x and y are whole
# Contact sheet, in pixels.
_GAP = 8
_TITLE_HEIGHT = 40
_LEGEND_WIDTH = 190
_LEGEND_ROW = 26

TRUTH_LEGEND = [
    ("lesion", TRUTH_COLOR, "-"),
    ("RECIST diameters", RECIST_COLOR, "-"),
    ("mask", MASK_COLOR, "fill"),
]
OUTCOME_LEGEND = [
    ("found lesion", TRUTH_COLOR, "-"),
    ("missed lesion", TRUTH_COLOR, _DASHED),
    ("hit (score)", HIT_COLOR, "-"),
    ("repeated hit", HIT_COLOR, _DOTTED),
    ("false positive (score)", FALSE_POSITIVE_COLOR, "-"),
]


@dataclass
class ImageOutcome:
    """What the detections of one image found of its lesions.

    Attributes:
        record: the image's Detectron2 dict.
        predictions: the N detections at or above the score threshold, by falling score.
        is_hit: (N,) bool, the detection found a lesion that no better one had found.
        is_false_positive: (N,) bool, the detection reaches no lesion.
        is_repeat: (N,) bool, the detection reaches only lesions that a better one found.
        is_found: (M,) bool, the lesion of ``record["annotations"]`` was found.
        quality: see :func:`outcome_quality`.
    """

    record: dict
    predictions: Instances
    is_hit: np.ndarray
    is_false_positive: np.ndarray
    is_repeat: np.ndarray
    is_found: np.ndarray
    quality: float = field(default=math.nan)

    def summary(self) -> str:
        """Hits, false positives and misses as one line of text."""
        hits, false_positives = int(self.is_found.sum()), int(self.is_false_positive.sum())
        missed = len(self.is_found) - hits
        plural = "" if hits == 1 else "s"
        fp_plural = "" if false_positives == 1 else "s"
        return f"{hits} hit{plural}, {false_positives} false positive{fp_plural}, {missed} missed"


def truth_boxes(record: dict) -> np.ndarray:
    """The lesions of a Detectron2 dict as an (M, 4) array of XYXY boxes in pixels."""
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
        for a in record.get("annotations", [])
    ]
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def judge(
    record: dict,
    predictions: Instances,
    *,
    score_threshold: float = 0.0,
    iou_threshold: float = 0.5,
) -> ImageOutcome:
    """Sort an image's detections into hits and false positives, as the FROC curve does.

    Classes are not compared: a lesion counts as found by any detection on it.

    Args:
        record: the image's Detectron2 dict.
        predictions: ``pred_boxes`` and ``scores``; ``pred_masks`` or ``pred_masks_rle`` are kept.
        score_threshold: detections below it are left out.
        iou_threshold: intersection over union from which a detection reaches a lesion.
    """
    order = torch.argsort(predictions.scores, descending=True, stable=True)
    order = order[predictions.scores[order] >= score_threshold]
    kept = _select(predictions, order)
    boxes, gt_boxes = kept.pred_boxes.tensor.double().numpy(), truth_boxes(record)
    scores = kept.scores.double().numpy()
    matches = match_detections(boxes, scores, gt_boxes, iou_threshold=iou_threshold)
    outcome = ImageOutcome(
        record,
        kept,
        is_hit=matches.finds,
        is_false_positive=matches.false_positives,
        is_repeat=matches.repeats,
        is_found=np.isfinite(matches.found_scores),
    )
    outcome.quality = outcome_quality(outcome)
    return outcome


def outcome_quality(outcome: ImageOutcome) -> float:
    """The measure behind the best and the worst images, 0 (worst) to 1 (best).

    The mean over the image's lesions of the highest IoU x score of any detection on it, divided by
    one plus the number of false positives. An image without lesions has 0 where it has false
    positives, and NaN (neither good nor bad) where it has none.
    """
    false_positives = int(outcome.is_false_positive.sum())
    gt_boxes = torch.as_tensor(truth_boxes(outcome.record), dtype=torch.float32)
    if len(gt_boxes) == 0:
        return 0.0 if false_positives else math.nan
    if len(outcome.predictions) == 0:
        return 0.0
    overlap = pairwise_iou(Boxes(gt_boxes), outcome.predictions.pred_boxes)
    best = (overlap * outcome.predictions.scores).max(dim=1).values
    return float(best.mean()) / (1 + false_positives)


def parse_window(words: Sequence[str]) -> tuple[float, float] | None:
    """Read a display window from a command line.

    Args:
        words: a name of :data:`WINDOWS`, or "dicom", or two numbers LOW HIGH in Hounsfield units.

    Returns:
        (low, high), or None for "dicom": the window that the data set states for each image.

    Raises:
        ValueError: neither a known name nor two numbers with LOW below HIGH.

    Example:
        >>> parse_window(["-160", "240"])
        (-160.0, 240.0)
    """
    if len(words) == 1 and words[0] == "dicom":
        return None
    if len(words) == 1 and words[0] in WINDOWS:
        return WINDOWS[words[0]]
    try:
        low, high = (float(word) for word in words)
    except ValueError:
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        names = ", ".join(["dicom", *WINDOWS])
        raise ValueError(
            f"window is {' '.join(words)!r}, expected one of {names}, or LOW HIGH in HU, LOW < HIGH"
        )
    return low, high


def window_image(record: dict, window: tuple[float, float] | None = None) -> np.ndarray:
    """Read an image's key slice for display.

    Args:
        record: the image's Detectron2 dict.
        window: (low, high) in HU that become black and white; None takes ``record["window"]``.

    Returns:
        H x W x 3 uint8, gray.
    """
    pixels = hu_to_pixels(read_slice(record["file_name"]), window or record["window"])
    return np.repeat(np.rint(pixels).astype(np.uint8)[:, :, None], 3, axis=2)


def save_picture(image: np.ndarray, path: str | os.PathLike) -> str:
    """Write an RGB image as PNG, whole or not at all; return its path."""
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with written_whole(path) as partial:
        Image.fromarray(image).save(partial, format="PNG")
    return path


class LesionVisualizer(Visualizer):
    """Draws lesions, RECIST diameters, masks and detections on a CT slice.

    Small images are enlarged by a whole factor, lines and letters keep their size in the picture,
    and a label stands at an outer corner of its box, where it covers no lesion if it can.

    Coordinates that it is given name pixels: x = 12 is the center of column 12, as
    :mod:`lesion_d2.data.pseudo_masks` takes them.

    Example:
        >>> visualizer = LesionVisualizer(window_image(record), side=1024)
        >>> visualizer.draw_outcome(judge(record, instances, score_threshold=0.3))
        >>> save_picture(visualizer.get_output().get_image(), "slice.png")
    """

    def __init__(self, img_rgb, metadata=None, *, side: int = 1024) -> None:
        """
        Args:
            img_rgb: H x W x 3, RGB, 0..255.
            metadata: the data set's ``MetadataCatalog`` entry.
            side: the picture's longer side is at least this many pixels.
        """
        scale = max(1, math.ceil(side / max(np.shape(img_rgb)[:2])))
        super().__init__(img_rgb, metadata, scale=scale)
        self._default_font_size = _FONT_SIZE / scale
        self._occupied: list[np.ndarray] = []  # display pixels, x0 y0 x1 y1

    def zoom(self, boxes: np.ndarray, *, min_side: float = 96.0) -> None:
        """Show only the part of the image around some boxes; call it before drawing.

        Args:
            boxes: (N, 4) XYXY in pixels; none leaves the view as it is.
            min_side: the view's shorter side is at least this long, in pixels of the image.
        """
        if len(boxes) == 0:
            return
        boxes = np.asarray(boxes) + _PIXEL_CENTER
        height, width = self.output.height, self.output.width
        (x0, y0), (x1, y1) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
        shorter = min(height, width)
        factor = max(2 * (x1 - x0) / width, 2 * (y1 - y0) / height, min_side / shorter)
        view_w, view_h = min(factor, 1.0) * width, min(factor, 1.0) * height
        left = np.clip((x0 + x1 - view_w) / 2, 0, width - view_w)
        top = np.clip((y0 + y1 - view_h) / 2, 0, height - view_h)
        self.output.ax.set_xlim(left, left + view_w)
        self.output.ax.set_ylim(top + view_h, top)

    def draw_dataset_dict(self, dic: dict, masks: Sequence[np.ndarray] = ()) -> VisImage:
        """Draw an image's lesions with their RECIST diameters, sizes in mm, and masks.

        Args:
            dic: the image's Detectron2 dict; lesions without ``recist`` get their box alone.
            masks: (H, W) bool arrays to overlay.
        """
        boxes, annotations = truth_boxes(dic), dic.get("annotations", [])
        for mask in masks:
            self.draw_soft_mask(np.asarray(mask, dtype=np.float32), MASK_COLOR, alpha=0.35)
        for box, annotation in zip(boxes, annotations, strict=True):
            self._draw_rectangle(box, TRUTH_COLOR)
            if "recist" in annotation:
                self.draw_recist(annotation["recist"])
        for box, annotation in zip(boxes, annotations, strict=True):
            if "diameters_mm" in annotation:
                long, short = annotation["diameters_mm"]
                self.draw_label(f"{long:.0f} x {short:.0f} mm", box, TRUTH_COLOR)
        return self.output

    def draw_recist(self, recist: Sequence[float]) -> VisImage:
        """Draw the long and the short diameter, two lines that usually cross.

        Args:
            recist: x11, y11, x12, y12 (long), x21, y21, x22, y22 (short), pixels.
        """
        for x1, y1, x2, y2 in np.asarray(recist, dtype=float).reshape(2, 4) + _PIXEL_CENTER:
            line = Line2D([x1, x2], [y1, y2], color=RECIST_COLOR, linewidth=1.0, zorder=4)
            self.output.ax.add_line(line)
        return self.output

    def draw_outcome(self, outcome: ImageOutcome) -> VisImage:
        """Draw truth and detections of an image.

        Lesions yellow, dashed where missed; hits green and false positives red, each with its
        score, and its mask where it has one; detections on a lesion already found dotted green.
        """
        predictions, gt_boxes = outcome.predictions, truth_boxes(outcome.record)
        boxes = predictions.pred_boxes.tensor.numpy()
        colors = [FALSE_POSITIVE_COLOR if fp else HIT_COLOR for fp in outcome.is_false_positive]
        for mask, color in zip(prediction_masks(predictions), colors, strict=False):
            self.draw_soft_mask(mask.astype(np.float32), color, alpha=0.3)
        for box, found in zip(gt_boxes, outcome.is_found, strict=True):
            style, width = ("-", _FOUND_WIDTH) if found else (_DASHED, 1.5 * _BOX_WIDTH)
            self._draw_rectangle(box, TRUTH_COLOR, style, width, zorder=5)
        for i, (box, color) in enumerate(zip(boxes, colors, strict=True)):
            width = _HIT_WIDTH if outcome.is_hit[i] else _BOX_WIDTH
            self._draw_rectangle(box, color, _DOTTED if outcome.is_repeat[i] else "-", width)
        for i in np.flatnonzero(~outcome.is_repeat):
            self.draw_label(self._score_label(predictions, i), boxes[i], colors[i])
        for box in gt_boxes[~outcome.is_found]:
            self.draw_label("missed", box, TRUTH_COLOR)
        return self.output

    def draw_label(self, text: str, box: Sequence[float], color) -> VisImage:
        """Write a label at the outer corner of a box that covers least of what was drawn.

        Args:
            text: a few letters.
            box: XYXY in pixels.
            color: of the letters.
        """
        artist = self.output.ax.text(
            0,
            0,
            text,
            size=_FONT_SIZE,
            family="sans-serif",
            bbox={"facecolor": "black", "alpha": 0.75, "pad": 1.0, "edgecolor": "none"},
            verticalalignment="bottom",
            horizontalalignment="left",
            color=color,
            zorder=10,
        )
        extent = artist.get_window_extent(self.output.canvas.get_renderer())
        size = np.array([extent.width, extent.height]) + 2 * _LABEL_MARGIN
        view = self.output.ax.bbox.extents
        corners = _label_corners(self._to_display(self._to_axes(box)), *size)
        corners = np.clip(corners, view[:2], view[2:] - size)
        places = np.hstack([corners, corners + size])
        covered = [sum(_overlap_area(place, taken) for taken in self._occupied) for place in places]
        place = places[int(np.argmin(covered))]
        artist.set_position(
            self.output.ax.transData.inverted().transform(place[:2] + _LABEL_MARGIN)
        )
        self._occupied.append(place)
        return self.output

    def _score_label(self, predictions: Instances, index: int) -> str:
        names = self.metadata.get("thing_classes", [])
        score = f"{predictions.scores[index]:.2f}"
        if len(names) < 2 or not predictions.has("pred_classes"):
            return score
        return f"{names[int(predictions.pred_classes[index])]} {score}"

    def _draw_rectangle(self, box, color, style="-", width: float = _BOX_WIDTH, zorder: int = 3):
        x0, y0, x1, y1 = corners = self._to_axes(box)
        self.output.ax.add_patch(
            Rectangle(
                (x0, y0),
                x1 - x0,
                y1 - y0,
                fill=False,
                edgecolor=color,
                linewidth=width,
                linestyle=style,
                zorder=zorder,
            )
        )
        self._occupied.append(self._to_display(corners))

    def _to_axes(self, box) -> np.ndarray:
        """A box in Matplotlib's coordinates, cut to the picture so that no edge lies outside."""
        width, height = self.output.width, self.output.height
        return np.clip(np.asarray(box) + _PIXEL_CENTER, 0, [width, height, width, height])

    def _to_display(self, box) -> np.ndarray:
        corners = self.output.ax.transData.transform(np.reshape(box, (2, 2)).astype(float))
        return np.concatenate([corners.min(axis=0), corners.max(axis=0)])


def prediction_masks(predictions: Instances) -> list[np.ndarray]:
    """The (H, W) bool masks of some detections; empty where they carry none."""
    if predictions.has("pred_masks"):
        masks = predictions.pred_masks
        return list(np.asarray(getattr(masks, "tensor", masks), dtype=bool))
    if predictions.has("pred_masks_rle"):
        return [mask_util.decode(rle).astype(bool) for rle in predictions.pred_masks_rle]
    return []


def contact_sheet(
    tiles: Sequence[np.ndarray],
    titles: Sequence[str],
    legend: Sequence[tuple],
    *,
    columns: int | None = None,
) -> np.ndarray:
    """Lay pictures out in rows, each under its title, with one legend below all.

    Args:
        tiles: H x W x 3 uint8 pictures; smaller ones are centred in the space of the largest.
        titles: one a picture, of up to two lines.
        legend: (text, color, line style or "fill") entries.
        columns: pictures in a row; about as many as rows by default.

    Returns:
        RGB uint8 picture.

    Raises:
        ValueError: no picture, or not one title each.
    """
    if not len(tiles) or len(tiles) != len(titles):
        raise ValueError(f"{len(tiles)} pictures and {len(titles)} titles, expected one each")
    columns = min(columns or math.ceil(math.sqrt(len(tiles))), len(tiles))
    rows = math.ceil(len(tiles) / columns)
    cell_h = max(tile.shape[0] for tile in tiles) + _TITLE_HEIGHT + _GAP
    cell_w = max(tile.shape[1] for tile in tiles) + _GAP
    width = columns * cell_w + _GAP
    legend_columns = max(1, min(len(legend), width // _LEGEND_WIDTH))
    height = rows * cell_h + _LEGEND_ROW * math.ceil(len(legend) / legend_columns) + _GAP
    fig = _figure(width, height)
    for i, (tile, title) in enumerate(zip(tiles, titles, strict=True)):
        row, column = divmod(i, columns)
        x, top = _GAP + column * cell_w, height - row * cell_h
        _draw_tile(fig, tile, title, x, top, cell_h, cell_w)
    fig.legend(
        handles=[_legend_handle(*entry) for entry in legend],
        loc="lower center",
        ncol=legend_columns,
        fontsize=_FONT_SIZE,
        labelcolor="white",
        frameon=False,
        borderaxespad=0.2,
    )
    fig.canvas.draw()
    return np.asarray(fig.canvas.buffer_rgba())[:, :, :3].copy()


def _draw_tile(fig: Figure, tile, title: str, x: int, top: int, cell_h: int, cell_w: int) -> None:
    """Put a picture and its title into a sheet's cell; ``top`` counts pixels from the bottom."""
    space_h, space_w = cell_h - _TITLE_HEIGHT - _GAP, cell_w - _GAP
    offset_x, offset_y = (space_w - tile.shape[1]) // 2, (space_h - tile.shape[0]) // 2
    fig.figimage(tile, x + offset_x, top - cell_h + _GAP + offset_y, origin="upper")
    width, height = fig.bbox.width, fig.bbox.height
    place = ((x + 2) / width, (top - _TITLE_HEIGHT / 2) / height)
    fig.text(*place, title, size=_FONT_SIZE, color="white", verticalalignment="center")


def _figure(width: int, height: int) -> Figure:
    # The small addition keeps matplotlib from losing a pixel to truncation.
    fig = Figure(((width + 1e-2) / _DPI, (height + 1e-2) / _DPI), dpi=_DPI, facecolor="black")
    FigureCanvasAgg(fig)
    return fig


def _legend_handle(text: str, color, style) -> mpl.artist.Artist:
    if style == "fill":
        return Rectangle((0, 0), 1, 1, facecolor=color, alpha=0.5, label=text)
    return Line2D([], [], color=color, linestyle=style, linewidth=_BOX_WIDTH, label=text)


def _select(predictions: Instances, indices: torch.Tensor) -> Instances:
    """``predictions[indices]``, also where a field is a list."""
    selected = Instances(predictions.image_size)
    for name, value in predictions.get_fields().items():
        selected.set(
            name, [value[i] for i in indices] if isinstance(value, list) else value[indices]
        )
    return selected


def _label_corners(box: np.ndarray, width: float, height: float) -> np.ndarray:
    """Lower left corners (8, 2) that a label may have around a box; display pixels, y up."""
    x0, y0, x1, y1 = box
    above = [(x0, y1), (x1 - width, y1)]
    below = [(x0, y0 - height), (x1 - width, y0 - height)]
    beside = [(x1, y1 - height), (x0 - width, y1 - height), (x1, y0), (x0 - width, y0)]
    return np.array([*above, *below, *beside])


def _overlap_area(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(np.maximum(sides, 0)))
