"""Shapes with soft edges, painted on one slice of a synthetic CT.

Coordinates are body coordinates in mm: x to the patient's left, y to the back, z to the feet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# Tissue classes of the label map, which determines where lesions may be placed.
AIR, SKIN_FAT, MUSCLE, FAT, LUNG, LIVER, KIDNEY, BONE, VESSEL, BOWEL, ORGAN = range(11)


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid, rotated by ``angle`` (radians) in the slice plane."""

    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    tissue: str
    label: int
    angle: float = 0.0
    cavity: bool = True  # clipped to the body cavity


@dataclass(frozen=True)
class Tubes:
    """N conical segments with round ends: ``start``, ``end`` N x 3 mm, ``radius`` N x 2 mm."""

    start: np.ndarray
    end: np.ndarray
    radius: np.ndarray
    tissue: str
    label: int
    cavity: bool = False

    @cached_property
    def heights(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest z of each segment, mm; cached, as every slice needs them."""
        radius = self.radius.max(axis=1)
        ends = self.start[:, 2], self.end[:, 2]
        return np.minimum(*ends) - radius, np.maximum(*ends) + radius


@dataclass(frozen=True)
class Sheet:
    """A plate; on a slice, a thick line from ``a`` to ``b`` (K x 2 mm, at heights z)."""

    z: np.ndarray
    a: np.ndarray
    b: np.ndarray
    radius: np.ndarray
    tissue: str
    label: int
    shell: str = "cortical"


def polyline(points: np.ndarray, radius: np.ndarray, tissue: str, label: int, **kwargs) -> Tubes:
    """The tube through K points (K x 3 mm) with K radii, as K - 1 segments."""
    points, radius = np.asarray(points, float), np.asarray(radius, float)
    pairs = np.stack([radius[:-1], radius[1:]], axis=1)
    return Tubes(points[:-1], points[1:], pairs, tissue, label, **kwargs)


def join_tubes(tubes: list[Tubes]) -> Tubes:
    """Merge the segments of several tubes of the same tissue into one group."""
    first = tubes[0]
    parts = (np.concatenate([getattr(t, f) for t in tubes]) for f in ("start", "end", "radius"))
    return Tubes(*parts, first.tissue, first.label, first.cavity)


class Waves:
    """A smooth 3-D random field of standard deviation 1: a sum of plane waves.

    Args:
        rng: random generator for directions, wavelengths and phases.
        wavelengths: (shortest, longest) in mm.
        num_waves: number of waves.

    Attributes:
        frequencies: (num_waves, 3), radians per mm along x, y and z.
        phases: (num_waves,), radians.
    """

    def __init__(self, rng: np.random.Generator, wavelengths: tuple[float, float], num_waves: int):
        directions = rng.normal(size=(num_waves, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = rng.uniform(*wavelengths, size=(num_waves, 1))
        self.frequencies = (2 * np.pi * directions / lengths).astype(np.float32)
        self.phases = rng.uniform(0, 2 * np.pi, num_waves).astype(np.float32)

    def __call__(self, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
        """Evaluate the field at height z (mm) on the regular grid of ``x`` (W,) and ``y`` (H,)."""
        # On a regular grid a wave is the product of a row and a column, which saves H x W cosines.
        kx, ky, kz = self.frequencies.T
        column = np.exp(1j * (np.outer(ky, y) + (kz * z + self.phases)[:, None]))
        row = np.exp(1j * np.outer(kx, x))
        total = column.real.T @ row.real - column.imag.T @ row.imag
        return (total * np.sqrt(2 / len(self.phases))).astype(np.float32)


class Canvas:
    """A slice being painted: HU and tissue labels on a grid of square pixels.

    Args:
        x, y: (W,) and (H,) mm of the pixel centers, evenly spaced.
        z: height of the slice, mm.
        bend: displacement fields along x and y (H x W each, mm) that make organs less regular.
        hu: tissue name -> HU of this series.
        texture: H x W random field of standard deviation 1, the texture of organs.
    """

    def __init__(self, x, y, z, bend, hu, texture):
        self.x, self.y, self.z = x, y, z
        self.pixel = float(x[1] - x[0])
        self._left, self._top = float(x[0]), float(y[0])
        self.bend_x, self.bend_y = bend
        self._margin = float(max(np.abs(bend[0]).max(), np.abs(bend[1]).max())) + 2 * self.pixel
        self.tissues, self.texture = hu, texture
        shape = (len(y), len(x))
        self.hu = np.full(shape, hu["air"], np.float32)
        self.labels = np.full(shape, AIR, np.uint8)
        # Share of each pixel inside the skin, and inside the body cavity.
        self.body = np.ones(shape, np.float32)
        self.cavity = np.zeros(shape, np.float32)

    def patch(self, x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice] | None:
        """Rows and columns of a box in mm; None if it lies outside the image."""
        columns = self._within(x0, x1, self._left, len(self.x))
        rows = self._within(y0, y1, self._top, len(self.y))
        return None if columns is None or rows is None else (rows, columns)

    def _within(self, low: float, high: float, start: float, number: int) -> slice | None:
        first = max(math.floor((low - start) / self.pixel), 0)
        last = min(math.floor((high - start) / self.pixel) + 2, number)
        return slice(first, last) if first < last else None

    def bent(self, patch: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        """Displaced coordinates (x, y in mm) of a patch's pixels."""
        rows, columns = patch
        return self.x[columns] + self.bend_x[patch], self.y[rows, None] + self.bend_y[patch]

    def cover(self, distance: np.ndarray, softness: float = 0.0) -> np.ndarray:
        """Fraction of each pixel inside a surface, from the signed distance to it in mm.

        ``softness``: additional width of the edge in mm, beyond one pixel.
        """
        return _to_unit(0.5 - distance / (self.pixel + softness))

    def paint(self, patch, cover: np.ndarray, tissue: str, label: int) -> None:
        """Blend a tissue into a patch by its coverage (0..1)."""
        value = self.tissues[tissue]
        uneven = self.tissues.get(tissue + ".sd", 0.0)
        if uneven:
            value = value + uneven * self.texture[patch]
        hu = self.hu[patch]
        hu += cover * (value - hu)
        self.labels[patch][cover > 0.5] = label

    def ellipsoid(self, shape: Ellipsoid) -> None:
        """Paint an :class:`Ellipsoid`."""
        (cx, cy, cz), (rx, ry, rz) = shape.center, shape.radii
        height = 1 - ((self.z - cz) / rz) ** 2
        if height <= 0:
            return
        wide, deep = (max(rx, ry),) * 2 if shape.angle else (rx, ry)
        wide, deep = wide + self._margin, deep + self._margin
        patch = self.patch(cx - wide, cx + wide, cy - deep, cy + deep)
        if patch is None:
            return
        x, y = self.bent(patch)
        x, y = x - cx, y - cy
        if shape.angle:
            cos, sin = np.cos(shape.angle), np.sin(shape.angle)
            x, y = cos * x + sin * y, cos * y - sin * x
        scale = np.sqrt(height)
        cover = self.cover((np.hypot(x / rx, y / ry) - scale) * min(rx, ry))
        cover = cover * (self.cavity if shape.cavity else self.body)[patch]
        self.paint(patch, cover, shape.tissue, shape.label)

    def tubes(self, tubes: Tubes) -> None:
        """Paint the segments of :class:`Tubes` that intersect this slice."""
        low, high = tubes.heights
        for i in np.flatnonzero((low < self.z) & (self.z < high)):
            self._tube(tubes.start[i], tubes.end[i], tubes.radius[i], tubes)

    def _tube(self, start, end, radius, group) -> None:
        axis = end - start
        patch = self._patch_of_tube(start.tolist(), axis.tolist(), float(radius.max()) + self.pixel)
        if patch is None:
            return
        dx, dy = self.x[patch[1]] - start[0], (self.y[patch[0]] - start[1])[:, None]
        dz = self.z - start[2]
        t = _to_unit((dx * axis[0] + dy * axis[1] + dz * axis[2]) / (axis @ axis + 1e-9))
        square = (dx - t * axis[0]) ** 2 + (dy - t * axis[1]) ** 2 + (dz - t * axis[2]) ** 2
        cover = self.cover(np.sqrt(square) - (radius[0] + t * (radius[1] - radius[0])))
        cover = cover * (self.cavity if group.cavity else self.body)[patch]
        self.paint(patch, cover, group.tissue, group.label)

    def _patch_of_tube(self, start, axis, reach: float) -> tuple[slice, slice] | None:
        """The patch around the part of a tube's axis near this slice; plain floats, for speed."""
        (x, y, z), (along_x, along_y, along_z) = start, axis
        low, high = 0.0, 1.0
        if abs(along_z) > 1e-6:
            low, high = sorted((self.z + side - z) / along_z for side in (-reach, reach))
            low, high = min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)
        x0, x1 = sorted((x + low * along_x, x + high * along_x))
        y0, y1 = sorted((y + low * along_y, y + high * along_y))
        return self.patch(x0 - reach, x1 + reach, y0 - reach, y1 + reach)

    def sheet(self, sheet: Sheet) -> None:
        """Paint a :class:`Sheet`: its shell, then its interior."""
        if not sheet.z[0] <= self.z <= sheet.z[-1]:
            return
        ends = [
            np.array([np.interp(self.z, sheet.z, side[:, i]) for i in range(2)] + [self.z])
            for side in (sheet.a, sheet.b)
        ]
        radius = np.interp(self.z, sheet.z, sheet.radius)
        for tissue, r in ((sheet.shell, radius), (sheet.tissue, radius - 2.2)):
            if r > 0.5:
                pair = np.array([[r, r]])
                self.tubes(Tubes(ends[0][None], ends[1][None], pair, tissue, sheet.label))


def _to_unit(values: np.ndarray) -> np.ndarray:
    """Clip to [0, 1]; several times faster than ``np.clip`` on small arrays."""
    return np.minimum(np.maximum(values, 0), 1)
