"""Masks of regions in volumes."""

import torch
from torch import Tensor


def paste_masks_3d(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int, int], *, threshold: float = 0.5
) -> Tensor:
    """Paste masks of regions into volumes, as Detectron2's ``paste_masks_in_image`` into images.

    A mask's cells divide its box evenly along each axis. It is interpolated linearly between cell
    centers, and towards 0 outside of them.

    Example::

        masks = torch.ones(1, 10, 28, 28)
        boxes = torch.tensor([[2.5, 3.5, 0.5, 8.5, 9.5, 4.5]])
        paste_masks_3d(masks, boxes, (6, 12, 16)).sum()  # 4 slices of 6 x 6 pixels: 144

    Args:
        masks: (n, d, h, w), probabilities.
        boxes: (n, 6), x1, y1, z1, x2, y2, z2 in voxels; integers are voxel centers.
        image_size: depth, height and width of the volume.
        threshold: voxels with at least this probability and their center in the box belong to the
            mask.

    Returns:
        (n, D, H, W) bool.
    """
    pasted = torch.zeros(len(masks), *image_size, dtype=torch.bool, device=masks.device)
    size = boxes.new_tensor(image_size).flip(0)
    # The window of voxels with their centers in a box; the only synchronization with a GPU.
    first = boxes[:, :3].ceil().clamp(min=0).minimum(size)
    end = (boxes[:, 3:].floor() + 1).clamp(min=0).minimum(size)
    windows = torch.cat([first, end], dim=1).long().tolist()
    # Mixed precision would round voxel positions.
    with torch.autocast(masks.device.type, enabled=False):
        for mask, volume, box, window in zip(masks.float(), pasted, boxes, windows, strict=True):
            values, where = mask, []
            for axis, cells in zip((2, 1, 0), mask.shape, strict=True):  # z, y and x
                start, stop = window[axis], window[axis + 3]
                weights = _interpolation(box[axis], box[axis + 3], start, stop, cells)
                # Each resized axis moves to the end, so after three the order is as before.
                values = torch.tensordot(values, weights, dims=([0], [1]))
                where.append(slice(start, stop))
            volume[tuple(where)] = values >= threshold
    return pasted


def _interpolation(low: Tensor, high: Tensor, start: int, stop: int, cells: int) -> Tensor:
    """(stop - start, cells) interpolation weights of a box's cells for the voxels of a window."""
    voxels = torch.arange(start, max(start, stop), device=low.device, dtype=low.dtype)
    positions = (voxels - low) / (high - low) * cells - 0.5
    distance = positions[:, None] - torch.arange(cells, device=low.device, dtype=low.dtype)
    return (1 - distance.abs()).clamp(min=0)
