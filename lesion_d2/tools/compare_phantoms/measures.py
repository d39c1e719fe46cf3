"""Measures of slices and lesions, computed from HU.

They are computed in the same way for all data sets, so differences are more meaningful than values:
widths, for instance, include the width of a pixel.
"""

from dataclasses import dataclass

from lesion_d2.data.transforms.borders import find_body

import cv2
import numpy as np

#: Edges of the histogram's bins, HU.
HISTOGRAM = np.arange(-1050, 455, 5)
#: Side in pixels of the patches in which noise is measured.
PATCH = 16
#: Lowest and highest HU of smooth soft tissue.
SOFT_TISSUE = (20.0, 160.0)
_FAT_PEAK, _SOFT_PEAK = (-140.0, -60.0), (20.0, 170.0)
_FLATTEST = 0.3  # share of a slice's patches: those without edges of organs
_INSIDE, _AROUND = 0.5, (1.25, 1.7)  # in half-axes of the box's ellipse
_NEIGHBORS = 60.0  # HU from the median around; beyond is another tissue
_MIN_PIXELS = 6


@dataclass(frozen=True)
class SliceMeasures:
    """One slice.

    Attributes:
        body: share of the image covered by the body.
        table: share of the image outside the body that is denser than -500 HU.
        fat, soft: most frequent HU of fat and soft tissue.
        noise: SD in the flattest patches of soft tissue, HU; NaN if there are none.
        skin: distance in pixels in which the edge between air and skin rises from 10 to 90 %.
        histogram: share of the body in each bin of ``HISTOGRAM``.
        spectrum: power of the noise by spatial frequency, 0 to 0.5 cycles per pixel in steps of
            1 / ``PATCH``, with sum 1; None if there are no flat patches.
    """

    body: float
    table: float
    fat: float
    soft: float
    noise: float
    skin: float
    histogram: np.ndarray
    spectrum: np.ndarray | None

    @property
    def frequency(self) -> float:
        """Mean spatial frequency of the noise, cycles per pixel; NaN if unknown."""
        if self.spectrum is None:
            return float("nan")
        return float(self.spectrum @ np.arange(len(self.spectrum)) / PATCH)


@dataclass(frozen=True)
class LesionMeasures:
    """One lesion, measured in its box.

    Attributes:
        side: longer side of the box, pixels.
        inside, contrast: median HU in its center, and its difference from the median around it.
        uneven: SD in its center after smoothing by 1.5 pixels, HU: texture and residual noise.
        edge: distance in pixels in which the edge rises from 10 to 90 %; NaN if the contrast is
            below 20 HU.
    """

    side: float
    inside: float
    contrast: float
    uneven: float
    edge: float

    @property
    def size_of_contrast(self) -> float:
        """The absolute contrast, HU."""
        return abs(self.contrast)


def measure_slice(hu: np.ndarray) -> SliceMeasures | None:
    """Measure a slice.

    Args:
        hu: H x W.

    Returns:
        The measures; None if there is no body.
    """
    hu = np.asarray(hu, np.float32)
    body = find_body(hu)
    if not body.any():
        return None
    counts, _ = np.histogram(hu[body], bins=HISTOGRAM)
    near = cv2.dilate(body.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    patches = flat_patches(hu, body)
    return SliceMeasures(
        body=float(body.mean()),
        table=float(((hu > -500) & ~near).mean()),
        fat=_peak(counts, *_FAT_PEAK),
        soft=_peak(counts, *_SOFT_PEAK),
        noise=float(np.median(patches.std(axis=(1, 2)))) if len(patches) else float("nan"),
        skin=_skin_width(hu, body),
        histogram=counts / body.sum(),
        spectrum=noise_spectrum(patches) if len(patches) else None,
    )


def _peak(counts: np.ndarray, low: float, high: float) -> float:
    """HU of the highest bin between two values, in the histogram smoothed over three bins."""
    middles = (HISTOGRAM[:-1] + HISTOGRAM[1:]) / 2
    smooth = np.convolve(counts, np.ones(3), "same")
    here = (middles > low) & (middles < high)
    return float(middles[here][np.argmax(smooth[here])])


def flat_patches(hu: np.ndarray, body: np.ndarray) -> np.ndarray:
    """The flattest patches of soft tissue, each without its mean and slopes.

    Args:
        hu: H x W.
        body: H x W bool.

    Returns:
        N x ``PATCH`` x ``PATCH``, at most at every other position; N may be 0.
    """
    smooth = cv2.GaussianBlur(hu, (0, 0), 2)
    soft = np.uint8((smooth > SOFT_TISSUE[0]) & (smooth < SOFT_TISSUE[1]) & body)
    windows = np.lib.stride_tricks.sliding_window_view
    step = (slice(None, None, PATCH // 2),) * 2
    whole = windows(soft, (PATCH, PATCH))[step].all(axis=(2, 3))
    patches = windows(hu, (PATCH, PATCH))[step][whole].reshape(-1, PATCH**2)
    rows, columns = np.mgrid[:PATCH, :PATCH].reshape(2, -1)
    plane = np.stack([np.ones(PATCH**2), rows, columns], axis=1)
    slopes, *_ = np.linalg.lstsq(plane, patches.T.astype(float), rcond=None)
    patches = (patches.T - plane @ slopes).T
    order = np.argsort(patches.std(axis=1), kind="stable")
    flattest = patches[order[: int(np.ceil(_FLATTEST * len(patches)))]]
    return flattest.reshape(-1, PATCH, PATCH)


def noise_spectrum(patches: np.ndarray) -> np.ndarray:
    """Power by spatial frequency of N x P x P patches: P / 2 + 1 values from frequency 0, sum 1."""
    power = (np.abs(np.fft.fft2(patches)) ** 2).mean(axis=0)
    side = power.shape[0]
    frequencies = np.fft.fftfreq(side)
    ring = np.rint(np.hypot(frequencies[:, None], frequencies) * side).astype(int).ravel()
    radial = (np.bincount(ring, power.ravel()) / np.bincount(ring))[: side // 2 + 1]
    return radial / radial.sum()


def _skin_width(hu: np.ndarray, body: np.ndarray) -> float:
    """Median width of the edge between air and skin, at every fourth pixel of the outline."""
    contours, _ = cv2.findContours(body.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(contours, key=len)[::4, 0].astype(np.float32)
    inward = cv2.GaussianBlur(body.astype(np.float32), (0, 0), 3)
    x, y = outline.T.astype(int)
    normal = np.stack([g[y, x] for g in (cv2.Sobel(inward, -1, 1, 0), cv2.Sobel(inward, -1, 0, 1))])
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-6)
    away = np.arange(-8, 8.01, 0.25, np.float32)[:, None]
    at = [np.float32(c + away * n) for c, n in zip(outline.T, normal, strict=True)]
    profiles = cv2.remap(hu, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    widths = [rise_width(profile[:49], 0.25) for profile in profiles.T]  # to 4 pixels within
    return float(np.nanmedian(widths)) if not np.isnan(widths).all() else float("nan")


def rise_width(profile: np.ndarray, step: float) -> float:
    """Distance in which a profile rises from 10 to 90 % of the range between minimum and maximum.

    Args:
        profile: rising values, evenly spaced.
        step: distance of two values.

    Returns:
        The distance, with linear interpolation; NaN if the profile is constant.
    """
    low, high = float(profile.min()), float(profile.max())
    if high <= low:
        return float("nan")
    share = (profile - low) / (high - low)
    end = int(np.argmax(share >= 0.9))
    below = np.flatnonzero(share[: end + 1] <= 0.1)
    if not len(below):
        return float("nan")
    return (_crossing(share, end, 0.9) - _crossing(share, int(below[-1]) + 1, 0.1)) * step


def _crossing(share: np.ndarray, index: int, level: float) -> float:
    """The position before an index at which ``share`` reaches a level."""
    before, after = share[index - 1], share[index]
    return index - (after - level) / (after - before)


def measure_lesion(hu: np.ndarray, box: np.ndarray, margin: float) -> LesionMeasures | None:
    """Measure a lesion, assuming that it fills the ellipse in its box.

    Args:
        hu: H x W.
        box: x1, y1, x2, y2, pixels.
        margin: of the box around the lesion, pixels on each side (DeepLesion's: 5).

    Returns:
        The measures; None if the lesion has too few pixels, or its surroundings are inhomogeneous.
    """
    hu = np.asarray(hu, np.float32)
    x1, y1, x2, y2 = (float(value) for value in box)
    half_x, half_y = (max((b - a) / 2 - margin, 1.0) for a, b in ((x1, x2), (y1, y2)))
    rows, columns = np.ogrid[: hu.shape[0], : hu.shape[1]]
    # Pixel centers are half a pixel from the corners, which box coordinates refer to.
    away = np.hypot((columns + 0.5 - (x1 + x2) / 2) / half_x, (rows + 0.5 - (y1 + y2) / 2) / half_y)
    inside, around = away < _INSIDE, (away > _AROUND[0]) & (away < _AROUND[1])
    if inside.sum() < _MIN_PIXELS or around.sum() < _MIN_PIXELS:
        return None
    host = np.median(hu[around])
    around &= np.abs(hu - host) < _NEIGHBORS
    if around.sum() < _MIN_PIXELS:
        return None
    smooth = cv2.GaussianBlur(hu, (0, 0), 1.5)
    host = float(np.median(hu[around]))
    middle = float(np.median(hu[inside]))
    return LesionMeasures(
        side=max(x2 - x1, y2 - y1),
        inside=middle,
        contrast=middle - host,
        uneven=float(smooth[inside].std()),
        edge=_lesion_edge(hu, away, middle, host, (half_x + half_y) / 2),
    )


def _lesion_edge(
    hu: np.ndarray, away: np.ndarray, middle: float, host: float, radius: float
) -> float:
    """Width of the edge in pixels, averaged over rings around the lesion's center."""
    if abs(middle - host) < 20:
        return float("nan")
    near = away < _AROUND[1]
    share = ((hu[near] - middle) / (host - middle)).clip(-1, 2)
    ring = (away[near] * radius).astype(int)
    profile = np.bincount(ring, share) / np.maximum(np.bincount(ring), 1)
    return rise_width(profile, 1.0)
