"""What is measured on a slice and on a lesion, from HU alone.

Every measure is made alike on all data sets, so that differences between columns tell more than
the values: the widths, say, are those of edges as they cross pixels.
"""

from dataclasses import dataclass

from lesion_d2.data.transforms.borders import find_body

import cv2
import numpy as np

#: Edges of the histogram's bins, HU.
HISTOGRAM = np.arange(-1050, 455, 5)
#: Side in pixels of the patches that noise is measured in.
PATCH = 16
#: Lowest and highest HU of soft tissue, where it is smooth.
SOFT_TISSUE = (20.0, 160.0)
_FAT_PEAK, _SOFT_PEAK = (-140.0, -60.0), (20.0, 170.0)
_FLATTEST = 0.3  # share of a slice's patches: those without edges of organs
_INSIDE, _AROUND = 0.5, (1.25, 1.7)  # in half-axes of the box's ellipse
_NEIGHBORS = 60.0  # HU from the median around: beyond it is another tissue
_MIN_PIXELS = 6


@dataclass(frozen=True)
class SliceMeasures:
    """One slice.

    Attributes:
        body: share of the picture that the body covers.
        table: share of the picture outside the body that is denser than -500 HU.
        fat, soft: HU that fat and soft tissue have most often.
        noise: SD in the flattest patches of soft tissue, HU; NaN where there are none.
        skin: pixels in which the edge between air and skin rises from 10 to 90 %.
        histogram: share of the body in each bin of ``HISTOGRAM``.
        spectrum: power of the noise by spatial frequency, 0 to half a cycle a pixel in steps of
            1 / ``PATCH``, of sum 1; None where there are no flat patches.
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
        """Mean spatial frequency of the noise, cycles a pixel; NaN where it is not known."""
        if self.spectrum is None:
            return float("nan")
        return float(self.spectrum @ np.arange(len(self.spectrum)) / PATCH)


@dataclass(frozen=True)
class LesionMeasures:
    """One lesion, from its box.

    Attributes:
        side: longer side of the box, pixels.
        inside, contrast: median HU in its middle, and that less the median around it.
        uneven: SD in its middle after smoothing by 1.5 pixels, HU: its texture, and what is left of
            the noise.
        edge: pixels in which the edge rises from 10 to 90 %; NaN where the contrast is below 20 HU.
    """

    side: float
    inside: float
    contrast: float
    uneven: float
    edge: float

    @property
    def size_of_contrast(self) -> float:
        """The contrast without its sign, HU."""
        return abs(self.contrast)


def measure_slice(hu: np.ndarray) -> SliceMeasures | None:
    """Measure a slice.

    Args:
        hu: H x W.

    Returns:
        The measures; None where there is no body.
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
    """HU of the fullest bin between two values, of the histogram smoothed over three bins."""
    middles = (HISTOGRAM[:-1] + HISTOGRAM[1:]) / 2
    smooth = np.convolve(counts, np.ones(3), "same")
    here = (middles > low) & (middles < high)
    return float(middles[here][np.argmax(smooth[here])])


def flat_patches(hu: np.ndarray, body: np.ndarray) -> np.ndarray:
    """The flattest patches of soft tissue, each less its mean and slopes.

    Args:
        hu: H x W.
        body: H x W bool.

    Returns:
        N x ``PATCH`` x ``PATCH``, every other position at most; N may be 0.
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
    """Power by spatial frequency of N x P x P patches: P / 2 + 1 values of sum 1, from 0 on."""
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
    """Distance in which a profile goes from 10 to 90 % of the way between its least and its most.

    Args:
        profile: values that rise, evenly spaced.
        step: between two values.

    Returns:
        The distance, with linear interpolation; NaN where the profile is even.
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
    """Where ``share`` reaches a level, just before this index."""
    before, after = share[index - 1], share[index]
    return index - (after - level) / (after - before)


def measure_lesion(hu: np.ndarray, box: np.ndarray, margin: float) -> LesionMeasures | None:
    """Measure a lesion as if it filled the ellipse in its box.

    Args:
        hu: H x W.
        box: x1, y1, x2, y2, pixels.
        margin: pixels that the box is larger on each side than the lesion (DeepLesion's: 5).

    Returns:
        The measures; None where the lesion has too few pixels, or nothing around it is alike.
    """
    hu = np.asarray(hu, np.float32)
    x1, y1, x2, y2 = (float(value) for value in box)
    half_x, half_y = (max((b - a) / 2 - margin, 1.0) for a, b in ((x1, x2), (y1, y2)))
    rows, columns = np.ogrid[: hu.shape[0], : hu.shape[1]]
    # Pixel centers lie half a pixel from the corners that boxes count from.
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
    """Width in pixels of the edge, in the mean over rings around the lesion's middle."""
    if abs(middle - host) < 20:
        return float("nan")
    near = away < _AROUND[1]
    share = ((hu[near] - middle) / (host - middle)).clip(-1, 2)
    ring = (away[near] * radius).astype(int)
    profile = np.bincount(ring, share) / np.maximum(np.bincount(ring), 1)
    return rise_width(profile, 1.0)
