"""Masks of detections that are cut to their boxes."""

import torch


def whole_masks(detections, is_meant=None):
    """The whole masks (n, H, W) of all detections, or of some."""
    masks = torch.zeros(len(detections.masks), *detections.instances.image_size, dtype=torch.bool)
    for whole, mask in zip(masks, detections.masks, strict=True):
        whole[mask.window] = mask.pixels
    return masks if is_meant is None else masks[is_meant]
