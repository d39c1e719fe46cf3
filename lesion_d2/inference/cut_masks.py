"""Masks of images and volumes, cropped to their pixels to save memory."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class CutMask:
    """A mask of a slice or volume, cropped to its pixels."""

    window: tuple[slice, ...]  # position of the crop, in the order of the array's axes
    pixels: Tensor  # bool, the crop

    def moved(self, *offset: int) -> "CutMask":
        """The mask shifted by an offset in x, y (and z)."""
        window = zip(self.window, offset[::-1], strict=True)
        return CutMask(tuple(_moved(side, start) for side, start in window), self.pixels)

    def resized(self, input_size: Sequence[int], size: Sequence[int]) -> "CutMask":
        """Resize the mask with linear interpolation and a threshold of 0.5.

        Args:
            input_size: size of the array that the mask is for.
            size: size of the array to resize to.
        """
        if tuple(input_size) == tuple(size) or self.pixels.numel() == 0:
            return self
        points, window = [], []
        for side, length, new_length in zip(self.window, input_size, size, strict=True):
            scale = length / new_length
            # Pixels whose centers are within one input pixel of the window.
            first = max(0, int((side.start - 0.5) / scale - 0.5))
            last = min(new_length, int((side.stop + 0.5) / scale - 0.5) + 2)
            window.append(slice(first, last))
            centers = (torch.arange(first, last) + 0.5) * scale - 0.5
            # Edge pixels of the array are replicated; elsewhere the mask ends.
            centers = centers.clamp(0, length - 1) - side.start
            # Coordinates for grid_sample: -1 to 1 between the window's edges.
            points.append((2 * centers + 1) / (side.stop - side.start) - 1)
        grid = torch.stack(torch.meshgrid(*points, indexing="ij")[::-1], dim=-1)
        grid = grid[None].to(self.pixels.device)
        sampled = F.grid_sample(self.pixels[None, None].float(), grid, align_corners=False)
        return CutMask(tuple(window), sampled[0, 0] > 0.5)


def _moved(window: slice, start: int) -> slice:
    return slice(window.start + start, window.stop + start)


def cut_masks(masks: Tensor) -> list[CutMask]:
    """Crop masks (n, H, W) or (n, D, H, W) to their pixels."""
    num_axes = masks.ndim - 1
    # Ten times as fast as any() on a CPU.
    pixels = masks.view(torch.uint8)
    hits = (
        pixels.amax(dim=[other for other in range(1, num_axes + 1) if other != axis])
        for axis in range(1, num_axes + 1)
    )
    # One synchronization with the device for all axes.
    ends = torch.stack([end for hit in hits for end in _ends(hit)], dim=1).tolist()
    windows = [tuple(itertools.starmap(slice, zip(e[::2], e[1::2], strict=True))) for e in ends]
    return [CutMask(w, mask[w].clone()) for w, mask in zip(windows, masks, strict=True)]


def _ends(hits: Tensor) -> tuple[Tensor, Tensor]:
    """First and last + 1 index of the ones in each row; an empty range if there are none."""
    side = hits.shape[1]
    steps = torch.arange(1, side + 1, device=hits.device)
    return side - (hits * steps.flip(0)).amax(dim=1), (hits * steps).amax(dim=1)


def vote(masks: Sequence[CutMask], weights: Sequence[float]) -> CutMask:
    """The pixels where the weighted sum of masks exceeds 0.5.

    Args:
        masks: one or more masks of one image or volume.
        weights: one per mask.
    """
    counted = [pair for pair in zip(masks, weights, strict=True) if pair[0].pixels.numel() > 0]
    if not counted:
        return masks[0]
    axes = zip(*(mask.window for mask, _ in counted), strict=True)
    window = tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides)) for sides in axes
    )
    shape = [side.stop - side.start for side in window]
    share = torch.zeros(shape, device=masks[0].pixels.device)
    for mask, weight in counted:
        inner = zip(mask.window, window, strict=True)
        place = tuple(_moved(side, -whole.start) for side, whole in inner)
        share[place].add_(mask.pixels, alpha=weight)
    return CutMask(window, share > 0.5)
