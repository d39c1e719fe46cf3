"""What augmentations are applied to: a slice in HU, which Detectron2's own transforms do not take.

Detectron2's are made for RGB images. They fill what lies outside of an image with 0, which is the
HU of water, and resize uint8 and floating point images alone.
"""

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform

#: HU of what lies outside of a slice.
AIR = -1024
# Of Detectron2's own, those that compute pixels between pixels, or outside of the image.
_INTERPOLATING = (T.ExtentTransform, T.ResizeTransform, T.RotationTransform)


class SliceInput(T.AugInput):
    """Detectron2's input of augmentations, for images (H, W, C) int16 in HU.

    Args:
        image: see :func:`transform_slices`.
        boxes: (n, 4) XYXY that augmentations may ask for, in Detectron2's coordinates.
        spacing: of the image's pixels and slices, x, y, z in mm; None where nobody knows.
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
    """Apply a transform to slices; where Detectron2's own needs values from outside, they are air.

    Args:
        transform: Detectron2's, or one for int16 images.
        image: (H, W, C) int16 in HU.

    Returns:
        (h, w, C): int16 in HU, where the transform gives no other type.
    """
    if isinstance(transform, T.TransformList):
        for part in transform.transforms:
            image = transform_slices(part, image)
        return image
    if not isinstance(transform, _INTERPOLATING):
        return transform.apply_image(image)
    planes = [
        # One at a time: PIL takes no more, and OpenCV no more than four.
        transform.apply_image(np.ascontiguousarray(plane, np.float32) - AIR) + AIR
        for plane in image.transpose(2, 0, 1)
    ]
    limits = np.iinfo(np.int16)
    return np.rint(planes).clip(limits.min, limits.max).astype(np.int16).transpose(1, 2, 0)
