"""Views of an image, and their detections in pixels of the slice."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..structures.cropping import crop_size, paste_to_slice
from .cut_masks import CutMask, cut_masks
from .tiles import Mirror, Tile, flip, input_centers, make_tiles, mirrors_of, unmirror


@dataclass(frozen=True, eq=False)
class ViewDetections:
    """N detections from all views of one image or volume, in its pixels or voxels.

    Attributes:
        instances: ``pred_boxes``, ``scores`` and ``pred_classes``.
        masks: N masks of the slice or volume, or None if the models predict none.
        view_ids: (N,) int, the view of each detection.
        num_views: (N,) int, number of views that contain the detection's center.
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
        models: Detectron2 models in evaluation mode.
        input_dict: ``image`` (C, H, W), optionally ``height`` and ``width`` of the slice, and
            ``crop``, the part of it that ``image`` shows.
        mirrors: use four mirrored views instead of one.
        tile_size, tile_overlap: see :func:`make_tiles`; pixels of ``image``.
    """
    image = input_dict["image"]
    input_size = tuple(image.shape[-2:])
    size = crop_size(input_dict, input_size)
    flips = mirrors_of(2, mirrors=mirrors)
    tiles = make_tiles(input_size, tile_size, tile_overlap)
    views = list(_views(models, input_dict, tiles, flips, size))
    tile_ids = [tile for _, tile, _ in itertools.product(models, range(len(tiles)), flips)]
    found = gather_views(
        views, tile_ids, tiles, num_views=len(models) * len(flips), sizes=(input_size, size)
    )
    masks = found.masks
    if masks is not None and "crop" in input_dict:
        left, top = input_dict["crop"][:2]
        masks = [mask.moved(left, top) for mask in masks]
    instances = paste_to_slice(found.instances, input_dict)
    return replace(found, instances=instances, masks=masks)


def gather_views(
    views: Sequence[Instances],
    tile_ids: Sequence[int],
    tiles: Sequence[Tile],
    *,
    num_views: int,
    sizes: tuple[tuple[int, ...], tuple[int, ...]],
) -> ViewDetections:
    """Collect the detections of all views, with the values needed by clustering.

    Args:
        views: detections of each view; ``pred_masks`` are lists of :class:`CutMask`.
        tile_ids: index of each view's tile.
        tiles: tiles of the model's input.
        num_views: number of views per tile.
        sizes: size of the model's input, and of the image that the boxes are on, in the order of an
            array's axes.
    """
    instances, masks = Instances.cat(views), None
    if instances.has("pred_masks"):
        masks = instances.get("pred_masks")
        instances.remove("pred_masks")
    counts = torch.tensor([len(view) for view in views])
    device = instances.scores.device
    view_ids = torch.arange(len(views)).repeat_interleave(counts).to(device)
    centers = input_centers(instances.pred_boxes.tensor, *sizes)
    seen_by = sum(tile.contains(centers).int() for tile in tiles) * num_views
    center_weights = torch.ones_like(centers[:, 0])  # scores may have half precision
    if len(tiles) > 1:
        own_tiles = torch.tensor(tile_ids).repeat_interleave(counts).to(device)
        for i, tile in enumerate(tiles):
            is_here = own_tiles == i
            center_weights[is_here] = tile.center_weights(centers[is_here])
    return ViewDetections(instances, masks, view_ids, seen_by, center_weights)


def _views(
    models: Sequence[Callable],
    input_dict: dict,
    tiles: list[Tile],
    flips: Sequence[Mirror],
    size: tuple[int, int],
) -> Iterator[Instances]:
    """Detections in each view, relative to the part of the slice that the image shows.

    Args:
        size: height and width of that part, in pixels of the slice.

    Yields:
        Instances with ``pred_masks`` as lists of :class:`CutMask`.
    """
    image = input_dict["image"]
    input_size = tuple(image.shape[-2:])
    is_whole = len(tiles) == 1
    for model, tile in itertools.product(models, tiles):
        height, width = size if is_whole else tile.size
        view = {**input_dict, "height": height, "width": width}
        view.pop("crop", None)  # applied once, for all views
        batch = [{**view, "image": flip(image[tile.slices], mirror)} for mirror in flips]
        for output, mirror in zip(model(batch), flips, strict=True):
            found = unmirror(output["instances"], mirror)
            if not is_whole:
                found = _put_back(found, tile, input_size, size)
            if found.has("pred_masks"):
                found.pred_masks = cut_masks(found.pred_masks)
            yield found


def _put_back(
    found: Instances, tile: Tile, input_size: tuple[int, int], size: tuple[int, int]
) -> Instances:
    """Map detections from pixels of a tile to the slice."""
    boxes = found.pred_boxes.tensor
    scale = boxes.new_tensor([size[1] / input_size[1], size[0] / input_size[0]] * 2)
    offset = boxes.new_tensor(tile.start[::-1] * 2)
    placed = Instances(size, scores=found.scores, pred_classes=found.pred_classes)
    placed.pred_boxes = Boxes((boxes + offset + 0.5) * scale - 0.5)
    if found.has("pred_masks"):
        masks = found.pred_masks.new_zeros(len(found), *input_size)
        masks[tile.slices] = found.pred_masks
        placed.pred_masks = masks if input_size == size else _resize_masks(masks, size)
    return placed


def _resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    resized = masks.new_zeros(len(masks), *size)
    for mask, out in zip(masks, resized, strict=True):  # one at a time, as floats are large
        out[:] = F.interpolate(mask[None, None].float(), size, mode="bilinear")[0, 0] > 0.5
    return resized
