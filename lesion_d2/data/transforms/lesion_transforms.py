"""Applies the augmentations of a slice to its annotations."""

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances

from ...structures.boxes import xyxy_box
from ...structures.ignore_regions import IGNORED_CLASS, is_region, mark_regions
from ..pseudo_masks import ellipse_outline, lesion_ends
from .patches import shown_shares


def lesion_outline(annotation: dict) -> np.ndarray:
    """The outline of a lesion's RECIST quarter ellipses, stretched to fill its annotated box.

    Without diameters (a mined negative) it is the ellipse inscribed in the box. Flips and resizes
    thus keep the box exactly, and a rotated box does not grow to the extent of its empty corners. A
    region to ignore is the whole box, corners included.

    Args:
        annotation: with ``bbox``, ``bbox_mode`` and, optionally, ``recist`` and ``iscrowd``.

    Returns:
        (n, 2) points x, y in pixels; their extent is the box.
    """
    x1, y1, x2, y2 = xyxy_box(annotation)
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    if is_region(annotation):
        return corners
    outline = ellipse_outline(lesion_ends(annotation))
    low, high = outline.min(axis=0), outline.max(axis=0)
    if (high - low).min() <= 0:  # all end points on a line along an axis: only the box is left
        return corners
    return (x1, y1) + (outline - low) / (high - low) * (x2 - x1, y2 - y1)


def transform_lesions(
    annotations: list[dict],
    masks: list[np.ndarray] | None,
    transforms: T.Transform,
    image_size: tuple[int, int],
    *,
    min_share: float | None = None,
) -> Instances:
    """Transform lesions from the slice on disk to the augmented image.

    In the data set's dicts integers are pixel centers, starting at 0 (the reader converts files
    with other conventions), while Detectron2's transforms have pixel centers at i + 0.5. So points
    are shifted before and after: a flipped box matches its flipped mask, and two flips cancel out.

    Lesions whose box center lies outside the image are dropped; regions to ignore are clipped to
    the image. With ``min_share``, a lesion is kept if at least this share of its box is in the
    image, and otherwise becomes a region to ignore: patches often cut lesions, and the visible part
    is not background.

    Args:
        annotations: with ``bbox``, ``bbox_mode``, ``category_id`` and, optionally, ``recist`` and
            ``iscrowd``.
        masks: one (H, W) per annotation, or None for no ``gt_masks``.
        transforms: the transforms that were applied to the image.
        image_size: height and width of the augmented image.
        min_share: minimum share (above 0) of the box's area, or of the largest part of it that fits
            into an image of this size; None to use the box's center.

    Returns:
        Instances with ``gt_boxes`` clipped to the image (the outer edges of its pixels: -0.5 and
        size - 0.5), ``gt_classes`` and, with masks, ``gt_masks``; regions to ignore come first,
        with class -1, see :func:`~lesion_d2.structures.ignore_regions.mark_regions`.
    """
    height, width = image_size
    outlines = [transforms.apply_coords(lesion_outline(a) + 0.5) - 0.5 for a in annotations]
    boxes = np.array([[*o.min(axis=0), *o.max(axis=0)] for o in outlines]).reshape(-1, 4)
    center_x, center_y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    kept = (center_x > -0.5) & (center_x < width - 0.5)
    kept &= (center_y > -0.5) & (center_y < height - 0.5)
    whole, boxes = boxes, boxes.clip(-0.5, np.array([width, height] * 2) - 0.5)
    ignored = np.array([is_region(a) for a in annotations], dtype=bool)
    if min_share is not None:
        kept = shown_shares(whole, boxes, image_size) >= min_share
        ignored |= ~kept
    shown = ignored & (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    kept = np.concatenate([np.flatnonzero(shown), np.flatnonzero(kept & ~ignored)])

    instances = Instances(tuple(image_size))
    instances.gt_boxes = Boxes(torch.from_numpy(boxes[kept].astype(np.float32)))
    instances.gt_classes = torch.tensor(
        [IGNORED_CLASS if ignored[i] else annotations[i]["category_id"] for i in kept],
        dtype=torch.int64,
    )
    if masks is not None:
        warped = np.zeros((len(kept), height, width), dtype=bool)
        for out, i in zip(warped, kept, strict=True):
            mask = np.asarray(masks[i], dtype=bool).view(np.uint8)
            # Detectron2 pads label maps with 255, which its losses ignore.
            out[:] = transforms.apply_segmentation(mask) == 1
        instances.gt_masks = BitMasks(torch.from_numpy(warped))
    mark_regions(instances, int(shown.sum()))
    return instances
