"""Random patches of volumes: mirrors, rotation, scaling and elastic deformation in one warp."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from detectron2.config import configurable

from ...slice_geometry import interpolate_slices
from ..augmentation import AffineTransform, RandomAffine
from ..patches import draw_start

_FULL = 255  # of a mask that is interpolated
_HALF = 128


@dataclass(frozen=True)
class VolumeWarp:
    """Maps a volume to a patch of it: affine in-plane, linear along z, with a deformation or not.

    Points are in Detectron2's coordinates, where voxel i covers [i, i + 1]; only boxes have whole
    numbers at voxel centers.

    Args:
        size: depth, height and width of the patch.
        matrix: (2, 3), maps points x, y of the volume to the patch.
        z_scale, z_offset: z of the patch = z_scale * z of the volume + z_offset.
        displacement: (2, d, h, w) float32: x, y that a voxel of the patch shows what would lie
            so far from it; None for no deformation.
    """

    size: tuple[int, int, int]
    matrix: np.ndarray
    z_scale: float
    z_offset: float
    displacement: np.ndarray | None = None

    def window(self, start: Sequence[int], size: Sequence[int]) -> "VolumeWarp":
        """The warp of which no more than a window of the patch is computed.

        Args:
            start: z, y, x of its first voxel in the patch.
            size: depth, height, width.
        """
        z, y, x = start
        displacement = self.displacement
        if displacement is not None:
            depth, height, width = size
            displacement = displacement[:, z : z + depth, y : y + height, x : x + width]
        return VolumeWarp(
            tuple(size),
            self.matrix - [[0, 0, x], [0, 0, y]],
            self.z_scale,
            self.z_offset - z,
            displacement,
        )

    @property
    def reach(self) -> float:
        """Voxels of the patch by which the deformation moves anything, at most."""
        return 0.0 if self.displacement is None else float(np.abs(self.displacement).max())

    def source_ranges(self, shape: Sequence[int]) -> list[tuple[int, int]] | None:
        """What the patch shows of a volume.

        Args:
            shape: depth, height and width of the volume.

        Returns:
            For z, y and x the first voxel, and the end (exclusive); None where it shows nothing.
        """
        depth, height, width = self.size
        reach = self.reach
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
        corners += np.sign(corners - [width / 2, height / 2]) * reach
        inverse = np.linalg.inv(self.matrix[:, :2])
        points = (corners - self.matrix[:, 2]) @ inverse.T
        ends = (np.array([0.0, depth]) - self.z_offset) / self.z_scale
        low = np.array([ends.min(), *points.min(axis=0)[::-1]])
        high = np.array([ends.max(), *points.max(axis=0)[::-1]])
        # Two voxels more: those that the outermost ones are interpolated with.
        firsts = np.maximum(np.floor(low).astype(int) - 2, 0)
        lasts = np.minimum(np.ceil(high).astype(int) + 2, shape)
        if (firsts >= lasts).any():
            return None
        return list(zip(firsts.tolist(), lasts.tolist(), strict=True))

    def apply_image(
        self, block: np.ndarray, start: Sequence[int], shape: Sequence[int], fill: int
    ) -> np.ndarray:
        """Warp a volume with linear interpolation.

        Args:
            block: the part of it that :meth:`source_ranges` tells, int16.
            start: z, y, x of the block's first voxel.
            shape: of the volume. The outermost half voxel along z is that of the outermost slice.
            fill: value of voxels outside of the volume.

        Returns:
            (d, h, w) of the block's type.
        """
        out = np.full(self.size, fill, block.dtype)
        lower, upper, fractions, inside = self._slices(shape[0])
        warp = self._in_plane(start, fill)
        between = np.empty(block.shape[1:], block.dtype)
        for k in np.flatnonzero(inside):
            interpolate_slices(
                block[lower[k] - start[0]], block[upper[k] - start[0]], float(fractions[k]), between
            )
            out[k] = warp(between, k)
        return out

    def apply_mask(
        self, mask: np.ndarray, start: Sequence[int], shape: Sequence[int]
    ) -> np.ndarray:
        """Warp a mask: voxels of which a half or more is in it, by linear interpolation.

        Args:
            mask: (d, h, w) bool, of a part of the volume; 0 elsewhere.
            start: z, y, x of its first voxel.
            shape: of the volume.
        """
        out = np.zeros(self.size, bool)
        lower, upper, fractions, inside = self._slices(shape[0])
        warp = self._in_plane(start, 0)
        levels = np.zeros((len(mask) + 2, *mask.shape[1:]), np.uint8)  # an empty slice on each side
        levels[1:-1] = mask * np.uint8(_FULL)
        between = np.empty(mask.shape[1:], np.uint8)
        low = (lower - start[0] + 1).clip(0, len(mask) + 1)
        high = (upper - start[0] + 1).clip(0, len(mask) + 1)
        for k in np.flatnonzero(inside & (low <= len(mask)) & (high >= 1)):
            interpolate_slices(levels[low[k]], levels[high[k]], float(fractions[k]), between)
            out[k] = warp(between, k) >= _HALF
        return out

    def _slices(self, depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """For each slice of the patch two of the volume, weight of the second, whether inside."""
        position = (np.arange(self.size[0]) + 0.5 - self.z_offset) / self.z_scale - 0.5
        inside = (position >= -0.5) & (position <= depth - 0.5)
        position = position.clip(0, depth - 1)
        nearest = np.rint(position)  # a quotient such as 0.6 / 0.2 is not quite a whole number
        position = np.where(np.abs(position - nearest) < 1e-6, nearest, position)
        lower = np.floor(position).astype(int)
        return lower, np.minimum(lower + 1, depth - 1), position - lower, inside

    def _in_plane(self, start: Sequence[int], fill: int):
        """A function of a slice of a block, and of its number in the patch."""
        _, height, width = self.size
        matrix = self.matrix.copy()
        matrix[:, 2] += matrix[:, :2] @ np.array([start[2], start[1]], float)
        if self.displacement is None:
            affine = AffineTransform(matrix, height, width, fill)
            return lambda section, k: affine.apply_image(section)
        inverse = np.linalg.inv(matrix[:, :2])
        x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        points = np.stack([x, y]) - matrix[:, 2, None, None]
        places = np.tensordot(inverse, points, 1).astype(np.float32) - np.float32(0.5)
        inverse = inverse.astype(np.float32)

        def deform(section: np.ndarray, k: int) -> np.ndarray:
            maps = places + np.tensordot(inverse, self.displacement[:, k], 1)
            return cv2.remap(
                section,
                maps[0],
                maps[1],
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=fill,
            )

        return deform

    def apply_boxes(self, boxes: np.ndarray, *, corners: bool = False) -> np.ndarray:
        """Map boxes, without the deformation.

        Args:
            boxes: (n, 6) X1Y1Z1X2Y2Z2 in the volume, whole numbers being voxel centers.
            corners: give the extent of the box; by default of the ellipsoid in it, which a rotation
                does not grow.

        Returns:
            (n, 6) in the patch, which they may reach beyond.
        """
        centers, halves = (boxes[:, 3:] + boxes[:, :3]) / 2, (boxes[:, 3:] - boxes[:, :3]) / 2
        linear, squares = self._linear(), self._linear() ** 2
        moved = (centers + 0.5) @ linear.T + [*self.matrix[:, 2], self.z_offset] - 0.5
        grown = halves @ np.abs(linear).T if corners else np.sqrt(halves**2 @ squares.T)
        return np.concatenate([moved - grown, moved + grown], axis=1)

    def apply_margins(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map what lies between something and its box.

        Args:
            low, high: (3,) x, y, z in voxels, before its start and past its end.

        Returns:
            The same in the patch; a rotation mixes those of x and y.
        """
        linear = self._linear()
        squares = linear**2
        means = squares @ ((low + high) / 2) / np.sqrt(squares.sum(axis=1))
        shifts = linear @ ((high - low) / 2)
        return means - shifts, means + shifts

    def _linear(self) -> np.ndarray:
        """(3, 3) for x, y, z."""
        linear = np.zeros((3, 3))
        linear[:2, :2], linear[2, 2] = self.matrix[:, :2], self.z_scale
        return linear


class RandomVolumePatch:
    """Draws patches of volumes (Jaeger et al., sections 4.2 and 5.1).

    Patches show one of a volume's lesions with a probability, as those of images do (see
    :class:`~lesion_d2.data.patches.RandomPatch`): whole where it fits, and anywhere in the patch.
    Otherwise it is any patch. A volume smaller than the patch lies in its middle.

    The warp is one of the whole volume, resampled to the model's spacing: mirrors of each axis, and
    rotation, shear, shift and scale in-plane about its center, with the same scale along z. In 3-D
    the paper's authors turn about z alone, by any angle, and deform nothing; so the elastic
    deformation is off by default. It moves voxels in-plane, differently from slice to slice, as
    far as a normal distribution says, between the points of a grid smoothly.

    All this is one warp of what the patch shows, along z first and then in-plane, with OpenCV. With
    reading, boxes and masks a patch takes 0.2 of the time of MONAI 1.6's ``RandAffined`` with
    mirrors, which interpolates at arbitrary places in 3-D, and with the deformation 0.04 of that of
    ``Rand3DElasticd`` (``make benchmark``). The warp of batchgeneratorsv2 0.3.6 takes 0.8 and 0.35
    of the time of MONAI's. So there is one of our own.

    Args:
        size: depth, height and width of the patch.
        foreground_prob: probability that a patch of a volume with lesions is one with a lesion.
        flip_probs: of mirrors along x, y and z.
        affine: rotation, shear, scale and shift; None for none.
        elastic: standard deviation of the numbers on the grid, whose smooth mean the displacements
            are, in voxels of the patch; 0 for none.
        elastic_grid: voxels between the points of the grid.
        noise: largest standard deviation of noise that is added, HU.
        brightness: largest change of all voxels, HU.
        contrast: largest relative change of distances from the patch's mean.

    Raises:
        ValueError: an argument is out of its range.
    """

    @configurable
    def __init__(
        self,
        *,
        size: tuple[int, int, int],
        foreground_prob: float = 0.5,
        flip_probs: tuple[float, float, float] = (0.0, 0.0, 0.0),
        affine: RandomAffine | None = None,
        elastic: float = 0.0,
        elastic_grid: int = 32,
        noise: float = 0.0,
        brightness: float = 0.0,
        contrast: float = 0.0,
    ):
        self.size = tuple(size)
        self.foreground_prob = foreground_prob
        self.flip_probs = tuple(flip_probs)
        self.affine = affine
        self.elastic, self.elastic_grid = elastic, elastic_grid
        self.noise, self.brightness, self.contrast = noise, brightness, contrast
        self._check()

    @classmethod
    def from_config(cls, cfg) -> dict:
        volume, aug = cfg.INPUT.VOLUME, cfg.INPUT.AUG
        limits = (aug.MAX_ROTATION, aug.MAX_SHEAR, aug.MAX_SCALE, aug.MAX_TRANSLATION)
        return {
            "size": tuple(volume.PATCH_SIZE),
            "foreground_prob": cfg.INPUT.PATCH.FOREGROUND_PROB,
            "flip_probs": (aug.HFLIP_PROB, aug.VFLIP_PROB, volume.DEPTH_FLIP_PROB),
            "affine": RandomAffine(*limits) if any(limits) else None,
            "elastic": volume.ELASTIC,
            "elastic_grid": volume.ELASTIC_GRID,
            "noise": volume.NOISE,
            "brightness": volume.BRIGHTNESS,
            "contrast": volume.CONTRAST,
        }

    def _check(self) -> None:
        size = self.size
        if not (len(size) == 3 and all(isinstance(side, int) and side > 0 for side in size)):
            raise ValueError(
                f"INPUT.VOLUME.PATCH_SIZE: found {size}, expected depth, height and width in voxels"
            )
        for key, values in (
            ("INPUT.PATCH.FOREGROUND_PROB", [self.foreground_prob]),
            ("INPUT.AUG.HFLIP_PROB, VFLIP_PROB, INPUT.VOLUME.DEPTH_FLIP_PROB", self.flip_probs),
            ("INPUT.VOLUME.CONTRAST", [self.contrast]),
        ):
            if not all(0 <= value <= 1 for value in values):
                raise ValueError(f"{key}: found {values}, expected 0 to 1")
        for key in ("elastic", "noise", "brightness"):
            if not getattr(self, key) >= 0:
                raise ValueError(
                    f"INPUT.VOLUME.{key.upper()}: found {getattr(self, key)}, expected 0 or more"
                )
        if self.elastic_grid < 1:
            raise ValueError(
                f"INPUT.VOLUME.ELASTIC_GRID: found {self.elastic_grid}, expected 1 or more"
            )

    def draw(
        self, source_shape: Sequence[int], shape: Sequence[int], boxes: np.ndarray
    ) -> VolumeWarp:
        """Draw a patch, from NumPy's global random state.

        Args:
            source_shape: depth, height and width of the volume on disk.
            shape: at the model's spacing.
            boxes: (n, 6) X1Y1Z1X2Y2Z2 of its lesions, in voxels on disk.
        """
        whole = self._draw_warp(source_shape, shape)
        start = self._draw_start(whole, boxes)
        warp = whole.window(start, self.size)
        if self.elastic:
            warp = replace(warp, displacement=self._draw_displacement())
        return warp

    def _draw_warp(self, source_shape: Sequence[int], shape: Sequence[int]) -> VolumeWarp:
        """The warp of the whole volume; along z all of it is kept, whatever the scale."""
        depth, height, width = shape
        matrix = np.diag([width / source_shape[2], height / source_shape[1], 1.0])
        z_scale, z_offset = depth / source_shape[0], 0.0
        flips = np.random.uniform(size=3) < self.flip_probs
        if flips[0]:
            matrix = np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1.0]]) @ matrix
        if flips[1]:
            matrix = np.array([[1, 0, 0], [0, -1, height], [0, 0, 1.0]]) @ matrix
        if flips[2]:
            z_scale, z_offset = -z_scale, float(depth)
        if self.affine is not None:
            drawn = self.affine.get_transform(np.broadcast_to(np.uint8(0), (height, width)))
            matrix = np.vstack([drawn.matrix, [0, 0, 1]]) @ matrix
            scale = np.sqrt(np.linalg.det(drawn.matrix[:, :2]))
            scaled = max(1, round(depth * scale))
            z_offset = z_offset * scale + (scaled - depth * scale) / 2
            z_scale, depth = z_scale * scale, scaled
        return VolumeWarp((depth, height, width), matrix[:2], z_scale, z_offset)

    def _draw_start(self, whole: VolumeWarp, boxes: np.ndarray) -> list[int]:
        sides = np.array(whole.size)
        boxes = (whole.apply_boxes(boxes) + 0.5).clip(0, np.tile(sides[::-1], 2))
        boxes = boxes[(boxes[:, :3] < boxes[:, 3:]).all(axis=1)]
        box = None
        if len(boxes) and np.random.uniform() < self.foreground_prob:
            box = boxes[np.random.randint(len(boxes))]
        axes = zip(sides.tolist(), self.size, (2, 1, 0), strict=True)
        return [
            draw_start(side, patch_side, None if box is None else box[axis::3])
            for side, patch_side, axis in axes
        ]

    def _draw_displacement(self) -> np.ndarray:
        """(2, d, h, w) float32: cubic B-splines over a grid of normal numbers."""
        splines = [_splines(side, self.elastic_grid) for side in self.size]
        points = [spline.shape[1] for spline in splines]
        field = np.random.normal(0, self.elastic, (2, *points)).astype(np.float32)
        for axis, spline in reversed(list(enumerate(splines, 1))):
            field = np.moveaxis(np.tensordot(spline, field, (1, axis)), 0, axis)
        return np.ascontiguousarray(field)

    def change_values(self, image: np.ndarray) -> np.ndarray:
        """Add noise and change brightness and contrast of a patch, as far as asked for.

        Args:
            image: (d, h, w) int16, HU.

        Returns:
            The same shape and type.
        """
        if not (self.noise or self.brightness or self.contrast):
            return image
        values = image.astype(np.float32)
        if self.contrast:
            mean = values.mean()
            values = mean + (values - mean) * np.float32(
                1 + np.random.uniform(-self.contrast, self.contrast)
            )
        if self.brightness:
            values += np.float32(np.random.uniform(-self.brightness, self.brightness))
        if self.noise:
            rng = np.random.default_rng(np.random.randint(2**31))
            noise = rng.standard_normal(values.shape, np.float32)
            values += np.float32(np.random.uniform(0, self.noise)) * noise
        limits = np.iinfo(np.int16)
        return np.rint(values).clip(limits.min, limits.max).astype(np.int16)


def _splines(side: int, grid: int) -> np.ndarray:
    """(side, points) float32: weights of the points of a grid for each voxel of an axis."""
    position = np.arange(side) / grid + 1
    distance = np.abs(position[:, None] - np.arange(-(-side // grid) + 3))
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = (2 - distance).clip(0) ** 3 / 6
    return np.where(distance < 1, inner, outer).astype(np.float32)
