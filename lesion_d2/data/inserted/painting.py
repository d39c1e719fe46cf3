"""Paints lesions of the clinical phantoms into stacks of real slices.

A lesion (:mod:`lesion_d2.data.phantoms.looks`) is placed in a host tissue of its type: nodules in
the lung, metastases and cysts in homogeneous soft tissue such as the liver, nodes in the fat inside
the body, nodules in the subcutaneous fat. The slices' noise is kept, also inside the lesion.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np

from ..phantoms.lesions import HOST_TISSUE, LESION_TYPES, Lesion, LesionType, sample_lesion
from ..phantoms.shapes import AIR, FAT, LIVER, SKIN_FAT, Canvas
from .hosts import HOSTS, PAINTED_OVER, coarse_step, hosts_of_smooth, smoothed

#: Lowest and highest values of options: lesions per key slice, mm, HU.
LIMITS = {"max_lesions": (1, 20), "median_diameter": (5, 40), "mottle_hu": (0, 100)}
# Limits in units of the noise's SD, around a pixel and at it: more is structure, which a lesion
# replaces.
_MAX_LOCAL_SD, _MAX_NOISE = 1.3, 3.0
_LOCAL = 5.0  # mm, side of the window around a pixel
_MIN_CONTRAST = 15.0  # HU, on the key slice
_MIN_PIXELS = 12  # on the key slice
_TRIES = 6
_BLUR_REACH = 7.0  # mm, extent of the Gaussian of ``smoothed``
_APART = 12.0  # minimum distance between lesions, mm


@dataclass(frozen=True)
class InsertedLesion:
    """A lesion that was painted into slices.

    Attributes:
        coarse_type: 1..8, as in ``DL_info.csv``.
        masks: index of each slice that shows it -> H x W bool.
    """

    coarse_type: int
    masks: dict[int, np.ndarray]


def insert_lesions(
    slices: np.ndarray,
    heights: Sequence[float],
    pixel: float,
    rng: np.random.Generator,
    *,
    number: int = 1,
    types: Collection[int] = tuple(HOSTS),
    median_diameter: float = 16.0,
    mottle_hu: float = 5.0,
    taken: Mapping[int, np.ndarray] = MappingProxyType({}),
) -> list[InsertedLesion]:
    """Paint synthetic lesions into a stack of slices, if there is room for them.

    Args:
        slices: C x H x W HU in DeepLesion's orientation, modified in place (rounded for integer
            types). Slices that no lesion reaches take no time.
        heights: distance of each slice from the key slice along z, (C,) in mm; one of them is 0.
        pixel: pixel size in mm.
        rng: random generator.
        number: maximum number of lesions to insert.
        types: coarse types to sample from, keys of ``HOSTS``.
        median_diameter, mottle_hu: see :func:`~lesion_d2.data.phantoms.phantom.write_phantom`.
        taken: slice index -> H x W bool, pixels where no lesion may be painted, such as those of
            annotated lesions.

    Returns:
        The inserted lesions; all of them are visible on the key slice.

    Raises:
        ValueError: no height is 0, or their number differs from that of the slices.
    """
    heights = [float(z) for z in heights]
    if len(heights) != len(slices) or 0.0 not in heights:
        raise ValueError(
            f"heights: found {heights} for {len(slices)} slices, expected one per slice, with one 0"
        )
    stack = _Stack(slices, heights, pixel)
    taken = dict(taken)
    kinds = [kind for kind in LESION_TYPES if kind.coarse_type in set(types).intersection(HOSTS)]
    inserted = []
    for _ in range(number):
        lesion = stack.draw_lesion(rng, kinds, taken, median_diameter, mottle_hu)
        if lesion is None:
            break
        masks = stack.paint(lesion)
        inserted.append(InsertedLesion(lesion.kind.coarse_type, masks))
        for index, mask in masks.items():
            mark_taken(taken, index, grown(mask, _APART / pixel))
    return inserted


def mark_taken(taken: dict[int, np.ndarray], index: int, mask: np.ndarray) -> None:
    """Add a mask (H, W) to the pixels of a slice where no lesion may be painted."""
    taken[index] = taken[index] | mask if index in taken else mask


def grown(mask: np.ndarray, pixels: float) -> np.ndarray:
    """Dilate a mask (H, W) by a number of pixels along rows and columns; bool."""
    side = 2 * max(1, round(pixels)) + 1
    return cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)) > 0


class _Stack:
    """Slices that lesions are painted into.

    Args: see :func:`insert_lesions`.
    """

    def __init__(self, slices: np.ndarray, heights: list[float], pixel: float):
        self._slices, self._heights, self._pixel = slices, heights, pixel
        self.key = heights.index(0.0)
        smooth = smoothed(slices[self.key], pixel)
        self._hosts = hosts_of_smooth(smooth, pixel)
        self._found = set(np.flatnonzero(np.bincount(self._hosts.ravel())).tolist()) - {AIR}
        step = coarse_step(pixel)
        some = slice(None, None, step), slice(None, None, step)
        even = np.isin(self._hosts[some], (LIVER, FAT, SKIN_FAT))
        rest = (slices[self.key][some] - smooth[some])[even]
        # SD of the noise that smoothing removes from homogeneous tissue; HU
        self._noise = 1.4826 * float(np.median(np.abs(rest))) if len(rest) else 10.0

    def draw_lesion(
        self,
        rng: np.random.Generator,
        kinds: Sequence[LesionType],
        taken: Mapping[int, np.ndarray],
        median_diameter: float,
        mottle_hu: float,
    ) -> Lesion | None:
        """Sample a lesion that fits and is visible on the key slice; None if no try succeeds."""
        kinds = [kind for kind in kinds if HOSTS[kind.coarse_type] in self._found]
        shares = np.array([kind.share for kind in kinds])
        here = taken.get(self.key, np.zeros(self._slices.shape[1:], bool))
        key = self._empty_canvas(self.key, (slice(None), slice(None)))
        for _ in range(_TRIES if kinds else 0):
            kind = kinds[rng.choice(len(kinds), p=shares / shares.sum())]
            key.labels[:] = AIR
            key.labels[self._hosts == HOSTS[kind.coarse_type]] = kind.hosts[0]
            sizes = (median_diameter, mottle_hu)
            lesion = sample_lesion(rng, kind, key, here, *sizes, clinical=True, labeled=False)
            if lesion is not None and self._fits(lesion, taken):
                return lesion
        return None

    def _fits(self, lesion: Lesion, taken: Mapping[int, np.ndarray]) -> bool:
        """Whether it is visible on the key slice and lies in allowed pixels on all slices."""
        low, high, share = PAINTED_OVER[HOSTS[lesion.kind.coarse_type]]
        patch = self._patch(lesion)
        for index, canvas in self._canvases(lesion).items():
            before = canvas.hu.copy()
            cover = lesion.paint(canvas)
            if index in taken and (cover > 0)[taken[index][patch]].any():
                return False
            inside = cover > 0.5
            others = (before < low) | (before > high)
            # The soft edge counts, too.
            if others[cover > 0.25].sum() > share * inside.sum():
                return False
            if index == self.key and (
                inside.sum() < _MIN_PIXELS
                or np.abs(canvas.hu - before)[inside].mean() < _MIN_CONTRAST
            ):
                return False
        return True

    def _patch(self, lesion: Lesion) -> tuple[slice, slice]:
        """Rows and columns that a lesion may cover."""
        height, width = self._slices.shape[1:]
        bounds = []
        for center, size in ((lesion.center[1], height), (lesion.center[0], width)):
            low = math.floor((center - lesion.reach) / self._pixel) - 1
            high = math.ceil((center + lesion.reach) / self._pixel) + 2
            bounds.append(slice(max(low, 0), min(high, size)))
        return bounds[0], bounds[1]

    def _smooth(self, index: int, patch: tuple[slice, slice]) -> np.ndarray:
        """A patch of a slice without its noise."""
        margin = math.ceil(_BLUR_REACH / self._pixel)
        wide = [slice(max(part.start - margin, 0), part.stop + margin) for part in patch]
        smooth = smoothed(self._slices[index][wide[0], wide[1]], self._pixel)
        rows, columns = (
            slice(part.start - whole.start, part.stop - whole.start)
            for part, whole in zip(patch, wide, strict=True)
        )
        return smooth[rows, columns].copy()

    def _canvases(self, lesion: Lesion) -> dict[int, Canvas]:
        """Noise-free patches around a lesion, for the slices that it may reach."""
        patch, tissues, canvases = self._patch(lesion), {}, {}
        if lesion.kind.hosts[0] in HOST_TISSUE:
            tissues[HOST_TISSUE[lesion.kind.hosts[0]]] = self._host_hu(lesion)
        for index, height in enumerate(self._heights):
            if abs(height - lesion.center[2]) < lesion.reach:
                canvases[index] = self._empty_canvas(index, patch)
                canvases[index].hu = self._smooth(index, patch)
                canvases[index].tissues |= tissues
        return canvases

    def _empty_canvas(self, index: int, patch: tuple[slice, slice]) -> Canvas:
        size, pixel = self._slices.shape[1:], np.float32(self._pixel)
        y, x = (np.arange(n, dtype=np.float32)[p] * pixel for n, p in zip(size, patch, strict=True))
        straight = np.zeros((1, 1), np.float32)
        return Canvas(x, y, self._heights[index], (straight, straight), {"air": 0.0}, straight)

    def _host_hu(self, lesion: Lesion) -> float:
        """HU around a lesion on the key slice, before it is painted there."""
        center = [round(c / self._pixel) for c in (lesion.center[1], lesion.center[0])]
        reach = max(2, round(1.3 * lesion.radius / self._pixel))
        patch = tuple(
            slice(max(c - reach, 0), min(c + reach + 1, size))
            for c, size in zip(center, self._slices.shape[1:], strict=True)
        )
        return float(np.median(self._smooth(self.key, patch)))

    def paint(self, lesion: Lesion) -> dict[int, np.ndarray]:
        """Paint it into all slices that it reaches; returns its masks (H x W bool) there."""
        patch = self._patch(lesion)
        # For all slices before any is painted, so that all have the host's original HU.
        masks = {}
        for index, canvas in self._canvases(lesion).items():
            smooth = canvas.hu.copy()
            cover = lesion.paint(canvas)
            painted = self._slices[index][patch]
            rest = painted - smooth
            hu = canvas.hu + rest + cover * (self._noise_in(rest) - rest)
            if np.issubdtype(painted.dtype, np.integer):
                hu = np.rint(hu)
            painted[cover > 0] = hu[cover > 0]
            if (cover > 0.5).any():
                masks[index] = np.zeros(self._slices.shape[1:], bool)
                masks[index][patch] = cover > 0.5
        return masks

    def _noise_in(self, rest: np.ndarray) -> np.ndarray:
        """The noise in what smoothing removed, without structure such as a lung's vessels."""
        window = (max(3, round(_LOCAL / self._pixel)),) * 2
        local = np.sqrt(cv2.blur(np.float32(rest * rest), window)) + 1e-3
        noise = rest * np.minimum(1, _MAX_LOCAL_SD * self._noise / local)
        return np.clip(noise, -_MAX_NOISE * self._noise, _MAX_NOISE * self._noise)
