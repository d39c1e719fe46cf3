"""Views of one image, and what a model finds in them in pixels of the slice."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..cropping import put_back, shown_size

#: Along x, along y: the image, and its three mirrored views.
MIRRORS = ((False, False), (True, False), (False, True), (True, True))
_UNMIRRORED = MIRRORS[:1]
# Of the patch center factor's normal distribution, as a share of the tile's side. The paper leaves
# it open; its published code has 0.8 of half the side (and the mean of both axes' densities, where
# we take that of the plane, their product).
_SIGMA = 0.4


@dataclass(frozen=True)
class Tile:
    """A part of a model's input, in its whole pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def slices(self) -> tuple:
        """The index of the tile in an array (..., H, W)."""
        return (
            ...,
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )

    def contains(self, centers: Tensor) -> Tensor:
        """Whether the pixel areas of the tile contain points (n, 2) x, y; (n,) bool."""
        start = centers.new_tensor([self.left, self.top]) - 0.5  # whole numbers are pixel centers
        size = centers.new_tensor([self.width, self.height])
        return ((centers >= start) & (centers < start + size)).all(dim=1)

    def center_weights(self, centers: Tensor) -> Tensor:
        """The density of a normal distribution around the tile's center, relative to its peak.

        Jaeger et al., section 3.2, "patch center factor".
        """
        size = centers.new_tensor([self.width, self.height])
        middle = centers.new_tensor([self.left, self.top]) + (size - 1) / 2
        return torch.exp(-(((centers - middle) / (_SIGMA * size)) ** 2).sum(dim=1) / 2)


def make_tiles(size: tuple[int, int], tile_size: int, overlap: float) -> list[Tile]:
    """Cut an image into tiles that cover it, evenly spaced from edge to edge.

    Args:
        size: height and width of the image in pixels.
        tile_size: side of the tiles; along a shorter side of the image they are as long as that.
            0 for one tile, the image.
        overlap: share of ``tile_size`` by which a tile overlaps the next one, at least.
    """
    rows, columns = (_intervals(side, tile_size, overlap) for side in size)
    return [Tile(left, top, width, height) for top, height in rows for left, width in columns]


def _intervals(side: int, tile_size: int, overlap: float) -> list[tuple[int, int]]:
    """Start and length of the tiles along one side."""
    if tile_size <= 0 or side <= tile_size:
        return [(0, side)]
    step = max(1, tile_size - math.ceil(overlap * tile_size))
    num_steps = math.ceil((side - tile_size) / step)
    return [(i * (side - tile_size) // num_steps, tile_size) for i in range(num_steps + 1)]


@dataclass(frozen=True, eq=False)
class CutMask:
    """A mask of a slice, kept as the part with its pixels: of hundreds of masks, they are few."""

    window: tuple[slice, slice]
    pixels: Tensor  # bool, of the window

    def moved(self, left: int, top: int) -> "CutMask":
        """The same pixels, so many pixels further to the right and down."""
        rows, columns = self.window
        return CutMask((_moved(rows, top), _moved(columns, left)), self.pixels)


def _moved(window: slice, start: int) -> slice:
    return slice(window.start + start, window.stop + start)


def cut_masks(masks: Tensor) -> list[CutMask]:
    """Keep of masks (n, H, W) the parts with their pixels."""
    # On a CPU ten times as fast as any().
    hits = (masks.view(torch.uint8).amax(dim=axis) for axis in (2, 1))
    (tops, bottoms), (lefts, rights) = map(_ends, hits)
    sides = zip(tops, bottoms, lefts, rights, strict=True)
    windows = [(slice(y1, y2), slice(x1, x2)) for y1, y2, x1, x2 in sides]
    return [CutMask(w, mask[w].clone()) for w, mask in zip(windows, masks, strict=True)]


def _ends(hits: Tensor) -> tuple[list[int], list[int]]:
    """First and last + 1 of the ones in each row; where there are none, they enclose nothing."""
    side = hits.shape[1]
    steps = torch.arange(1, side + 1, device=hits.device)
    firsts = side - (hits * steps.flip(0)).amax(dim=1)
    return firsts.tolist(), (hits * steps).amax(dim=1).tolist()


@dataclass(frozen=True, eq=False)
class ViewDetections:
    """The N detections of all views of one image, in pixels of the slice.

    Attributes:
        instances: ``pred_boxes``, ``scores`` and ``pred_classes``.
        masks: N of the slice, or None where the models give none.
        view_ids: (N,) int, the view that each comes from.
        num_views: (N,) int, the views that see the detection's center.
        center_weights: (N,) in (0, 1], lower the farther the detection is from its tile's center.
    """

    instances: Instances
    masks: list[CutMask] | None
    view_ids: Tensor
    num_views: Tensor
    center_weights: Tensor


def detect_in_views(
    models: Sequence[Callable[[list[dict]], list[dict]]],
    input_dict: dict,
    *,
    mirrors: bool,
    tile_size: int,
    tile_overlap: float,
) -> ViewDetections:
    """Run models on the views of one image: models x tiles x mirrors, in this order.

    The mirrored views of a tile are one batch.

    Args:
        models: as Detectron2's, in evaluation mode.
        input_dict: ``image`` (C, H, W), optionally ``height`` and ``width`` of the slice, and
            ``crop``, the part of it that ``image`` shows.
        mirrors: four mirrored views in place of one.
        tile_size, tile_overlap: see :func:`make_tiles`; pixels of ``image``.
    """
    image = input_dict["image"]
    input_size = tuple(image.shape[-2:])
    size = shown_size(input_dict, input_size)
    flips = MIRRORS if mirrors else _UNMIRRORED
    tiles = make_tiles(input_size, tile_size, tile_overlap)
    views = list(_views(models, input_dict, tiles, flips, size))
    instances, masks = Instances.cat(views), None
    if instances.has("pred_masks"):
        masks = instances.get("pred_masks")
        instances.remove("pred_masks")

    counts = [len(view) for view in views]
    device = instances.scores.device
    view_ids = torch.arange(len(views)).repeat_interleave(torch.tensor(counts)).to(device)
    centers = _input_centers(instances.pred_boxes.tensor, input_size, size)
    num_views = sum(tile.contains(centers).int() for tile in tiles) * (len(models) * len(flips))
    center_weights = torch.ones_like(centers[:, 0])  # scores may be of half precision
    if len(tiles) > 1:
        tile_ids = view_ids // len(flips) % len(tiles)
        for i, tile in enumerate(tiles):
            center_weights[tile_ids == i] = tile.center_weights(centers[tile_ids == i])
    instances = put_back(instances, input_dict)
    if masks is not None and "crop" in input_dict:
        left, top = input_dict["crop"][:2]
        masks = [mask.moved(left, top) for mask in masks]
    return ViewDetections(instances, masks, view_ids, num_views, center_weights)


def _views(
    models: Sequence[Callable],
    input_dict: dict,
    tiles: list[Tile],
    flips: tuple[tuple[bool, bool], ...],
    size: tuple[int, int],
) -> Iterator[Instances]:
    """What is found in each view, on what the image shows of the slice.

    Args:
        size: of that, height and width in pixels of the slice.

    Yields:
        With ``pred_masks`` as lists of :class:`CutMask`.
    """
    image = input_dict["image"]
    input_size = tuple(image.shape[-2:])
    is_whole = len(tiles) == 1
    for model, tile in itertools.product(models, tiles):
        height, width = size if is_whole else (tile.height, tile.width)
        view = {**input_dict, "height": height, "width": width}
        view.pop("crop", None)  # put back once, for all views
        batch = [{**view, "image": _flip(image[tile.slices], flip)} for flip in flips]
        for output, flip in zip(model(batch), flips, strict=True):
            found = _unmirror(output["instances"], flip)
            if not is_whole:
                found = _put_back(found, tile, input_size, size)
            if found.has("pred_masks"):
                found.pred_masks = cut_masks(found.pred_masks)
            yield found


def _flip(array: Tensor, flip: tuple[bool, bool]) -> Tensor:
    axes = [axis for axis, is_flipped in zip((-1, -2), flip, strict=True) if is_flipped]
    return array.flip(axes) if axes else array


def _unmirror(found: Instances, flip: tuple[bool, bool]) -> Instances:
    """What was found in a mirrored view, on the image as it was; only the fields that count."""
    boxes = found.pred_boxes.tensor.clone()
    height, width = found.image_size
    for axis, (side, is_flipped) in enumerate(zip((width, height), flip, strict=True)):
        if is_flipped:
            boxes[:, [axis, axis + 2]] = side - 1 - boxes[:, [axis + 2, axis]]
    fields = {"scores": found.scores, "pred_classes": found.pred_classes}
    if found.has("pred_masks"):
        fields["pred_masks"] = _flip(found.pred_masks, flip)
    return Instances(found.image_size, pred_boxes=Boxes(boxes), **fields)


def _put_back(
    found: Instances, tile: Tile, input_size: tuple[int, int], size: tuple[int, int]
) -> Instances:
    """Bring what was found in a tile, in its pixels, to the slice."""
    boxes = found.pred_boxes.tensor
    scale = boxes.new_tensor([size[1] / input_size[1], size[0] / input_size[0]] * 2)
    offset = boxes.new_tensor([tile.left, tile.top] * 2)
    placed = Instances(size, scores=found.scores, pred_classes=found.pred_classes)
    placed.pred_boxes = Boxes((boxes + offset + 0.5) * scale - 0.5)
    if found.has("pred_masks"):
        masks = found.pred_masks.new_zeros(len(found), *input_size)
        masks[tile.slices] = found.pred_masks
        placed.pred_masks = masks if input_size == size else _resize_masks(masks, size)
    return placed


def _resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    resized = masks.new_zeros(len(masks), *size)
    for mask, out in zip(masks, resized, strict=True):  # one at a time, as float they are large
        out[:] = F.interpolate(mask[None, None].float(), size, mode="bilinear")[0, 0] > 0.5
    return resized


def _input_centers(boxes: Tensor, input_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Centers (n, 2) x, y of boxes on the slice, in pixels of the input, inside of it."""
    scale = boxes.new_tensor([input_size[1] / size[1], input_size[0] / size[0]])
    centers = ((boxes[:, :2] + boxes[:, 2:]) / 2 + 0.5) * scale - 0.5
    last = boxes.new_tensor([input_size[1] - 1, input_size[0] - 1])
    return centers.clamp(min=torch.zeros_like(last), max=last)
