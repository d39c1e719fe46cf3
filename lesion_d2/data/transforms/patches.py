"""Patches of images, for training on images that do not fit into memory."""

import math
from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform

#: Minimum share of a lesion's box inside a patch, or, for a box larger than the patch, of the
#: largest part that fits. A lesion with less is a region to ignore: neither lesion nor background.
MIN_SHARE = 0.5


class PatchTransform(Transform):
    """Crops a window that may extend beyond the image.

    Args:
        x0, y0: upper left pixel of the window; negative outside the image.
        width, height: of the window, in pixels.
        image_width, image_height: of the image.
        fill: value of pixels outside the image, in HU.
    """

    def __init__(
        self,
        x0: int,
        y0: int,
        width: int,
        height: int,
        image_width: int,
        image_height: int,
        fill: float = 0.0,
    ):
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Crop (H, W) or (H, W, C)."""
        return self._cut(img, self.fill)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Crop a mask or label map (H, W); 0 outside the image."""
        return self._cut(segmentation, 0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Shift points (n, 2) x, y."""
        return coords - (self.x0, self.y0)

    def inverse(self) -> Transform:
        """The transform back to the image; pixels outside the window are lost."""
        return PatchTransform(
            -self.x0,
            -self.y0,
            self.image_width,
            self.image_height,
            self.width,
            self.height,
            self.fill,
        )

    def _cut(self, img: np.ndarray, fill: float) -> np.ndarray:
        inside = img[
            max(self.y0, 0) : max(self.y0 + self.height, 0),
            max(self.x0, 0) : max(self.x0 + self.width, 0),
        ]
        if inside.shape[:2] == (self.height, self.width):
            return inside
        top, left = max(-self.y0, 0), max(-self.x0, 0)
        # Each channel is contiguous in memory, as in the mapper's images.
        cut = np.full((*img.shape[2:], self.height, self.width), fill, dtype=img.dtype)
        cut = np.moveaxis(cut, (-2, -1), (0, 1))
        cut[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return cut


class RandomPatch(T.Augmentation):
    """A random patch with foreground oversampling, optionally with an affine warp.

    With probability ``foreground_prob`` the patch contains one of the image's lesions, sampled
    uniformly: all of it if it fits, at any position in the patch. Otherwise the patch is sampled
    uniformly from the image. An image smaller than the patch is centered in it. (Jaeger et al.,
    sections 4.2 and 5.1, train on patches of 288 x 288 with "oversampling of foreground regions";
    the share of 0.5 is that of their code.)

    The warp is one of the whole image, of which only the patch is computed, so that its corners
    show the image. Warping a crop would fill them with ``fill``.

    Args:
        size: height and width of the patch, in pixels.
        foreground_prob: probability that the patch contains a lesion, for images with lesions.
        affine: the warp, a :class:`~lesion_d2.data.transforms.augmentation.RandomAffine`; None for
            none.
        fill: value of pixels outside the image, in HU.
    """

    def __init__(
        self,
        size: tuple[int, int],
        foreground_prob: float = 0.5,
        affine: T.Augmentation | None = None,
        fill: float = 0.0,
    ):
        super().__init__()
        if not (len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
            raise ValueError(
                f"INPUT.PATCH.SIZE: found {tuple(size)}, expected height and width in pixels, or "
                "(0, 0) for whole images"
            )
        if not 0 <= foreground_prob <= 1:
            raise ValueError(
                f"INPUT.PATCH.FOREGROUND_PROB: found {foreground_prob}, expected 0 to 1"
            )
        self._init(locals())

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        """Sample the patch of an image.

        Args:
            image: (H, W, C).
            boxes: (n, 4) XYXY of its lesions, in Detectron2's coordinates (pixel 0 is [0, 1]).
        """
        (height, width), (patch_height, patch_width) = image.shape[:2], self.size
        warp = None if self.affine is None else self.affine.get_transform(image)
        if warp is not None and len(boxes):
            boxes = warp.apply_box(boxes)
        boxes = boxes.clip(0, [width, height] * 2)
        boxes = boxes[(boxes[:, :2] < boxes[:, 2:]).all(axis=1)]
        box = None
        if len(boxes) and self._rand_range() < self.foreground_prob:
            box = boxes[np.random.randint(len(boxes))]
        x0 = draw_start(width, patch_width, None if box is None else box[0::2])
        y0 = draw_start(height, patch_height, None if box is None else box[1::2])
        if warp is None:
            return PatchTransform(x0, y0, patch_width, patch_height, width, height, self.fill)
        return warp.window(x0, y0, patch_width, patch_height)


def draw_start(side: int, patch_side: int, span: np.ndarray | None) -> int:
    """Sample the first pixel of a patch along one axis.

    Args:
        side: length of the image.
        patch_side: length of the patch.
        span: start and end of the part of the image that the patch has to contain; None for no
            constraint.
    """
    last = side - patch_side
    if last <= 0:
        return last // 2
    low, high = 0, last
    if span is not None:
        # Starts of patches that contain all of it, or, if it does not fit, nothing else.
        low, high = sorted((math.ceil(span[1]) - patch_side, math.floor(span[0])))
        low, high = max(low, 0), min(high, last)
    return int(np.random.randint(low, high + 1))


def shown_shares(whole: np.ndarray, cut: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Visible share of each box, relative to the largest part of it that fits into the image.

    Args:
        whole: (n, 4) XYXY or (n, 6) XYZXYZ.
        cut: the same boxes, clipped to the image.
        size: height and width of the image, or depth, height and width.

    Returns:
        (n,) from 0 to 1; 0 for boxes with an empty side.
    """
    dims = len(size)
    sides, shown = (boxes[:, dims:] - boxes[:, :dims] for boxes in (whole, cut))
    most = np.minimum(sides, size[::-1]).prod(axis=1)
    return np.divide(shown.prod(axis=1), most, out=np.zeros(len(most)), where=most > 0)
