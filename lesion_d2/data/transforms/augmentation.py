"""Augmentations for CT slices as Detectron2 augmentations: images are int16 H x W x C in HU."""

from collections.abc import Callable

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform

from ...utils.values import MAX_SIDE
from .patches import RandomPatch

_SIGN_BIT = np.uint16(0x8000)


class AffineTransform(Transform):
    """Warps images, masks and points by one 2 x 3 matrix.

    Points are in Detectron2's coordinates, where pixel i covers [i, i + 1] and has its center at
    i + 0.5.

    Args:
        matrix: (2, 3), maps input to output points (x, y).
        height, width: of the output, in pixels.
        fill: value in HU of output pixels that lie outside the input image; None to repeat the
            input's outermost pixels.
    """

    def __init__(self, matrix: np.ndarray, height: int, width: int, fill: float | None = 0.0):
        super().__init__()
        self.matrix = np.asarray(matrix, dtype=np.float64)
        self.height, self.width, self.fill = height, width, fill

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Warp (H, W) or (H, W, C) with linear interpolation."""
        return self._warp(img, cv2.INTER_LINEAR, self.fill)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Warp a mask or label map (H, W), nearest-neighbor; 0 outside the input."""
        return self._warp(segmentation, cv2.INTER_NEAREST, 0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Map points (n, 2) x, y."""
        return coords @ self.matrix[:, :2].T + self.matrix[:, 2]

    def inverse(self) -> Transform:
        """The inverse transform, from this one's output to its input."""
        matrix = cv2.invertAffineTransform(self.matrix)
        return AffineTransform(matrix, self.height, self.width, self.fill)

    def window(self, x0: int, y0: int, width: int, height: int) -> "AffineTransform":
        """The same warp, computed only for a window of the output.

        Args:
            x0, y0: upper left pixel of the window, in the output; it may reach beyond.
            width, height: of the window.
        """
        matrix = self.matrix - [[0, 0, x0], [0, 0, y0]]
        return AffineTransform(matrix, height, width, self.fill)

    def _warp(self, img: np.ndarray, interpolation: int, fill: float | None) -> np.ndarray:
        # OpenCV's points are pixel centers: shift by half a pixel on either side.
        matrix = self.matrix.copy()
        matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
        is_signed = img.dtype == np.int16

        def warp(channel: np.ndarray, out: np.ndarray) -> None:
            # For int16 images OpenCV rounds coordinates to 1/32 pixel; for uint16 it does not, and
            # is faster. v as int16 and v + 32768 as uint16 differ in the highest bit only.
            if is_signed:
                channel = np.bitwise_xor(channel.view(np.uint16), _SIGN_BIT, order="C")
                out = out.view(np.uint16)
            cv2.warpAffine(
                np.ascontiguousarray(channel),
                matrix,
                (self.width, self.height),
                dst=out,
                flags=interpolation,
                borderMode=cv2.BORDER_REPLICATE if fill is None else cv2.BORDER_CONSTANT,
                borderValue=0 if fill is None else fill + int(_SIGN_BIT) * is_signed,
            )
            if is_signed:
                np.bitwise_xor(out, _SIGN_BIT, out=out)

        return _by_channel(img, (self.height, self.width), warp)


class ResizeTransform(Transform):
    """Resizes int16 images, which Detectron2's resize does not support.

    Args:
        height, width: of the input, in pixels.
        new_height, new_width: of the output, in pixels.
    """

    def __init__(self, height: int, width: int, new_height: int, new_width: int):
        super().__init__()
        self.height, self.width = height, width
        self.new_height, self.new_width = new_height, new_width

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Resize (H, W) or (H, W, C): area interpolation to shrink, linear to enlarge."""
        shrinks = self.new_height < self.height
        return self._resize(img, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize a mask or label map (H, W), nearest-neighbor."""
        return self._resize(segmentation, cv2.INTER_NEAREST_EXACT)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale points (n, 2) x, y."""
        return coords * (self.new_width / self.width, self.new_height / self.height)

    def inverse(self) -> Transform:
        """The resize to the input's size."""
        return ResizeTransform(self.new_height, self.new_width, self.height, self.width)

    def _resize(self, img: np.ndarray, interpolation: int) -> np.ndarray:
        def resize(channel: np.ndarray, out: np.ndarray) -> None:
            channel = np.ascontiguousarray(channel)
            cv2.resize(channel, out.shape[::-1], dst=out, interpolation=interpolation)

        return _by_channel(img, (self.new_height, self.new_width), resize)


def _by_channel(
    img: np.ndarray, size: tuple[int, int], apply: Callable[[np.ndarray, np.ndarray], None]
) -> np.ndarray:
    """Apply a function to (H, W), or to each channel of (H, W, C); OpenCV takes at most four.

    Each channel of the result is contiguous in memory, as in the mapper's images.

    Args:
        img: (H, W) or (H, W, C).
        size: height and width of the result.
        apply: a function of a channel and of the output array of this size, which it fills.
    """
    if img.ndim == 2:
        out = np.empty(size, img.dtype)
        apply(img, out)
        return out
    out = np.empty((img.shape[2], *size), img.dtype)
    for channel, plane in zip(img.transpose(2, 0, 1), out, strict=True):
        apply(channel, plane)
    return out.transpose(1, 2, 0)


class ResizeCT(T.Augmentation):
    """Resizes a slice to a given longer side or pixel spacing.

    Args:
        image_size: length of the longer side in pixels; 0 keeps the size.
        pixel_spacing: mm; if above 0, it replaces ``image_size``.
        factor_range: the size is multiplied by a factor sampled uniformly from this range.
        max_size: upper limit of the resulting longer side in pixels; 0 for no limit.
    """

    def __init__(
        self,
        image_size: int = 512,
        pixel_spacing: float = 0.0,
        factor_range: tuple[float, float] = (1.0, 1.0),
        max_size: int = 0,
    ):
        super().__init__()
        low, high = factor_range
        sizes = image_size, max_size
        if min(*sizes, pixel_spacing) < 0 or max(sizes) > MAX_SIDE:
            raise ValueError(
                f"INPUT.CT: found IMAGE_SIZE {image_size}, PIXEL_SPACING {pixel_spacing} and "
                f"MAX_SIZE {max_size}, expected 0 or more, and sizes of at most {MAX_SIDE}"
            )
        if not 0 < low <= high:
            raise ValueError(f"resize range: found ({low}, {high}), expected 0 < low <= high")
        self._init(locals())

    def get_transform(
        self, image: np.ndarray, spacing: tuple[float, float, float] | None
    ) -> Transform:
        """Sample the size for an image (H, W, C) with spacing (x, y, z) in mm, None if unknown.

        Raises:
            ValueError: the spacing is unknown and ``pixel_spacing`` is set.
        """
        height, width = image.shape[:2]
        scale_x = scale_y = self.image_size / max(height, width) if self.image_size else 1.0
        if self.pixel_spacing and spacing is None:
            raise ValueError(
                "found an image without spacing, expected one for INPUT.CT.PIXEL_SPACING "
                f"{self.pixel_spacing:g}"
            )
        if self.pixel_spacing:
            scale_x, scale_y = (s / self.pixel_spacing for s in spacing[:2])
        factor = self._rand_range(*self.factor_range)
        if self.max_size:
            factor = min(factor, self.max_size / max(height * scale_y, width * scale_x))
        new_height = max(1, round(height * scale_y * factor))
        new_width = max(1, round(width * scale_x * factor))
        if (new_height, new_width) == (height, width):
            return T.NoOpTransform()
        return ResizeTransform(height, width, new_height, new_width)


class RandomAffine(T.Augmentation):
    """Rotation, shear, scale and translation about the image center (Zlocha et al., section 3.1).

    All are sampled uniformly and independently. We read the paper's "rotation/shearing up to 0.1
    radians, and scaling/translation up to 10% of the image size" as in both directions, with one
    scale for both axes and shear along x.

    Args:
        rotation, shear: largest angle, in radians.
        scale: largest relative change of size.
        translation: largest shift, relative to the image side.
        fill: value of pixels outside the image, in HU.
    """

    def __init__(
        self,
        rotation: float = 0.1,
        shear: float = 0.1,
        scale: float = 0.1,
        translation: float = 0.1,
        fill: float = 0.0,
    ):
        super().__init__()
        if min(rotation, shear, scale, translation) < 0 or scale >= 1:
            raise ValueError(
                f"affine augmentation: found rotation {rotation}, shear {shear}, scale {scale}, "
                f"translation {translation}, expected 0 or more, and a scale below 1"
            )
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """Sample the warp for an image (H, W, C)."""
        height, width = image.shape[:2]
        angle = self._rand_range(-self.rotation, self.rotation)
        shear = self._rand_range(-self.shear, self.shear)
        scale = 1 + self._rand_range(-self.scale, self.scale)
        shift_x = self._rand_range(-self.translation, self.translation) * width
        shift_y = self._rand_range(-self.translation, self.translation) * height
        rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = scale * rotate @ np.array([[1.0, np.tan(shear)], [0.0, 1.0]])
        center = np.array([width / 2, height / 2])
        offset = center + np.array([shift_x, shift_y]) - linear @ center
        return AffineTransform(np.column_stack([linear, offset]), height, width, self.fill)


def build_augmentations(cfg, is_train: bool) -> list[T.Augmentation]:
    """Build the augmentations configured by INPUT.CT, INPUT.AUG and INPUT.PATCH.

    In inference, only the resize is applied.
    """
    ct, aug = cfg.INPUT.CT, cfg.INPUT.AUG
    if not is_train:
        return [ResizeCT(ct.IMAGE_SIZE, ct.PIXEL_SPACING, max_size=ct.MAX_SIZE)]
    factors = tuple(aug.RESIZE_RANGE)
    augmentations = [ResizeCT(ct.IMAGE_SIZE, ct.PIXEL_SPACING, factors, ct.MAX_SIZE)]
    if aug.HFLIP_PROB > 0:
        augmentations.append(T.RandomFlip(aug.HFLIP_PROB, horizontal=True, vertical=False))
    if aug.VFLIP_PROB > 0:
        augmentations.append(T.RandomFlip(aug.VFLIP_PROB, horizontal=False, vertical=True))
    limits = (aug.MAX_ROTATION, aug.MAX_SHEAR, aug.MAX_SCALE, aug.MAX_TRANSLATION)
    fill = ct.HU_WINDOW[0]
    affine = RandomAffine(*limits, fill=fill) if any(limits) else None
    patch = cfg.INPUT.PATCH
    if any(patch.SIZE):
        augmentations.append(RandomPatch(patch.SIZE, patch.FOREGROUND_PROB, affine, fill))
    elif affine is not None:
        augmentations.append(affine)
    return augmentations
