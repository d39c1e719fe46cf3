"""Tiles of images and volumes, and their mirrored views, along any number of axes."""

import itertools
import math
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

# Standard deviation of the patch center factor, as a fraction of the tile's side. The paper does
# not specify it; its published code uses 0.8 of half the side (and the mean of the axes' densities,
# where we use their product, the density in 2-D or 3-D).
_SIGMA = 0.4

#: Whether a view is mirrored along x, along y (and along z).
Mirror = tuple[bool, ...]


@dataclass(frozen=True)
class Tile:
    """A part of a model's input, in whole pixels or voxels.

    Attributes:
        start: first row and column, or first slice, row and column (the order of an array's axes).
        size: sides, in the same order.
    """

    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def slices(self) -> tuple:
        """The index of the tile in an array (..., H, W) or (..., D, H, W)."""
        sides = zip(self.start, self.size, strict=True)
        return (..., *(slice(start, start + length) for start, length in sides))

    def contains(self, centers: Tensor) -> Tensor:
        """(n,) bool, whether points (n, 2) x, y or (n, 3) x, y, z lie in the tile's pixel areas."""
        start = centers.new_tensor(self.start[::-1]) - 0.5  # integers are pixel centers
        size = centers.new_tensor(self.size[::-1])
        return ((centers >= start) & (centers < start + size)).all(dim=1)

    def center_weights(self, centers: Tensor) -> Tensor:
        """Density of a normal distribution around the tile's center, relative to its peak.

        Jaeger et al., section 3.2, "patch center factor".
        """
        size = centers.new_tensor(self.size[::-1])
        middle = centers.new_tensor(self.start[::-1]) + (size - 1) / 2
        return torch.exp(-(((centers - middle) / (_SIGMA * size)) ** 2).sum(dim=1) / 2)


def make_tiles(
    size: tuple[int, ...], tile_size: int | tuple[int, ...], overlap: float
) -> list[Tile]:
    """Cut an image or volume into evenly spaced tiles that cover it.

    Args:
        size: (H, W) or (D, H, W) in pixels or voxels.
        tile_size: sides of the tiles, or one number for all sides; limited to the image's sides. 0
            for one tile along that side.
        overlap: minimum overlap of neighboring tiles, as a fraction of their side.

    Returns:
        Tiles; the last axis varies fastest.
    """
    sides = tile_size if isinstance(tile_size, tuple) else (tile_size,) * len(size)
    intervals = (_intervals(*each, overlap) for each in zip(size, sides, strict=True))
    return [Tile(*zip(*each, strict=True)) for each in itertools.product(*intervals)]


def _intervals(side: int, tile_size: int, overlap: float) -> list[tuple[int, int]]:
    """Start and length of the tiles along one side."""
    if tile_size <= 0 or side <= tile_size:
        return [(0, side)]
    step = max(1, tile_size - math.ceil(overlap * tile_size))
    num_steps = math.ceil((side - tile_size) / step)
    return [(i * (side - tile_size) // num_steps, tile_size) for i in range(num_steps + 1)]


def mirrors_of(num_axes: int, *, mirrors: bool = True) -> tuple[Mirror, ...]:
    """The mirrored views of a tile: four of an image, eight of a volume, or only the original.

    Returns:
        The original, mirrored along x, along y, along both, and the same mirrored along z.
    """
    if not mirrors:
        return ((False,) * num_axes,)
    return tuple(mirror[::-1] for mirror in itertools.product((False, True), repeat=num_axes))


def flip(array: Tensor, mirror: Mirror) -> Tensor:
    """Mirror an array (..., H, W) or (..., D, H, W)."""
    axes = [-1 - axis for axis, is_flipped in enumerate(mirror) if is_flipped]
    return array.flip(axes) if axes else array


def unmirror(found: Instances, mirror: Mirror) -> Instances:
    """Map detections in a mirrored view to the original tile; drops other fields."""
    boxes = found.pred_boxes.tensor.clone()
    num_axes = len(mirror)
    for axis, (side, is_flipped) in enumerate(zip(found.image_size[::-1], mirror, strict=True)):
        if is_flipped:
            boxes[:, [axis, axis + num_axes]] = side - 1 - boxes[:, [axis + num_axes, axis]]
    fields = {"scores": found.scores, "pred_classes": found.pred_classes}
    if found.has("pred_masks"):
        fields["pred_masks"] = flip(found.pred_masks, mirror)
    return Instances(found.image_size, pred_boxes=type(found.pred_boxes)(boxes), **fields)


def input_centers(boxes: Tensor, input_size: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Centers (n, 2) x, y or (n, 3) x, y, z of boxes in pixels of the input, clipped to it.

    Args:
        boxes: (n, 4) or (n, 6) on the image before it was resized to the input.
        input_size: (H, W) or (D, H, W).
        size: size of the image that the boxes are on.
    """
    num_axes = len(size)
    scale = boxes.new_tensor([a / b for a, b in zip(input_size, size, strict=True)][::-1])
    centers = ((boxes[:, :num_axes] + boxes[:, num_axes:]) / 2 + 0.5) * scale - 0.5
    last = boxes.new_tensor(input_size[::-1]) - 1
    return centers.clamp(min=torch.zeros_like(last), max=last)
