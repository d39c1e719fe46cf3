"""Detections and ground-truth objects of all images as arrays, and their overlaps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from .detections import ImageDetections


@dataclass(frozen=True, eq=False)
class Objects:
    """N detections, or N ground-truth objects."""

    images: np.ndarray  # N, index of the image
    categories: np.ndarray  # N, the data set's category ids
    boxes: np.ndarray  # N x 4, x, y, width and height in pixels
    areas: np.ndarray  # N, of the masks if there are any
    masks: np.ndarray | None  # N in COCO's RLE, if masks are evaluated

    def rows(self, chosen: np.ndarray) -> Self:
        """Select by indices or by a mask (N,)."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: v[chosen] for k, v in arrays.items() if v is not None})

    def by_image(self, num_images: int) -> np.ndarray:
        """(I,) number in each image."""
        return np.bincount(self.images, minlength=num_images)


@dataclass(frozen=True, eq=False)
class Found(Objects):
    """N detections."""

    scores: np.ndarray  # N

    @classmethod
    def of(
        cls,
        detections: Mapping[object, ImageDetections],
        indices: Mapping[object, int],
        masks: bool,
    ) -> "Found":
        """The detections in the images that have an index.

        Args:
            detections: image id -> detections, with category ids.
            indices: image id -> index.
            masks: whether masks are evaluated.

        Raises:
            ValueError: masks are missing; the message names the image.
        """
        kept = [(image, d) for image, d in detections.items() if image in indices and len(d)]
        rles = None
        if masks:
            for image_id, found in kept:
                if found.masks is None:
                    raise ValueError(
                        f"image {image_id!r}: found detections without masks, expected masks"
                    )
            rles = np.array([rle for _, found in kept for rle in found.masks], dtype=object)
        nothing = ImageDetections.empty()
        boxes, scores, categories = (
            np.concatenate([getattr(d, name) for d in (nothing, *(d for _, d in kept))])
            for name in ("boxes", "scores", "categories")
        )
        images = [np.full(len(found), indices[image_id]) for image_id, found in kept]
        images = np.concatenate([np.empty(0, dtype=int), *images])
        areas = boxes[:, 2] * boxes[:, 3] if rles is None else mask_areas(rles)
        return cls(images, categories, boxes, areas, rles, scores)


@dataclass(frozen=True, eq=False)
class Truth(Objects):
    """N ground-truth objects."""

    is_crowd: np.ndarray  # N, regions to ignore

    @classmethod
    def of(cls, truth: COCO, indices: Mapping[object, int], masks: bool) -> "Truth":
        """The objects in the images that have an index; arguments as for :meth:`Found.of`."""
        annotations = truth.dataset.get("annotations", ())  # missing if there is no object
        kept = [a for a in annotations if a["image_id"] in indices]
        rles = np.array([truth.annToRLE(a) for a in kept], dtype=object) if masks else None
        return cls(
            images=np.array([indices[a["image_id"]] for a in kept], dtype=int),
            categories=np.array([a["category_id"] for a in kept], dtype=int),
            boxes=np.array([a["bbox"] for a in kept], dtype=float).reshape(-1, 4),
            areas=np.array([a["area"] for a in kept], dtype=float),
            masks=rles,
            is_crowd=np.array([a["iscrowd"] for a in kept], dtype=bool),
        )


def mask_areas(rles: np.ndarray) -> np.ndarray:
    """(N,) areas in pixels of N masks in COCO's RLE."""
    return np.asarray(coco_mask.area(list(rles)), dtype=float).reshape(len(rles))


def overlaps_between(found: Found, truth: Truth) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """COCO's overlap of pairs: IoU, or for a crowd the intersection over the detection.

    Returns:
        A function from (P,) detections and (P,) objects to (P,) overlaps, for
        :func:`~lesion_d2.evaluation.matching.reaching_pairs`.
    """
    compare = _overlaps_of_boxes if truth.masks is None else _overlaps_of_masks
    return lambda detections, objects: compare(found, truth, detections, objects)


def _overlaps_of_boxes(
    found: Found, truth: Truth, detections: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    # The order of pycocotools' operations, for identical rounding.
    boxes, gt_boxes = found.boxes[detections].T, truth.boxes[objects].T
    (x, y, width, height), (gt_x, gt_y, gt_width, gt_height) = boxes, gt_boxes
    shared_x = np.minimum(width + x, gt_width + gt_x) - np.maximum(x, gt_x)
    shared_y = np.minimum(height + y, gt_height + gt_y) - np.maximum(y, gt_y)
    area, shared = width * height, shared_x * shared_y
    whole = np.where(truth.is_crowd[objects], area, area + gt_width * gt_height - shared)
    overlaps = np.zeros(len(objects))
    return np.divide(shared, whole, out=overlaps, where=(shared_x > 0) & (shared_y > 0))


def _overlaps_of_masks(
    found: Found, truth: Truth, detections: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    overlaps = np.empty(len(objects))
    bounds = np.flatnonzero(np.diff(truth.images[objects])) + 1
    for rows in np.split(np.arange(len(objects)), bounds):
        own, gt = np.unique(detections[rows]), np.unique(objects[rows])
        table = coco_mask.iou(list(found.masks[own]), list(truth.masks[gt]), truth.is_crowd[gt])
        overlaps[rows] = table.ravel()
    return overlaps
