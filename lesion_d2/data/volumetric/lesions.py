"""Transforms lesions of a volume to a patch: boxes, classes and masks."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.structures import Instances
from pycocotools import mask as mask_util

from ...structures import BitMasks3D, Boxes3D
from ...structures.ignore_regions import IGNORED_CLASS, is_region, mark_regions
from ...structures.rle import decode_mask
from ..transforms.patches import MIN_SHARE, shown_shares
from .warp import VolumeWarp


def lesion_voxels(annotation: Mapping, shape: Sequence[int]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the mask of a lesion, cropped to its extent.

    Args:
        annotation: an annotation of a record
            (:func:`~lesion_d2.data.volumetric.records.volume_records`). Without ``segmentation``
            the mask is the ellipsoid in its box, or, for a region to ignore, the box: voxels whose
            center lies in it, at least one.
        shape: depth, height and width of the volume.

    Returns:
        (d, h, w) bool, without empty outermost slices, rows or columns; and z, y, x of its first
        voxel.
    """
    if "segmentation" in annotation:
        return _decoded(annotation["segmentation"])
    low, high = np.array(annotation["bbox"][:3][::-1]), np.array(annotation["bbox"][3:][::-1])
    center = ((low + high) / 2).clip(0, np.array(shape) - 1)
    firsts = np.ceil(low).astype(int).clip(0, np.array(shape) - 1)
    ends = (np.floor(high).astype(int) + 1).clip(firsts + 1, shape)
    if is_region(annotation):
        return np.ones(ends - firsts, bool), tuple(firsts.tolist())
    half = np.maximum((high - low) / 2, 1e-6)
    axes = [np.arange(a, b) for a, b in zip(firsts, ends, strict=True)]
    z, y, x = (((i - c) / h) ** 2 for i, c, h in zip(axes, center, half, strict=True))
    mask = z[:, None, None] + y[:, None] + x <= 1
    if not mask.any():
        return np.ones((1, 1, 1), bool), tuple(np.rint(center).astype(int).tolist())
    return _cropped(mask, firsts)


def _decoded(masks: Mapping[int, Mapping]) -> tuple[np.ndarray, tuple[int, ...]]:
    """The mask of RLEs by slice index."""
    first = min(masks)
    x1, y1, x2, y2 = _extent(masks.values())
    volume = np.zeros((max(masks) - first + 1, y2 - y1, x2 - x1), bool)
    for index, rle in masks.items():
        volume[index - first] = decode_mask(rle)[y1:y2, x1:x2]
    return _cropped(volume, (first, y1, x1))


def _extent(masks) -> tuple[int, int, int, int]:
    boxes = mask_util.toBbox(list(masks))
    boxes = boxes[(boxes[:, 2:] > 0).all(axis=1)]
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    return (*low.astype(int).tolist(), *high.astype(int).tolist())


def _cropped(mask: np.ndarray, start: Sequence[int]) -> tuple[np.ndarray, tuple[int, ...]]:
    firsts, ends = _mask_ranges(mask)
    cut = tuple(slice(a, b) for a, b in zip(firsts, ends, strict=True))
    return mask[cut], tuple(int(s) + a for s, a in zip(start, firsts, strict=True))


def _mask_ranges(mask: np.ndarray) -> tuple[list[int], list[int]]:
    """First voxel and end (exclusive) of a non-empty mask, along each axis."""
    planes = mask.any(axis=0)
    kept = [
        np.flatnonzero(mask.any(axis=(1, 2))),
        *map(np.flatnonzero, (planes.any(1), planes.any(0))),
    ]
    return [int(k[0]) for k in kept], [int(k[-1]) + 1 for k in kept]


def transform_volume_lesions(
    annotations: Sequence[Mapping],
    warp: VolumeWarp,
    shape: Sequence[int],
    *,
    with_masks: bool = False,
    min_share: float = MIN_SHARE,
) -> Instances:
    """Transform the lesions of a volume to a patch.

    A box is the extent of the lesion's warped mask, plus the margin of the annotated box around the
    mask in the volume (measured per lesion, axis and side; in DeepLesion 5 pixels in-plane). So
    boxes follow rotations and deformations, and without them equal the annotated ones.

    A lesion is kept if the patch contains at least
    :data:`~lesion_d2.data.transforms.patches.MIN_SHARE` of its box, or of the largest part of it
    that fits into the patch; otherwise it becomes a region to ignore. Regions to ignore are clipped
    to the patch.

    Args:
        annotations: annotations of a record
            (:func:`~lesion_d2.data.volumetric.records.volume_records`).
        warp: the transform from the volume to the patch.
        shape: depth, height and width of the volume.
        with_masks: whether the instances have ``gt_masks``.
        min_share: see above.

    Returns:
        Instances of the patch's (D, H, W) with ``gt_boxes`` Boxes3D, clipped to the patch, and
        ``gt_classes``; regions to ignore come first and have class -1, see
        :func:`~lesion_d2.structures.ignore_regions.mark_regions`.
    """
    boxes = np.array([a["bbox"] for a in annotations], float).reshape(-1, 6)
    moved = warp.apply_boxes(boxes)
    edges = np.tile(np.array(warp.size[::-1]) - 0.5, 2)
    shares = shown_shares(moved, moved.clip(-0.5, edges), warp.size)
    reached = warp.apply_boxes(boxes, corners=True) + warp.reach * np.repeat([-1, 1], 3)
    regions, lesions = [], []
    for annotation, share, reach in zip(annotations, shares, reached, strict=True):
        shown = _shown(annotation, warp, shape, reach)
        if shown is None:
            continue
        is_lesion = not is_region(annotation) and share >= min_share
        number = annotation["category_id"] if is_lesion else IGNORED_CLASS
        (lesions if is_lesion else regions).append((number, *shown))
    return _instances([*regions, *lesions], len(regions), warp.size, with_masks)


def _shown(
    annotation: Mapping, warp: VolumeWarp, shape: Sequence[int], reach: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[int]] | None:
    """The visible part of a lesion: box, mask in a window, first voxel of the window.

    None if nothing is visible. ``reach`` (6,) is a box that contains the lesion.
    """
    sides = np.array(warp.size)
    firsts = np.floor(reach[2::-1] - 1).astype(int).clip(0, sides)
    ends = np.ceil(reach[:2:-1] + 2).astype(int).clip(0, sides)
    if (firsts >= ends).any():
        return None
    mask, start = lesion_voxels(annotation, shape)
    shown = warp.window(firsts, ends - firsts).apply_mask(mask, start, shape)
    around = np.array([*start[::-1], *(np.array(start) + mask.shape)[::-1]]) - 0.5
    edges = sides[::-1] - 0.5
    if shown.any():
        low, high = (np.array(r) + firsts - 0.5 for r in _mask_ranges(shown))
        box = np.array(annotation["bbox"])
        before, past = warp.apply_margins(around[:3] - box[:3], box[3:] - around[3:])
        low, high = low[::-1] - before, high[::-1] + past
    else:  # smaller than half a voxel
        moved = warp.apply_boxes(np.array([annotation["bbox"]], float))[0]
        low, high = moved[:3], moved[3:]
    low, high = low.clip(-0.5, edges), high.clip(-0.5, edges)
    if (low >= high).any():
        return None
    return np.concatenate([low, high]), shown, firsts.tolist()


def _instances(
    found: Sequence[tuple], num_regions: int, size: tuple[int, int, int], with_masks: bool
) -> Instances:
    instances = Instances(size)
    boxes = np.array([box for _, box, _, _ in found], np.float32).reshape(-1, 6)
    instances.gt_boxes = Boxes3D(torch.from_numpy(boxes))
    instances.gt_classes = torch.tensor([number for number, *_ in found], dtype=torch.int64)
    if with_masks:
        masks = np.zeros((len(found), *size), bool)
        for out, (_, _, mask, firsts) in zip(masks, found, strict=True):
            cut = tuple(slice(a, a + n) for a, n in zip(firsts, mask.shape, strict=True))
            out[cut] = mask
        instances.gt_masks = BitMasks3D(torch.from_numpy(masks))
    mark_regions(instances, num_regions)
    return instances
