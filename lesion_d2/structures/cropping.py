"""Coordinates on a slice on disk and on the crop of it that an image shows.

With INPUT.CT.CROP_TO_BODY samples have ``crop``, (x0, y0, x1, y1) in whole pixels of the slice on
disk, ends exclusive: the part that ``image`` shows. Their ``height`` and ``width`` are the slice's.
"""

import numpy as np
from detectron2.structures import Boxes, Instances

Extent = tuple[int, int, int, int]


def crop_box(input_dict: dict, image_size: tuple[int, int]) -> Extent:
    """The part of the slice that an image shows.

    Args:
        input_dict: input of Detectron2's models, with ``crop``, with ``height`` and ``width``, or
            neither.
        image_size: height and width of the image, used if the dict has neither.

    Returns:
        x0, y0, x1, y1 in whole pixels of the slice on disk, ends exclusive.
    """
    height, width = input_dict.get("height", image_size[0]), input_dict.get("width", image_size[1])
    return tuple(input_dict.get("crop", (0, 0, width, height)))


def crop_size(input_dict: dict, image_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of :func:`crop_box`, that is before resizing."""
    x0, y0, x1, y1 = crop_box(input_dict, image_size)
    return y1 - y0, x1 - x0


def slice_to_image(points: np.ndarray, extent: Extent, image_size: tuple[int, int]) -> np.ndarray:
    """Map points on a slice to the image that was cropped and resized from it.

    Args:
        points: (n, 2) x, y in pixels of the slice; integers are pixel centers.
        extent: see :func:`crop_box`.
        image_size: height and width of the image.

    Returns:
        (n, 2) in pixels of the image; integers are pixel centers.
    """
    corner, scale = _corner_and_scale(extent, image_size)
    return (np.asarray(points) + 0.5 - corner) * scale - 0.5


def image_to_slice(points: np.ndarray, extent: Extent, image_size: tuple[int, int]) -> np.ndarray:
    """Map points on an image to the slice: the inverse of :func:`slice_to_image`."""
    corner, scale = _corner_and_scale(extent, image_size)
    return (np.asarray(points) + 0.5) / scale + corner - 0.5


def _corner_and_scale(extent: Extent, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    x0, y0, x1, y1 = extent
    height, width = image_size
    return np.array([x0, y0]), np.array([width / (x1 - x0), height / (y1 - y0)])


def paste_to_slice(instances: Instances, input_dict: dict) -> Instances:
    """Convert instances on a crop to instances on the slice.

    Args:
        instances: of size :func:`crop_size`, in pixels of the slice relative to the crop's corner;
            with ``pred_boxes`` and optionally ``pred_masks`` (n, height, width).
        input_dict: with ``crop``, ``height`` and ``width`` of the slice; without ``crop`` the
            instances are returned unchanged.

    Returns:
        Instances of the slice's size: boxes shifted, masks padded, other fields unchanged.
    """
    if "crop" not in input_dict:
        return instances
    x0, y0, x1, y1 = input_dict["crop"]
    placed = Instances((input_dict["height"], input_dict["width"]), **instances.get_fields())
    boxes = instances.pred_boxes.tensor
    placed.pred_boxes = Boxes(boxes + boxes.new_tensor([x0, y0, x0, y0]))
    if instances.has("pred_masks"):
        masks = instances.pred_masks.new_zeros(len(instances), *placed.image_size)
        masks[:, y0:y1, x0:x1] = instances.pred_masks
        placed.pred_masks = masks
    return placed
