"""Patches of images, for training on images that are larger than memory likes."""

import math

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform

#: Share of its box that a patch has to show of a lesion, or of the most that it can show of a box
#: larger than itself; one of which it shows less is a region to ignore there: neither a lesion, nor
#: background.
MIN_SHARE = 0.5


class PatchTransform(Transform):
    """Cuts a window out of an image, which may reach beyond it.

    Args:
        x0, y0: upper left pixel of the window; below 0 beyond the image.
        width, height: of the window, in pixels.
        image_width, image_height: of the image.
        fill: value of pixels beyond the image, in HU.
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
        """Cut (H, W) or (H, W, C)."""
        return self._cut(img, self.fill)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Cut a mask or label map (H, W); 0 beyond the image."""
        return self._cut(segmentation, 0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Move points (n, 2) x, y."""
        return coords - (self.x0, self.y0)

    def inverse(self) -> Transform:
        """The image again, without what the window does not show."""
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
        # A channel is one piece of memory, as in the mapper's images.
        cut = np.full((*img.shape[2:], self.height, self.width), fill, dtype=img.dtype)
        cut = np.moveaxis(cut, (-2, -1), (0, 1))
        cut[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return cut


class RandomPatch(T.Augmentation):
    """A patch of the image, with or without an affine warp, and foreground oversampling.

    With a probability the patch shows one of the image's lesions, all alike: whole where it fits,
    and anywhere in the patch. Otherwise it is any patch, each with the same probability. An image
    smaller than the patch lies in its middle. (Jaeger et al., sections 4.2 and 5.1, train on
    patches of 288 x 288 with "oversampling of foreground regions"; the share of 0.5 is that of
    their code.)

    The warp is that of the whole image, of which no more than the patch is computed: its corners
    show what lies beside them in the image. A warp of what was cut out would fill them.

    Args:
        size: height and width of the patch, in pixels.
        foreground_prob: probability that a patch of an image with lesions is one with a lesion.
        affine: the warp, a :class:`~lesion_d2.data.transforms.augmentation.RandomAffine`; None for
            none.
        fill: value of pixels from outside the image, in HU.
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
        """Draw the patch of an image.

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
    """The first pixel of a patch along one axis.

    Args:
        side: of the image.
        patch_side: of the patch.
        span: start and end of what the patch has to show, in the image; None for anything.
    """
    last = side - patch_side
    if last <= 0:
        return last // 2
    low, high = 0, last
    if span is not None:
        # Starts of patches with all of it, or, where it does not fit, with nothing else.
        low, high = sorted((math.ceil(span[1]) - patch_side, math.floor(span[0])))
        low, high = max(low, 0), min(high, last)
    return int(np.random.randint(low, high + 1))
