"""The transform from a volume to a patch: one interpolation along z, and one in-plane."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ...structures.slice_geometry import interpolate_slices
from ..transforms.augmentation import AffineTransform

_FULL = 255  # value of a mask before interpolation
_HALF = 128
_ON_EDGE = 1e-3  # voxels
_Places = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class VolumeWarp:
    """Maps a volume to a patch: affine in-plane, linear along z, with an optional deformation.

    Points are in Detectron2's coordinates, where voxel i covers [i, i + 1]; only in boxes, integers
    are voxel centers.

    Args:
        size: depth, height and width of the patch.
        matrix: (2, 3), maps points x, y of the volume to the patch.
        z_scale, z_offset: z of the patch = z_scale * z of the volume + z_offset.
        displacement: (2, d, h, w) float32, offset (x, y) in the patch at which each voxel is
            sampled; None for no deformation.
    """

    size: tuple[int, int, int]
    matrix: np.ndarray
    z_scale: float
    z_offset: float
    displacement: np.ndarray | None = None

    def window(self, start: Sequence[int], size: Sequence[int]) -> "VolumeWarp":
        """Return the same warp, computed only for a window of the patch.

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
        """Largest displacement by the deformation, in voxels of the patch."""
        return 0.0 if self.displacement is None else float(np.abs(self.displacement).max())

    def source_ranges(self, shape: Sequence[int]) -> list[tuple[int, int]] | None:
        """Return the part of a volume that the patch covers.

        Args:
            shape: depth, height and width of the volume.

        Returns:
            First voxel and end (exclusive) for z, y and x; None if the patch is outside the volume.
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
        # Two more voxels, for interpolation of the outermost ones.
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
            block: the part of the volume in :meth:`source_ranges`, int16.
            start: z, y, x of the block's first voxel.
            shape: shape of the volume. The outermost half voxel repeats the outermost voxel along
                all axes, as in the resampling at inference.
            fill: value of voxels outside the volume.

        Returns:
            (d, h, w), of the block's type.
        """
        out = np.full(self.size, fill, block.dtype)
        lower, upper, fractions, inside = self._slices(shape[0])
        find_places = self._places(start)
        warp = self._in_plane(start, None, find_places)
        find_beyond = self._beyond(start, shape, find_places)
        between = np.empty(block.shape[1:], block.dtype)
        for k in np.flatnonzero(inside):
            interpolate_slices(
                block[lower[k] - start[0]], block[upper[k] - start[0]], float(fractions[k]), between
            )
            out[k] = warp(between, k)
            beyond = find_beyond(k)
            if beyond is not None:
                out[k][beyond] = fill
        return out

    def apply_mask(
        self, mask: np.ndarray, start: Sequence[int], shape: Sequence[int]
    ) -> np.ndarray:
        """Warp a mask by linear interpolation, thresholded at one half.

        Args:
            mask: (d, h, w) bool, for a part of the volume; False elsewhere.
            start: z, y, x of its first voxel.
            shape: shape of the volume.
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
        """For each slice of the patch: two of the volume, weight of the second, if inside."""
        position = (np.arange(self.size[0]) + 0.5 - self.z_offset) / self.z_scale - 0.5
        inside = (position >= -0.5) & (position <= depth - 0.5)
        position = position.clip(0, depth - 1)
        nearest = np.rint(position)  # rounding error: 0.6 / 0.2 is not exactly an integer
        position = np.where(np.abs(position - nearest) < 1e-6, nearest, position)
        lower = np.floor(position).astype(int)
        return lower, np.minimum(lower + 1, depth - 1), position - lower, inside

    def _in_plane(
        self, start: Sequence[int], fill: int | None, find_places: _Places | None = None
    ) -> Callable[[np.ndarray, int], np.ndarray]:
        """A function that warps a slice of a block, given its index in the patch.

        ``fill`` is the value outside the block; None repeats its outermost pixels. ``find_places``
        is the result of :meth:`_places`.
        """
        _, height, width = self.size
        if self.displacement is None:
            affine = AffineTransform(self._matrix_from(start), height, width, fill)
            return lambda section, k: affine.apply_image(section)
        find_places = find_places or self._places(start)

        def deform(section: np.ndarray, k: int) -> np.ndarray:
            return cv2.remap(
                section,
                *find_places(k),
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE if fill is None else cv2.BORDER_CONSTANT,
                borderValue=0 if fill is None else fill,
            )

        return deform

    def _matrix_from(self, start: Sequence[int]) -> np.ndarray:
        """The (2, 3) matrix that maps points of a block."""
        matrix = self.matrix.copy()
        matrix[:, 2] += matrix[:, :2] @ np.array([start[2], start[1]], float)
        return matrix

    def _places(self, start: Sequence[int]) -> _Places:
        """A function of a slice's index in the patch: the source points (2, h, w) x, y.

        Integers are the centers of a block's voxels. The last result is cached.
        """
        _, height, width = self.size
        matrix = self._matrix_from(start)
        inverse = np.linalg.inv(matrix[:, :2])
        x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        points = np.stack([x, y]) - matrix[:, 2, None, None]
        places = np.tensordot(inverse, points, 1).astype(np.float32) - np.float32(0.5)
        if self.displacement is None:
            return lambda k: places
        inverse = inverse.astype(np.float32)

        @functools.lru_cache(1)
        def displaced(k: int) -> np.ndarray:
            return places + np.tensordot(inverse, self.displacement[:, k], 1)

        return displaced

    def _beyond(
        self, start: Sequence[int], shape: Sequence[int], find_places: _Places
    ) -> Callable[[int], np.ndarray | None]:
        """A function of a slice's index in the patch: (h, w), which pixels are outside the volume.

        Voxels with their center on the edge are inside, with a tolerance for rounding. None if all
        of the patch is inside.
        """
        first = np.array([start[2], start[1]], np.float32)[:, None, None]
        low = np.float32(-0.5 - _ON_EDGE) - first
        high = np.array([shape[2], shape[1]], np.float32)[:, None, None] + low
        high += np.float32(2 * _ON_EDGE)

        def beside(k: int) -> np.ndarray | None:
            places = find_places(k)
            found = ((places < low) | (places > high)).any(axis=0)
            return found if found.any() else None

        if self.displacement is not None:
            return beside
        of_all = beside(0)
        return lambda k: of_all

    def apply_boxes(self, boxes: np.ndarray, *, corners: bool = False) -> np.ndarray:
        """Map boxes, without the deformation.

        Args:
            boxes: (n, 6) X1Y1Z1X2Y2Z2 in the volume; integers are voxel centers.
            corners: return the extent of the warped box; by default that of the warped ellipsoid in
                it, which does not grow under rotation.

        Returns:
            (n, 6) in the patch; they may extend beyond it.
        """
        centers, halves = (boxes[:, 3:] + boxes[:, :3]) / 2, (boxes[:, 3:] - boxes[:, :3]) / 2
        linear, squares = self._linear(), self._linear() ** 2
        moved = (centers + 0.5) @ linear.T + [*self.matrix[:, 2], self.z_offset] - 0.5
        grown = halves @ np.abs(linear).T if corners else np.sqrt(halves**2 @ squares.T)
        return np.concatenate([moved - grown, moved + grown], axis=1)

    def apply_margins(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map the margins between an object and its box.

        Args:
            low, high: (3,) x, y, z in voxels, before its start and after its end.

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
