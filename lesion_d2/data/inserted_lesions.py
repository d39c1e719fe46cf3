"""Synthetic lesions in real slices: training data that needs no annotation.

A lesion of the clinical phantoms (:mod:`.phantom_looks`) is painted into a stack of real slices
where its type may grow: nodules in the lung, metastases and cysts in even soft tissue such as the
liver, nodes in the fat within the body, nodules in the fat under the skin. The slices' own noise
stays, inside the lesion, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .borders import find_body
from .phantom_lesions import HOST_TISSUE, LESION_TYPES, Lesion, sample_lesion
from .phantom_shapes import AIR, FAT, LIVER, LUNG, SKIN_FAT, Canvas

#: Coarse types that are inserted, with what holds them: types of what cannot be told from HU alone,
#: such as kidneys, are left out.
HOSTS = {2: FAT, 3: FAT, 4: LIVER, 5: LUNG, 7: SKIN_FAT, 8: FAT}
_SMOOTHING = 1.6  # mm, SD of the Gaussian that takes the noise from tissues
_SKIN_DEPTH, _INNER_DEPTH = 18.0, 32.0  # mm from the skin: fat under it, fat within the body
_EVEN_WINDOW, _EVEN_SD = 9.0, 11.0  # mm, HU: organs are as even as that
_SMALLEST_ORGAN = 2500.0  # mm^2
_MAX_NOISE = 3.0  # of the noise's SD: more is structure, which a lesion replaces
_MIN_CONTRAST = 15.0  # HU, on the key slice


@dataclass(frozen=True)
class InsertedLesion:
    """A lesion that was painted into slices.

    Attributes:
        coarse_type: 1..8, as in ``DL_info.csv``.
        masks: one of each slice, H x W bool.
    """

    coarse_type: int
    masks: list[np.ndarray]


def find_hosts(hu: np.ndarray, pixel: float) -> np.ndarray:
    """Where lesions may grow, from the HU of one slice.

    Args:
        hu: H x W.
        pixel: side of a pixel, mm.

    Returns:
        H x W uint8: ``LUNG``, ``LIVER`` (any even soft tissue of the size of an organ), ``FAT``
        (within the body), ``SKIN_FAT`` (under the skin), or ``AIR`` where nothing may grow.
    """
    smooth = cv2.GaussianBlur(np.asarray(hu, np.float32), (0, 0), _SMOOTHING / pixel)
    body = find_body(smooth, max(3, round(5 / pixel)))
    depth = cv2.distanceTransform(body.astype(np.uint8), cv2.DIST_L2, 5) * pixel
    hosts = np.full(hu.shape, AIR, np.uint8)
    hosts[body & (smooth > -920) & (smooth < -650) & (depth > 10)] = LUNG
    fat = (smooth > -135) & (smooth < -55)
    hosts[fat & body & (depth > 3) & (depth < _SKIN_DEPTH)] = SKIN_FAT
    hosts[fat & (depth > _INNER_DEPTH)] = FAT
    hosts[_find_organs(smooth, pixel) & (depth > 12)] = LIVER
    return hosts


def _find_organs(smooth: np.ndarray, pixel: float) -> np.ndarray:
    """Soft tissue that is even over the size of an organ; H x W bool."""
    window = (max(3, round(_EVEN_WINDOW / pixel)),) * 2
    mean, square = cv2.blur(smooth, window), cv2.blur(smooth * smooth, window)
    even = np.sqrt(np.maximum(square - mean * mean, 0)) < _EVEN_SD
    soft = np.uint8(even & (smooth > 35) & (smooth < 150))
    # Opened, so that an organ and the muscles along it come apart.
    side = max(3, round(8 / pixel))
    soft = cv2.morphologyEx(soft, cv2.MORPH_OPEN, np.ones((side, side), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(soft)
    large = stats[:, cv2.CC_STAT_AREA] * pixel**2 >= _SMALLEST_ORGAN
    large[0] = False
    return large[labels]


def insert_lesions(
    slices: np.ndarray,
    heights: Sequence[float],
    pixel: float,
    rng: np.random.Generator,
    *,
    number: int = 1,
    median_diameter: float = 16.0,
    mottle_hu: float = 5.0,
    taken: np.ndarray | None = None,
) -> list[InsertedLesion]:
    """Paint synthetic lesions into a stack of slices, where there is room for them.

    Args:
        slices: C x H x W HU, changed in place (rounded where they are integers).
        heights: mm along z of each of the C slices from the key slice, one of which is 0.
        pixel: side of a pixel, mm.
        rng: source of all choices.
        number: of lesions to insert, at most.
        median_diameter, mottle_hu: of the lesions, see
            :func:`~lesion_d2.data.phantom.write_phantom`.
        taken: H x W bool, pixels of the key slice where no lesion may be, such as annotated ones.

    Returns:
        The lesions, each of which the key slice shows.

    Raises:
        ValueError: no height is 0, or there is not one for each slice.
    """
    heights = [float(z) for z in heights]
    if len(heights) != len(slices) or 0.0 not in heights:
        raise ValueError(
            f"heights: found {heights} for {len(slices)} slices, expected one for each, and one 0"
        )
    stack = _Stack(slices, heights, pixel)
    taken = np.zeros(slices.shape[1:], bool) if taken is None else taken.copy()
    inserted = []
    for _ in range(number):
        lesion = stack.draw_lesion(rng, taken, median_diameter, mottle_hu)
        if lesion is None:
            break
        masks = stack.paint(lesion)
        inserted.append(InsertedLesion(lesion.kind.coarse_type, masks))
        reach = max(3, round(24 / pixel) | 1)
        near = cv2.dilate(masks[stack.key].astype(np.uint8), np.ones((reach, reach), np.uint8))
        taken |= near > 0
    return inserted


class _Stack:
    """Slices that lesions are painted into.

    Args: see :func:`insert_lesions`.
    """

    def __init__(self, slices: np.ndarray, heights: list[float], pixel: float):
        self._slices, self._pixel = slices, pixel
        self.key = heights.index(0.0)
        self._heights = heights
        width = _SMOOTHING / pixel
        self._smooth = [cv2.GaussianBlur(np.float32(hu), (0, 0), width) for hu in slices]
        self._hosts = find_hosts(slices[self.key], pixel)
        self._noise = self._measure_noise()

    def _measure_noise(self) -> float:
        """SD of what smoothing takes away, in even tissue; HU."""
        even = np.isin(self._hosts, (LIVER, FAT, SKIN_FAT))
        rest = (self._slices[self.key] - self._smooth[self.key])[even]
        return 1.4826 * float(np.median(np.abs(rest))) if len(rest) else 10.0

    def draw_lesion(
        self, rng: np.random.Generator, taken: np.ndarray, median_diameter: float, mottle_hu: float
    ) -> Lesion | None:
        """A lesion that the key slice has room for and shows, or None where four draws have not."""
        found = set(np.unique(self._hosts[~taken]).tolist())
        kinds = [k for k in LESION_TYPES if HOSTS.get(k.coarse_type) in found]
        for _ in range(4 if kinds else 0):
            shares = np.array([k.share for k in kinds])
            kind = kinds[rng.choice(len(kinds), p=shares / shares.sum())]
            canvas = self._canvas(self.key)
            canvas.labels = np.where(
                self._hosts == HOSTS[kind.coarse_type], kind.hosts[0], AIR
            ).astype(np.uint8)
            lesion = sample_lesion(
                rng, kind, canvas, taken, median_diameter, mottle_hu, clinical=True
            )
            if lesion is not None and self._is_seen(lesion):
                return lesion
        return None

    def _is_seen(self, lesion: Lesion) -> bool:
        before = self._smooth[self.key]
        canvas = self._canvas(self.key, lesion)
        inside = lesion.paint(canvas) > 0.5
        return bool(inside.any() and np.abs(canvas.hu - before)[inside].mean() >= _MIN_CONTRAST)

    def _canvas(self, index: int, lesion: Lesion | None = None) -> Canvas:
        """A slice without its noise; ``tissues`` has the host's HU around the lesion."""
        height, width = self._slices.shape[1:]
        x, y = (np.arange(n, dtype=np.float32) * np.float32(self._pixel) for n in (width, height))
        straight = np.zeros((1, 1), np.float32)
        canvas = Canvas(x, y, self._heights[index], (straight, straight), {"air": 0.0}, straight)
        canvas.hu = self._smooth[index].copy()
        if lesion is not None and lesion.kind.hosts[0] in HOST_TISSUE:
            column, row = (round(c / self._pixel) for c in lesion.center[:2])
            reach = max(2, round(1.3 * lesion.radius / self._pixel))
            rows = slice(max(row - reach, 0), row + reach + 1)
            columns = slice(max(column - reach, 0), column + reach + 1)
            around = self._smooth[self.key][rows, columns]
            canvas.tissues[HOST_TISSUE[lesion.kind.hosts[0]]] = float(np.median(around))
        return canvas

    def paint(self, lesion: Lesion) -> list[np.ndarray]:
        """Paint it into all slices; returns its mask (H x W bool) on each."""
        masks, limit = [], _MAX_NOISE * self._noise
        # Of all slices before any is painted: each has the host's HU as it was.
        canvases = [self._canvas(i, lesion) for i in range(len(self._slices))]
        for index, canvas in enumerate(canvases):
            cover = lesion.paint(canvas)
            masks.append(cover > 0.5)
            if not cover.any():
                continue
            rest = self._slices[index] - self._smooth[index]
            kept = rest + cover * (np.clip(rest, -limit, limit) - rest)
            self._smooth[index] = canvas.hu
            hu = canvas.hu + kept
            if np.issubdtype(self._slices.dtype, np.integer):
                hu = np.rint(hu)
            self._slices[index][cover > 0] = hu[cover > 0]
        return masks
