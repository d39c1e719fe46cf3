"""Input of augmentations: slices in HU, which Detectron2's transforms do not fully support.

Detectron2's transforms are made for RGB images. They fill pixels outside the image with 0, which is
the HU of water, and resize only uint8 and floating point images.
"""

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform

#: HU outside a slice.
AIR = -1024
# Transforms of Detectron2 that interpolate, or extend beyond the image.
_INTERPOLATING = (T.ExtentTransform, T.ResizeTransform, T.RotationTransform)


class SliceInput(T.AugInput):
    """Detectron2's AugInput for images (H, W, C) int16 in HU.

    Args:
        image: see :func:`transform_slices`.
        boxes: (n, 4) XYXY in Detectron2's coordinates, for augmentations that use boxes.
        spacing: x, y, z in mm; None if unknown.
    """

    def __init__(
        self,
        image: np.ndarray,
        *,
        boxes: np.ndarray | None = None,
        spacing: tuple[float, float, float] | None = None,
    ):
        super().__init__(image, boxes=boxes)
        self.spacing = spacing

    def transform(self, tfm: Transform) -> None:
        """Transform image and boxes in place."""
        self.image = transform_slices(tfm, self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)


def transform_slices(transform: Transform, image: np.ndarray) -> np.ndarray:
    """Apply a transform to slices; pixels outside the image are air.

    Args:
        transform: a transform of Detectron2, or one for int16 images.
        image: (H, W, C) or (H, W), int16 in HU.

    Returns:
        (h, w, C) or (h, w), int16 in HU unless the transform returns another type.
    """
    if isinstance(transform, T.TransformList):
        for part in transform.transforms:
            image = transform_slices(part, image)
        return image
    if not isinstance(transform, _INTERPOLATING):
        return transform.apply_image(image)
    if image.ndim == 2:
        return transform_slices(transform, image[..., None])[..., 0]
    planes = [
        # One channel at a time: PIL supports one, and OpenCV at most four.
        transform.apply_image(np.ascontiguousarray(plane, np.float32) - AIR) + AIR
        for plane in image.transpose(2, 0, 1)
    ]
    limits = np.iinfo(np.int16)
    return np.rint(planes).clip(limits.min, limits.max).astype(np.int16).transpose(1, 2, 0)
