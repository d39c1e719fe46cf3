"""Annotations of a slice on disk, brought to an augmented image of it."""

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances

from ...structures.boxes import xyxy_box
from ...structures.ignore_regions import IGNORED_CLASS, is_region, mark_regions
from ..pseudo_masks import ellipse_outline, lesion_ends


def lesion_outline(annotation: dict) -> np.ndarray:
    """The outline of a lesion's RECIST quarter ellipses, stretched to fill its annotated box.

    Without diameters (a mined negative) it is the ellipse inscribed in the box. Either way flips
    and resizes keep the box exactly, and a rotation does not grow it to the extent of its corners,
    where there is no lesion. A region to ignore reaches into its corners.

    Args:
        annotation: with ``bbox``, ``bbox_mode``, and ``recist`` and ``iscrowd`` where they are.

    Returns:
        (n, 2) points x, y in pixels, whose extent is the box.
    """
    x1, y1, x2, y2 = xyxy_box(annotation)
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    if is_region(annotation):
        return corners
    outline = ellipse_outline(lesion_ends(annotation))
    low, high = outline.min(axis=0), outline.max(axis=0)
    if (high - low).min() <= 0:  # end points on one line along an axis: the box is all there is
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
    """Bring lesions from the slice on disk to the augmented image.

    In the data set's dicts whole numbers are pixel centers, from 0 on (its reader took care of
    files that count otherwise), while Detectron2's transforms have those at i + 0.5. So points are
    moved there and back: a flipped box lies on its flipped mask, and flipped twice it is the same.

    Lesions whose box's center left the image are dropped; of regions to ignore, what the image
    shows of them stays. With ``min_share`` a lesion is kept where the image shows so much of its
    box, and is a region to ignore where it shows less: a patch often cuts a lesion, and what it
    shows of it is no background.

    Args:
        annotations: with ``bbox``, ``bbox_mode`` and ``category_id``, and ``recist`` and
            ``iscrowd`` where there is one.
        masks: one (H, W) an annotation, or None for no ``gt_masks``.
        transforms: what was applied to the image.
        image_size: height and width of the augmented image.
        min_share: above 0, of the box's area, or of the most that an image of this size can show
            of it; None to go by the box's center.

    Returns:
        Instances with ``gt_boxes`` cut at the image's border (the outer edges of its pixels: -0.5
        and size - 0.5), ``gt_classes`` and, with masks, ``gt_masks``; regions to ignore, the first
        ones, have class -1, see :func:`~lesion_d2.structures.ignore_regions.mark_regions`.
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
        kept = _shown_shares(whole, boxes, image_size) >= min_share
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
            out[:] = transforms.apply_segmentation(np.asarray(masks[i], dtype=np.uint8))
        instances.gt_masks = BitMasks(torch.from_numpy(warped))
    mark_regions(instances, int(shown.sum()))
    return instances


def _shown_shares(whole: np.ndarray, cut: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """(n,) what an image shows of boxes (n, 4), as a share of the most that it can show of each."""
    sides, shown = (boxes[:, 2:] - boxes[:, :2] for boxes in (whole, cut))
    most = np.minimum(sides, image_size[::-1]).prod(axis=1)
    return np.divide(shown.prod(axis=1), most, out=np.zeros(len(most)), where=most > 0)
