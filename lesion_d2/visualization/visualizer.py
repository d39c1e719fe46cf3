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
from ..structures.ignore_regions import lesions_of, region_boxes
from ..utils.figures import OKABE_ITO
from .heat_map import HeatMap, heat_map_colors
from .outcome import NO_FINDINGS, ImageOutcome, prediction_masks, truth_boxes
from .sheet import BOX_WIDTH, FONT_SIZE, OUTLINE_WIDTH, outlined

# Colors of Okabe and Ito, which color-blind readers can distinguish. Colors of different outcomes
# also have different line styles.
TRUTH_COLOR = to_rgb(OKABE_ITO["yellow"])
HIT_COLOR = to_rgb(OKABE_ITO["sky blue"])
FALSE_POSITIVE_COLOR = to_rgb(OKABE_ITO["vermilion"])
RECIST_COLOR = (1.0, 1.0, 1.0)
MASK_COLOR = to_rgb(OKABE_ITO["orange"])
HIDDEN_COLOR = to_rgb(OKABE_ITO["orange"])
REGION_COLOR = (0.65, 0.65, 0.65)
PSEUDO_LABEL_COLOR = to_rgb(OKABE_ITO["sky blue"])
GRID_COLOR = to_rgb(OKABE_ITO["purple"])

NO_LESIONS = "no lesions"

_DASHED = (0, (3, 1.5))
_DOTTED = (0, (1, 1))
_DASH_DOTTED = (0, (5, 1.2, 1.2, 1.2))
_LONG_DASHED = (0, (7, 1.2))
_HIT_WIDTH = 2.6  # points; a detection stays visible under the thinner box of its lesion
_ERROR_WIDTH = 2.0
_FOUND_WIDTH = 1.0
_LABEL_MARGIN = 4  # pixels around a label's letters
_MARK_MARGIN = 8  # pixels between the picture's border and the marks in its corners
_PIXEL_CENTER = 0.5  # from a pixel's upper left corner, where Matplotlib's x and y are whole
_BOX = {
    "facecolor": "black",
    "alpha": 0.75,
    "pad": 1.0,
    "edgecolor": "none",
    "linewidth": 0.8,
}  # around text
_BAR_LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200)  # mm
_MAX_BAR_SHARE = 0.3  # of the width of the view

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
    ("false positive (score)", FALSE_POSITIVE_COLOR, _DASH_DOTTED),
]
NEGATIVE_LEGEND = [
    ("lesion", TRUTH_COLOR, "-"),
    ("pseudo-mask", TRUTH_COLOR, "fill"),
    ("hard negative (S1/S2)", FALSE_POSITIVE_COLOR, _DASH_DOTTED),
    ("its predicted mask", FALSE_POSITIVE_COLOR, "fill"),
]
GRID_LEGEND = [("cells of the feature map", GRID_COLOR, "-")]
HIDDEN_LEGEND = [("hidden lesion", HIDDEN_COLOR, _DASHED)]
PSEUDO_LABEL_LEGEND = [
    ("lesion", TRUTH_COLOR, "-"),
    ("pseudo-label (score)", PSEUDO_LABEL_COLOR, _LONG_DASHED),
]


class LesionVisualizer(Visualizer):
    """Draws lesions, RECIST diameters, masks and detections on a CT slice.

    Small images are enlarged by an integer factor; lines and text keep their size in the picture. A
    label is placed at an outer corner of its box, where it covers as little as possible. Lines and
    text have a black outline or background, so that they can be read on any gray.

    Coordinates are those of pixel centers: x = 12 is the center of column 12, as in
    :mod:`lesion_d2.data.pseudo_masks`.

    Example:
        >>> marks = slice_marks(record)
        >>> visualizer = LesionVisualizer(window_image(record), side=1024, **marks)
        >>> visualizer.draw_outcome(match_outcome(record, instances, score_threshold=0.3))
        >>> save_picture(visualizer.get_output().get_image(), "slice.png")
    """

    def __init__(
        self,
        img_rgb,
        metadata=None,
        *,
        side: int = 1024,
        pixel_spacing: float | None = None,
        window: tuple[float, float] | None = None,
    ) -> None:
        """
        Args:
            img_rgb: H x W x 3, RGB, 0..255.
            metadata: the data set's ``MetadataCatalog`` entry.
            side: minimum length of the picture's longer side in pixels.
            pixel_spacing: mm between columns, for a scale bar in the lower right corner; None
                draws none.
            window: (low, high) in HU that are black and white, written in the lower left corner;
                None writes none.
        """
        scale = max(1, math.ceil(side / max(np.shape(img_rgb)[:2])))
        super().__init__(img_rgb, metadata, scale=scale)
        self._default_font_size = FONT_SIZE / scale
        self._pixels = self.img.astype(np.float64)  # with what was blended into them
        self.output.ax.images[0].remove()
        self._picture = self.output.fig.figimage(self.img, zorder=-1)
        self._show_pixels()
        self._occupied: list[np.ndarray] = []  # display pixels, x0 y0 x1 y1
        self._pixel_spacing, self._window = pixel_spacing, window
        self._marks: list = []
        self._draw_marks()

    def zoom(self, boxes: np.ndarray, *, min_side: float = 96.0) -> None:
        """Show only the part of the image around some boxes. Call it before drawing.

        Args:
            boxes: (N, 4) XYXY in pixels; if there are none, the view does not change.
            min_side: minimum length of the view's shorter side, in pixels of the image.
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
        self._draw_marks()

    def _draw_marks(self) -> None:
        """Draw the scale bar and the window for the part of the slice in view."""
        for mark in self._marks:
            mark.remove()
        self._marks, self._occupied = [], []
        axes, (width, height) = self.output.ax, self.output.canvas.get_width_height()
        y = _MARK_MARGIN / height
        text = {"size": FONT_SIZE, "color": "white", "zorder": 9, "transform": axes.transAxes}
        text |= {"path_effects": outlined(2.5), "va": "bottom"}
        if self._window is not None:
            words = "{:g} to {:g} HU".format(*self._window)
            self._marks.append(axes.text(_MARK_MARGIN / width, y, words, ha="left", **text))
        left, right = axes.get_xlim()
        length = bar_length((right - left) * (self._pixel_spacing or 0))
        if length:
            x1 = 1 - _MARK_MARGIN / width
            x0 = x1 - length / (self._pixel_spacing * (right - left))
            bar = Line2D([x0, x1], [y, y], color="white", linewidth=2, solid_capstyle="butt")
            bar.set(transform=axes.transAxes, zorder=9, path_effects=outlined(4))
            axes.add_line(bar)
            above = y + 5 / height
            label = axes.text((x0 + x1) / 2, above, f"{length} mm", ha="center", **text)
            self._marks += [bar, label]
        renderer = self.output.canvas.get_renderer()
        self._occupied += [mark.get_window_extent(renderer).extents for mark in self._marks]

    def draw_dataset_dict(self, dic: dict, masks: Sequence[np.ndarray] = ()) -> VisImage:
        """Draw an image's lesions, their diameters in mm, their masks, and classes if several.

        On an image without lesions, "no lesions" is written.

        Args:
            dic: the image's Detectron2 dict; of lesions without ``recist`` only the box is drawn.
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
        if not annotations and not len(masks):
            self.draw_note(NO_LESIONS)
        return self.output

    def draw_truth_boxes(self, dic: dict) -> VisImage:
        """Draw the boxes of an image's lesions, and regions to ignore in dashed gray."""
        self._draw_regions(dic)
        for box in truth_boxes(dic):
            self._draw_rectangle(box, TRUTH_COLOR)
        return self.output

    def draw_heat_map(self, heat_map: HeatMap) -> VisImage:
        """Blend a heat map into the slice.

        Raises:
            ValueError: the map is not of the slice's size.
        """
        height, width = self.output.height, self.output.width
        if heat_map.values.shape != (height, width):
            raise ValueError(
                f"heat map {heat_map.title!r}: found shape {heat_map.values.shape}, expected the "
                f"slice's ({height}, {width})"
            )
        colors = heat_map_colors(heat_map.values, heat_map.low, heat_map.high)
        self._blend(colors[..., :3], colors[..., 3])
        return self.output

    def draw_soft_mask(self, soft_mask, color=None, *, text=None, alpha=0.5) -> VisImage:
        """Blend a color into the slice where a mask is, as Detectron2's method does.

        Args:
            soft_mask: (H, W) in [0, 1].
            color: any Matplotlib color; random by default.
            text: drawn on the mask.
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
        """Enlarge the part of the slice in view; Matplotlib's own resampling may be a pixel off."""
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
        """Draw the long and the short diameter, which usually cross.

        Args:
            recist: x11, y11, x12, y12 (long), x21, y21, x22, y22 (short), pixels.
        """
        for x1, y1, x2, y2 in np.asarray(recist, dtype=float).reshape(2, 4) + _PIXEL_CENTER:
            line = Line2D([x1, x2], [y1, y2], color=RECIST_COLOR, linewidth=1.0, zorder=4)
            line.set_path_effects(outlined(2.2))
            self.output.ax.add_line(line)
        return self.output

    def draw_outcome(self, outcome: ImageOutcome) -> VisImage:
        """Draw truth and detections of an image.

        Lesions are yellow, with dashes if missed. Hits are sky blue, false positives vermilion with
        dashes and dots; both have a score, and a mask if there is one. Detections of a lesion that
        was found already, or in a region to ignore, are sky blue and dotted. On an image without
        lesions and detections, "no findings" is written.
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
            style = _DOTTED if outcome.is_repeat[i] else "-"
            if outcome.is_false_positive[i]:
                width, style = _ERROR_WIDTH, _DASH_DOTTED
            self._draw_rectangle(box, color, style, width)
        for i in np.flatnonzero(~outcome.is_repeat):
            self.draw_label(self._score_label(predictions, i), boxes[i], colors[i])
        for box in gt_boxes[~outcome.is_found]:
            self.draw_label("missed", box, TRUTH_COLOR)
        if not len(boxes) and not len(gt_boxes):
            self.draw_note(NO_FINDINGS)
        return self.output

    def draw_note(self, text: str) -> VisImage:
        """Write a short text in the middle of the upper border."""
        y = 1 - _MARK_MARGIN / self.output.canvas.get_width_height()[1]
        place = {"transform": self.output.ax.transAxes, "ha": "center", "va": "top", "zorder": 10}
        self.output.ax.text(0.5, y, text, size=FONT_SIZE + 2, color="white", bbox=_BOX, **place)
        return self.output

    def draw_negatives(
        self, dic: dict, negatives: Instances, masks: Sequence[np.ndarray] = ()
    ) -> VisImage:
        """Draw hard negatives and lesions, as Fig. 3 of Tang et al.

        Lesions are yellow, those with hidden annotations orange and dashed; hard negatives are
        vermilion with dashes and dots.

        Args:
            dic: the image's Detectron2 dict.
            negatives: ``pred_boxes``, ``scores`` (the paper's S1), ``lesion_ious`` (S2), which are
                the two numbers of a label, and ``pred_masks`` or ``pred_masks_rle``, if any.
            masks: (H, W) bool arrays of the lesions.
        """
        for mask in masks:
            self.draw_soft_mask(np.asarray(mask, dtype=np.float32), TRUTH_COLOR, alpha=0.3)
        for mask in prediction_masks(negatives):
            self.draw_soft_mask(mask.astype(np.float32), FALSE_POSITIVE_COLOR, alpha=0.3)
        self.draw_truth_boxes(dic)
        self._draw_hidden(dic)
        boxes = negatives.pred_boxes.tensor.numpy()
        for box in boxes:
            self._draw_rectangle(box, FALSE_POSITIVE_COLOR, _DASH_DOTTED, _ERROR_WIDTH)
        numbers = zip(negatives.scores.tolist(), negatives.lesion_ious.tolist(), strict=True)
        for box, (score, iou) in zip(boxes, numbers, strict=True):
            self.draw_label(f"{score:.2f}/{iou:.2f}", box, FALSE_POSITIVE_COLOR)
        return self.output

    def draw_pseudo_labels(self, dic: dict, pseudo_labels: Instances) -> VisImage:
        """Draw pseudo-labels and annotated lesions, as Fig. 3 of Bai et al.

        Annotated lesions are yellow, those with hidden annotations orange and dashed; pseudo-labels
        are sky blue with long dashes and have a score.

        Args:
            dic: the image's Detectron2 dict.
            pseudo_labels: ``pred_boxes`` and ``scores``.
        """
        self.draw_truth_boxes(dic)
        boxes = pseudo_labels.pred_boxes.tensor.numpy()
        for box in boxes:
            self._draw_rectangle(box, PSEUDO_LABEL_COLOR, _LONG_DASHED, _HIT_WIDTH)
        self._draw_hidden(dic)
        for box, score in zip(boxes, pseudo_labels.scores.tolist(), strict=True):
            self.draw_label(f"{score:.2f}", box, PSEUDO_LABEL_COLOR)
        return self.output

    def _draw_regions(self, dic: dict) -> None:
        for box in region_boxes(dic):
            self._draw_rectangle(box, REGION_COLOR, _DASHED)

    def _draw_hidden(self, dic: dict) -> None:
        for box in truth_boxes(dic, "hidden_annotations"):
            self._draw_rectangle(box, HIDDEN_COLOR, _DASHED, zorder=5)

    def draw_label(self, text: str, box: Sequence[float], color) -> VisImage:
        """Write a label at the outer corner of a box where it covers the least drawn content.

        A box outside the view gets none.

        Args:
            text: a few letters.
            box: XYXY in pixels.
            color: of the frame.
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
            bbox={**_BOX, "edgecolor": color},
            verticalalignment="bottom",
            horizontalalignment="left",
            color="white",
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
        place, looks = ((x0, y0), x1 - x0, y1 - y0), {"fill": False, "edgecolor": color}
        # The outline is below all lines: boxes that coincide keep both of their colors.
        outline = {"fill": False, "edgecolor": "black", "linewidth": width + OUTLINE_WIDTH}
        self.output.ax.add_patch(Rectangle(*place, alpha=0.6, zorder=2, **outline))
        looks |= {"linewidth": width, "linestyle": style, "zorder": zorder}
        self.output.ax.add_patch(Rectangle(*place, **looks))
        self._occupied.append(self._to_display(corners))

    def _to_axes(self, box) -> np.ndarray:
        """A box in Matplotlib's coordinates, clipped so that all edges are in the picture."""
        width, height = self.output.width, self.output.height
        return np.clip(np.asarray(box) + _PIXEL_CENTER, 0, [width, height, width, height])

    def _to_display(self, box) -> np.ndarray:
        corners = self.output.ax.transData.transform(np.reshape(box, (2, 2)).astype(float))
        return np.concatenate([corners.min(axis=0), corners.max(axis=0)])


def slice_marks(record: Mapping, window: tuple[float, float] | None = None) -> dict[str, object]:
    """The marks that a :class:`LesionVisualizer` draws in the corners of a slice.

    Args:
        record: the image's Detectron2 dict; without ``spacing`` there is no scale bar.
        window: of :func:`~lesion_d2.visualization.window_image`.

    Returns:
        Its arguments ``pixel_spacing`` and ``window``.
    """
    spacing = record.get("spacing")
    return {
        "pixel_spacing": None if spacing is None else float(spacing[0]),
        "window": window or record.get("window"),
    }


def bar_length(width: float) -> int:
    """Length of a scale bar in mm, for a view of some mm: a round number; 0 where none fits."""
    return max((mm for mm in _BAR_LENGTHS if mm <= _MAX_BAR_SHARE * width), default=0)


def lesion_label(annotation: Mapping, classes: Sequence[str]) -> str:
    """An annotation's class, if there are several, and its diameters in mm, if known."""
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
