import math

import lesion_d2
from lesion_d2.data.transforms.augmentation import (
    AffineTransform,
    RandomAffine,
    ResizeCT,
    ResizeTransform,
    build_augmentations,
)

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from scipy import ndimage


def _image(height=40, width=50, channels=3):
    generator = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(generator.normal(size=(height, width, channels)), (4, 4, 0))
    return (smooth / smooth.std() * 300).astype(np.int16)


def _matrix(angle=0.1, scale=1.1, shift=(3.5, -2.25)):
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


# HU by which a warp may miss: half of one where OpenCV computes places exactly, which 4 does not.
_ROUNDED = 0.55 if int(cv2.__version__.partition(".")[0]) >= 5 else 12.0


def _bilinear(image, matrix, fill):
    """Every output pixel's center, traced back by the inverse matrix; float64, pixel by pixel."""
    height, width = image.shape
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))

    def value(row, column):
        is_inside = 0 <= row < height and 0 <= column < width
        return float(image[row, column]) if is_inside else fill

    out = np.empty(image.shape)
    for (row, column), _ in np.ndenumerate(image):
        x, y = (inverse @ [column + 0.5, row + 0.5, 1])[:2] - 0.5
        left, top = math.floor(x), math.floor(y)
        right_share, low_share = x - left, y - top
        upper, lower = (
            (1 - right_share) * value(r, left) + right_share * value(r, left + 1)
            for r in (top, top + 1)
        )
        out[row, column] = (1 - low_share) * upper + low_share * lower
    return out


@pytest.mark.parametrize("fill", [-1024.0, 40.0])
def test_affine_image_against_slow_bilinear_interpolation(fill):
    image, matrix = _image(), _matrix()
    warped = AffineTransform(matrix, 40, 50, fill=fill).apply_image(image)
    assert warped.dtype == np.int16 and warped.shape == image.shape
    for channel in range(3):
        expected = _bilinear(image[..., channel], matrix, fill)
        assert np.abs(warped[..., channel] - expected).max() <= _ROUNDED


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[1, 0, 0], [0, 1, 0]], lambda image: image),
        ([[-1, 0, 50], [0, 1, 0]], lambda image: image[:, ::-1]),
        ([[-1, 0, 50], [0, -1, 40]], lambda image: image[::-1, ::-1]),
        ([[1, 0, 3], [0, 1, 0]], lambda image: np.roll(image, 3, axis=1)),
    ],
)
def test_whole_pixels_are_moved_without_a_change(matrix, expected):
    image = np.random.default_rng(0).integers(-32768, 32768, (40, 50, 2)).astype(np.int16)
    for fill in (None, -5):
        warped = AffineTransform(matrix, 40, 50, fill=fill).apply_image(image)
        beyond = image[:, :1] if fill is None else fill
        wanted = expected(image).copy()
        wanted[:, : int(matrix[0][2]) % 50] = beyond
        assert np.array_equal(warped, wanted)


@pytest.mark.parametrize(
    "transform",
    [
        AffineTransform(_matrix(), 40, 50),
        AffineTransform(_matrix(-0.3, 0.9, (5, 6)), 40, 50),
        ResizeTransform(40, 50, 80, 100),
        ResizeTransform(40, 50, 20, 25),
    ],
)
def test_points_masks_and_images_move_alike(transform):
    image = np.zeros((40, 50), dtype=np.int16)
    image[10:28, 14:36] = 1000  # the rectangle (14, 10, 36, 28)
    corner = np.array([[14, 10], [36, 10], [36, 28], [14, 28]], dtype=float)
    center = transform.apply_coords(corner).mean(axis=0)
    for warped in (
        transform.apply_image(image),
        transform.apply_segmentation((image > 0).astype(np.uint8)),
    ):
        y, x = ndimage.center_of_mass(warped)
        np.testing.assert_allclose((x + 0.5, y + 0.5), center, atol=0.3)
        area = warped.sum() / warped.max()
        x_axis, y_axis = np.diff(
            transform.apply_coords(np.array([[1.0, 0], [0, 0], [0, 1]])), axis=0
        )
        expected = abs(np.linalg.det([x_axis, y_axis])) * 18 * 22
        assert area == pytest.approx(expected, rel=0.05)
    back = transform.inverse().apply_coords(transform.apply_coords(corner))
    np.testing.assert_allclose(back, corner, atol=1e-9)


def test_affine_with_more_channels_than_opencv_takes():
    image = _image(channels=7)
    transform = AffineTransform(_matrix(), 40, 50)
    for channel in range(7):
        assert np.array_equal(
            transform.apply_image(image)[..., channel], transform.apply_image(image[..., channel])
        )
    assert ResizeTransform(40, 50, 20, 25).apply_image(image).shape == (20, 25, 7)


def test_random_affine_stays_in_its_limits():
    augmentation = RandomAffine(rotation=0.1, shear=0.1, scale=0.1, translation=0.1)
    image = np.zeros((100, 200, 3), dtype=np.int16)
    np.random.seed(0)
    transforms = [augmentation.get_transform(image) for _ in range(300)]
    for transform in transforms:
        linear = transform.matrix[:, :2]
        scale = np.sqrt(np.linalg.det(linear))
        assert 0.9 <= scale <= 1.1
        angle = np.arctan2(linear[1, 0], linear[0, 0])  # the x axis is only rotated and scaled
        assert abs(angle) <= 0.1
        shift = transform.apply_coords(np.array([[100.0, 50.0]]))[0] - (100, 50)
        assert abs(shift[0]) <= 20 and abs(shift[1]) <= 10
    angles = [np.arctan2(t.matrix[1, 0], t.matrix[0, 0]) for t in transforms]
    assert min(angles) < -0.09 and max(angles) > 0.09


def test_resize_by_size_and_by_spacing():
    image = np.zeros((400, 200, 3), dtype=np.int16)

    def shape(augmentation, spacing=(0.8, 0.8, 5.0)):
        aug_input = T.AugInput(image)
        aug_input.spacing = spacing
        T.AugmentationList([augmentation])(aug_input)
        return aug_input.image.shape

    assert shape(ResizeCT(512)) == (512, 256, 3)
    assert shape(ResizeCT(0)) == (400, 200, 3)
    assert shape(ResizeCT(512, pixel_spacing=1.6)) == (200, 100, 3)
    assert shape(ResizeCT(0, pixel_spacing=0.4), (0.8, 0.4, 1)) == (400, 400, 3)
    np.random.seed(0)
    heights = {shape(ResizeCT(512, factor_range=(0.8, 1.2)))[0] for _ in range(50)}
    assert min(heights) >= round(512 * 0.8) and max(heights) <= round(512 * 1.2)
    assert len(heights) > 20


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ResizeCT(-1), "IMAGE_SIZE -1"),
        (lambda: ResizeCT(512, factor_range=(1.2, 0.8)), "low <= high"),
        (lambda: RandomAffine(rotation=-0.1), "rotation -0.1"),
        (lambda: RandomAffine(scale=1.0), "scale 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_config_switches_augmentations_off():
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    assert [type(a) for a in build_augmentations(cfg, True)] == [
        ResizeCT,
        T.RandomFlip,
        T.RandomFlip,
        RandomAffine,
    ]
    assert [type(a) for a in build_augmentations(cfg, False)] == [ResizeCT]
    for key in ("HFLIP_PROB", "VFLIP_PROB", "MAX_ROTATION", "MAX_SHEAR", "MAX_SCALE"):
        cfg.INPUT.AUG[key] = 0.0
    cfg.INPUT.AUG.MAX_TRANSLATION = 0.0
    assert [type(a) for a in build_augmentations(cfg, True)] == [ResizeCT]


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_the_longer_side_has_a_limit_after_everything_else(factor):
    image = np.zeros((400, 200, 3), dtype=np.int16)

    def shape(max_size, **options):
        resize = ResizeCT(**options, factor_range=(factor, factor), max_size=max_size)
        return resize.get_transform(image, (0.4, 0.8, 5.0)).apply_image(image).shape[:2]

    for options, (height, width) in (
        ({"image_size": 300}, (300, 150)),
        ({"pixel_spacing": 0.8}, (400, 100)),
        ({"pixel_spacing": 0.4}, (800, 200)),
        ({"image_size": 0}, (400, 200)),
    ):
        free = (round(height * factor), round(width * factor))
        assert shape(0, **options) == shape(5000, **options) == free
        for limit in (512, 100, 33):
            scale = min(1, limit / max(height * factor, width * factor))
            expected = round(height * factor * scale), round(width * factor * scale)
            assert shape(limit, **options) == expected and max(expected) <= limit


def test_config_sets_the_limit_in_training_and_inference():
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.INPUT.CT.PIXEL_SPACING, cfg.INPUT.CT.MAX_SIZE = 0.8, 333
    for is_train in (True, False):
        resize = build_augmentations(cfg, is_train)[0]
        assert (resize.pixel_spacing, resize.max_size) == (0.8, 333)
    cfg.INPUT.CT.MAX_SIZE = -1
    with pytest.raises(ValueError, match="MAX_SIZE -1, expected 0 or more"):
        build_augmentations(cfg, False)
