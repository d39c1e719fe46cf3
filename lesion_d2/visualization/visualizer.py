"""Drawing on a slice, with Detectron2's ``Visualizer``."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import VisImage, Visualizer, random_color
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ..data.dict_rules import has_numbers
from ..ignore_regions import lesions_of, region_boxes
from .heat_map import HeatMap, heat_map_colors
from .outcome import ImageOutcome, prediction_masks, truth_boxes
from .sheet import BOX_WIDTH, FONT_SIZE

TRUTH_COLOR = (1.0, 0.9, 0.0)
HIT_COLOR = (0.1, 0.9, 0.2)
FALSE_POSITIVE_COLOR = (1.0, 0.2, 0.15)
RECIST_COLOR = (0.2, 0.85, 1.0)
MASK_COLOR = (1.0, 0.4, 0.9)
REFERENCE_COLOR = HIT_COLOR  # of lesions beside hard negatives and mined lesions
HIDDEN_COLOR = TRUTH_COLOR
REGION_COLOR = (0.65, 0.65, 0.65)  # of regions to ignore, dashed
MINED_COLOR = (0.35, 0.6, 1.0)
GRID_COLOR = MASK_COLOR

_DASHED = (0, (3, 1.5))
_DOTTED = (0, (1, 1))
_HIT_WIDTH = 2.6  # points; a detection stays visible under the thinner box of its lesion
_FOUND_WIDTH = 1.0
_LABEL_MARGIN = 4  # pixels around a label's letters
_PIXEL_CENTER = 0.5  # from a pixel's upper left corner, where Matplotlib's x and y are whole

TRUTH_LEGEND = [
    ("lesion", TRUTH_COLOR, "-"),
    ("RECIST diameters", RECIST_COLOR, "-"),
    ("mask", MASK_COLOR, "fill"),
]
REGION_LEGEND = [("region to ignore", REGION_COLOR, _DASHED)]
OUTCOME_LEGEND = [
    ("found lesion", TRUTH_COLOR, "-"),
    ("missed lesion", TRUTH_COLOR, _DASHED),
    ("hit (score)", HIT_COLOR, "-"),
    ("repeated hit", HIT_COLOR, _DOTTED),
    ("false positive (score)", FALSE_POSITIVE_COLOR, "-"),
]
NEGATIVE_LEGEND = [
    ("lesion", REFERENCE_COLOR, "-"),
    ("pseudo-mask", REFERENCE_COLOR, "fill"),
    ("hard negative (S1/S2)", FALSE_POSITIVE_COLOR, "-"),
    ("its predicted mask", FALSE_POSITIVE_COLOR, "fill"),
]
GRID_LEGEND = [("cells of the feature map", GRID_COLOR, "-")]
HIDDEN_LEGEND = [("hidden lesion", HIDDEN_COLOR, "--")]
MINED_LEGEND = [
    ("lesion", REFERENCE_COLOR, "-"),
    ("mined lesion (score)", MINED_COLOR, "-"),
]


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
        self._default_font_size = FONT_SIZE / scale
        self._pixels = self.img.astype(np.float64)  # with what was blended into them
        self.output.ax.images[0].remove()
        self._picture = self.output.fig.figimage(self.img, zorder=-1)
        self._show_pixels()
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
        self._show_pixels()

    def draw_dataset_dict(self, dic: dict, masks: Sequence[np.ndarray] = ()) -> VisImage:
        """Draw an image's lesions with their classes (of several), diameters in mm, and masks.

        Args:
            dic: the image's Detectron2 dict; lesions without ``recist`` get their box alone.
            masks: (H, W) bool arrays to overlay.
        """
        boxes, annotations = truth_boxes(dic), lesions_of(dic.get("annotations", []))
        for mask in masks:
            self.draw_soft_mask(np.asarray(mask, dtype=np.float32), MASK_COLOR, alpha=0.35)
        self.draw_truth_boxes(dic)
        for annotation in annotations:
            if "recist" in annotation:
                self.draw_recist(annotation["recist"])
        for box, annotation in zip(boxes, annotations, strict=True):
            label = lesion_label(annotation, self.metadata.get("thing_classes", ()))
            if label:
                self.draw_label(label, box, TRUTH_COLOR)
        return self.output

    def draw_truth_boxes(self, dic: dict, color=TRUTH_COLOR) -> VisImage:
        """Draw the boxes of an image's lesions alone, and regions to ignore gray and dashed."""
        self._draw_regions(dic)
        for box in truth_boxes(dic):
            self._draw_rectangle(box, color)
        return self.output

    def draw_heat_map(self, heat_map: HeatMap) -> VisImage:
        """Lay a heat map over the slice, which shows through.

        Raises:
            ValueError: the map has not one value a pixel of the slice.
        """
        height, width = self.output.height, self.output.width
        if heat_map.values.shape != (height, width):
            raise ValueError(
                f"heat map {heat_map.title!r} has shape {heat_map.values.shape}, expected the "
                f"slice's ({height}, {width})"
            )
        colors = heat_map_colors(heat_map.values, heat_map.low, heat_map.high)
        self._blend(colors[..., :3], colors[..., 3])
        return self.output

    def draw_soft_mask(self, soft_mask, color=None, *, text=None, alpha=0.5) -> VisImage:
        """Lay a color over a mask, as Detectron2's method does.

        Args:
            soft_mask: (H, W) in [0, 1].
            color: as Matplotlib takes it; a random one by default.
            text: written on the mask.
            alpha: opacity where the mask is 1.
        """
        color = random_color(rgb=True, maximum=1) if color is None else to_rgb(color)
        self._blend(np.asarray(color), alpha * soft_mask)
        if text is not None:
            lighter = self._change_color_brightness(color, brightness_factor=0.7)
            self._draw_text_in_mask((soft_mask > 0.5).astype(np.uint8), text, lighter)
        return self.output

    def _blend(self, colors: np.ndarray, opacity: np.ndarray) -> None:
        """Mix colors (..., 3) in 0..1 into the slice itself."""
        opacity = opacity[..., None]
        self._pixels = (1 - opacity) * self._pixels + opacity * 255 * colors
        self._show_pixels()

    def _show_pixels(self) -> None:
        """Show the part of the slice in view, enlarged here: Matplotlib may be one pixel off."""
        axes, (width, height) = self.output.ax, self.output.canvas.get_width_height()
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        columns = left + (np.arange(width) + 0.5) * (right - left) / width
        rows = top + (np.arange(height) + 0.5) * (bottom - top) / height
        pixels = self._pixels[np.ix_(rows.astype(int), columns.astype(int))]
        self._picture.set_data(np.rint(pixels).astype(np.uint8))

    def draw_grid(self, box: Sequence[float], rows: int, columns: int) -> VisImage:
        """Divide a box into equal cells.

        Args:
            box: XYXY in pixels.
            rows, columns: numbers of cells.
        """
        x0, y0, x1, y1 = np.asarray(box, dtype=float) + _PIXEL_CENTER
        lines = [([x, x], [y0, y1]) for x in np.linspace(x0, x1, columns + 1)]
        lines += [([x0, x1], [y, y]) for y in np.linspace(y0, y1, rows + 1)]
        for xs, ys in lines:
            self.output.ax.add_line(Line2D(xs, ys, color=GRID_COLOR, linewidth=0.7, zorder=2))
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
        score, and its mask where it has one; detections on a lesion already found, or in a region
        to ignore, dotted green.
        """
        predictions, gt_boxes = outcome.predictions, truth_boxes(outcome.record)
        boxes = predictions.pred_boxes.tensor.numpy()
        colors = [FALSE_POSITIVE_COLOR if fp else HIT_COLOR for fp in outcome.is_false_positive]
        for mask, color in zip(prediction_masks(predictions), colors, strict=False):
            self.draw_soft_mask(mask.astype(np.float32), color, alpha=0.3)
        self._draw_regions(outcome.record)
        for box, found in zip(gt_boxes, outcome.is_found, strict=True):
            style, width = ("-", _FOUND_WIDTH) if found else (_DASHED, 1.5 * BOX_WIDTH)
            self._draw_rectangle(box, TRUTH_COLOR, style, width, zorder=5)
        for i, (box, color) in enumerate(zip(boxes, colors, strict=True)):
            width = _HIT_WIDTH if outcome.is_hit[i] else BOX_WIDTH
            self._draw_rectangle(box, color, _DOTTED if outcome.is_repeat[i] else "-", width)
        for i in np.flatnonzero(~outcome.is_repeat):
            self.draw_label(self._score_label(predictions, i), boxes[i], colors[i])
        for box in gt_boxes[~outcome.is_found]:
            self.draw_label("missed", box, TRUTH_COLOR)
        return self.output

    def draw_negatives(
        self, dic: dict, negatives: Instances, masks: Sequence[np.ndarray] = ()
    ) -> VisImage:
        """Draw hard negatives red and the lesions green, as Fig. 3 of Tang et al.

        Lesions that are hidden from the training are dashed.

        Args:
            dic: the image's Detectron2 dict.
            negatives: ``pred_boxes``, ``scores`` (the paper's S1), ``lesion_ious`` (S2), which are
                the two numbers of a label, and ``pred_masks`` or ``pred_masks_rle``, if any.
            masks: (H, W) bool arrays of the lesions.
        """
        for mask in masks:
            self.draw_soft_mask(np.asarray(mask, dtype=np.float32), REFERENCE_COLOR, alpha=0.3)
        for mask in prediction_masks(negatives):
            self.draw_soft_mask(mask.astype(np.float32), FALSE_POSITIVE_COLOR, alpha=0.3)
        self.draw_truth_boxes(dic, REFERENCE_COLOR)
        self._draw_hidden(dic)
        boxes = negatives.pred_boxes.tensor.numpy()
        for box in boxes:
            self._draw_rectangle(box, FALSE_POSITIVE_COLOR)
        numbers = zip(negatives.scores.tolist(), negatives.lesion_ious.tolist(), strict=True)
        for box, (score, iou) in zip(boxes, numbers, strict=True):
            self.draw_label(f"{score:.2f}/{iou:.2f}", box, FALSE_POSITIVE_COLOR)
        return self.output

    def draw_mined(self, dic: dict, mined: Instances) -> VisImage:
        """Draw mined lesions blue with their scores and annotated ones green, as Fig. 3 of Bai et
        al.

        Lesions that are hidden from the training are yellow and dashed.

        Args:
            dic: the image's Detectron2 dict.
            mined: ``pred_boxes`` and ``scores``.
        """
        self.draw_truth_boxes(dic, REFERENCE_COLOR)
        boxes = mined.pred_boxes.tensor.numpy()
        for box in boxes:
            self._draw_rectangle(box, MINED_COLOR, width=_HIT_WIDTH)
        self._draw_hidden(dic)
        for box, score in zip(boxes, mined.scores.tolist(), strict=True):
            self.draw_label(f"{score:.2f}", box, MINED_COLOR)
        return self.output

    def _draw_regions(self, dic: dict) -> None:
        for box in region_boxes(dic):
            self._draw_rectangle(box, REGION_COLOR, _DASHED)

    def _draw_hidden(self, dic: dict) -> None:
        for box in truth_boxes(dic, "hidden_annotations"):
            self._draw_rectangle(box, HIDDEN_COLOR, "--", zorder=5)

    def draw_label(self, text: str, box: Sequence[float], color) -> VisImage:
        """Write a label at the outer corner of a box that covers least of what was drawn.

        A box beside the view gets none.

        Args:
            text: a few letters.
            box: XYXY in pixels.
            color: of the letters.
        """
        view, display_box = self.output.ax.bbox.extents, self._to_display(self._to_axes(box))
        if (display_box[2:] <= view[:2]).any() or (display_box[:2] >= view[2:]).any():
            return self.output
        artist = self.output.ax.text(
            0,
            0,
            text,
            size=FONT_SIZE,
            family="sans-serif",
            bbox={"facecolor": "black", "alpha": 0.75, "pad": 1.0, "edgecolor": "none"},
            verticalalignment="bottom",
            horizontalalignment="left",
            color=color,
            zorder=10,
        )
        extent = artist.get_window_extent(self.output.canvas.get_renderer())
        size = np.array([extent.width, extent.height]) + 2 * _LABEL_MARGIN
        corners = _label_corners(display_box, *size)
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

    def _draw_rectangle(self, box, color, style="-", width: float = BOX_WIDTH, zorder: int = 3):
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


def lesion_label(annotation: Mapping, classes: Sequence[str]) -> str:
    """An annotation's class, where there are several, and its diameters in mm, where known."""
    words = []
    category = annotation.get("category_id")
    if len(classes) > 1 and category in range(len(classes)):
        words.append(classes[category])
    if has_numbers(annotation, "diameters_mm"):
        words.append("{:.0f} x {:.0f} mm".format(*annotation["diameters_mm"]))
    return ", ".join(words)


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
