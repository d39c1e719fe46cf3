"""Tissues that lesions may be inserted into, found from HU only.

HU do not distinguish organs: lesions of the liver's type are also inserted into the spleen.
"""

import cv2
import numpy as np

from ..phantoms.shapes import AIR, FAT, LIVER, LUNG, SKIN_FAT
from ..transforms.borders import find_body

#: Coarse types that are inserted, and their host tissues. Types whose host cannot be found from HU
#: only, such as kidneys, are excluded.
HOSTS = {2: FAT, 3: FAT, 4: LIVER, 5: LUNG, 7: SKIN_FAT, 8: FAT}
#: By host tissue: range of HU (smoothed) that a lesion may cover, and the share of its pixels per
#: slice that may lie outside that range. In a lung, vessels are outside; nodes displace soft
#: tissue. Bone is always outside, and so is air except in a lung.
PAINTED_OVER = {
    LUNG: (-1100.0, -300.0, 0.2),
    LIVER: (0.0, 180.0, 0.05),
    FAT: (-250.0, 180.0, 0.02),
    SKIN_FAT: (-250.0, 180.0, 0.02),
}
_SMOOTHING = 1.6  # mm, SD of the Gaussian that removes noise
_COARSE = 1.4  # mm
_SKIN_DEPTH, _INNER_DEPTH = 18.0, 32.0  # mm from the skin: subcutaneous fat, fat inside the body
_EVEN_WINDOW, _EVEN_SD = 9.0, 11.0  # mm, HU: maximum local SD in organs
_SMALLEST_ORGAN = 2500.0  # mm^2
_LUNG_OPENING, _SMALLEST_LUNG = 7.0, 900.0  # mm, mm^2: excludes rims of bowel gas
_RIGHT_OF_HEART = 45.0  # mm from the body's center, to the patient's right


def smoothed(hu: np.ndarray, pixel: float) -> np.ndarray:
    """Remove the noise of a slice (H, W); returns float32. ``pixel`` is the pixel size in mm."""
    return cv2.GaussianBlur(np.asarray(hu, np.float32), (0, 0), _SMOOTHING / pixel)


def find_hosts(hu: np.ndarray, pixel: float) -> np.ndarray:
    """Find the tissues that lesions may be inserted into on a slice.

    Args:
        hu: H x W, in DeepLesion's orientation.
        pixel: pixel size in mm.

    Returns:
        H x W uint8: ``LUNG``, ``LIVER`` (any homogeneous soft tissue of an organ's size, except
            what may be the heart), ``FAT`` (inside the body), ``SKIN_FAT`` (under the skin), or
            ``AIR`` for no host tissue.
    """
    return hosts_of_smooth(smoothed(hu, pixel), pixel)


def hosts_of_smooth(smooth: np.ndarray, pixel: float) -> np.ndarray:
    """Like :func:`find_hosts`, for the result of :func:`smoothed`; computed at about 1 mm."""
    step = coarse_step(pixel)
    hosts = _coarse_hosts(np.ascontiguousarray(smooth[::step, ::step]), step * pixel)
    if step > 1:
        hosts = hosts.repeat(step, axis=0).repeat(step, axis=1)
    return hosts[: smooth.shape[0], : smooth.shape[1]]


def coarse_step(pixel: float) -> int:
    """Downsampling step that gives pixels large enough to distinguish tissues."""
    return max(1, round(_COARSE / pixel))


def _coarse_hosts(smooth: np.ndarray, pixel: float) -> np.ndarray:
    body = find_body(smooth, max(3, round(5 / pixel)))
    depth = cv2.distanceTransform(body.astype(np.uint8), cv2.DIST_L2, 5) * pixel
    hosts = np.full(smooth.shape, AIR, np.uint8)
    lung = _find_lung(body & (smooth < -650), smooth, depth, pixel)
    hosts[lung] = LUNG
    fat = (smooth > -135) & (smooth < -55)
    hosts[fat & body & (depth > 3) & (depth < _SKIN_DEPTH)] = SKIN_FAT
    hosts[fat & (depth > _INNER_DEPTH)] = FAT
    organs = _find_organs(smooth, pixel, _may_be_heart(lung, body, pixel))
    hosts[organs & (depth > 12)] = LIVER
    return hosts


def _find_lung(dark: np.ndarray, smooth: np.ndarray, depth: np.ndarray, pixel: float) -> np.ndarray:
    """Regions as dark as lungs, of sufficient size and without bowel gas; H x W bool."""
    lung = np.uint8(dark & (smooth > -960) & (depth > 10))
    return _large_parts(_opened(lung, _LUNG_OPENING / pixel), _SMALLEST_LUNG / pixel**2)


def _find_organs(smooth: np.ndarray, pixel: float, excluded: np.ndarray) -> np.ndarray:
    """Soft tissue that is homogeneous over the size of an organ; H x W bool."""
    window = (max(3, round(_EVEN_WINDOW / pixel)),) * 2
    mean, square = cv2.blur(smooth, window), cv2.blur(smooth * smooth, window)
    even = np.sqrt(np.maximum(square - mean * mean, 0)) < _EVEN_SD
    soft = np.uint8(even & (smooth > 35) & (smooth < 150) & ~excluded)
    # The opening separates an organ from adjacent muscles.
    return _large_parts(_opened(soft, 8 / pixel), _SMALLEST_ORGAN / pixel**2)


def _may_be_heart(lung: np.ndarray, body: np.ndarray, pixel: float) -> np.ndarray:
    """Region of the heart, if the slice shows one; H x W bool.

    The heart lies between the lungs, at most a third of it on the patient's right. The dome of the
    liver lies between them, too, but mostly on the right; its left part is lost.
    """
    columns = np.arange(lung.shape[1])
    has_lung = lung.any(axis=1)
    first = np.where(has_lung, lung.argmax(axis=1), lung.shape[1])
    last = np.where(has_lung, lung.shape[1] - 1 - lung[:, ::-1].argmax(axis=1), -1)
    middle = np.flatnonzero(body.any(axis=0)).mean() if body.any() else 0.0
    left = columns > middle - _RIGHT_OF_HEART / pixel
    return (columns > first[:, None]) & (columns < last[:, None]) & left


def _opened(mask: np.ndarray, side: float) -> np.ndarray:
    """Morphological opening of ``mask`` (uint8) by a square with a side in pixels."""
    side = max(3, round(side))
    return cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((side, side), np.uint8))


def _large_parts(mask: np.ndarray, area: float) -> np.ndarray:
    """Connected components of at least ``area`` pixels; bool."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    large = stats[:, cv2.CC_STAT_AREA] >= area
    large[0] = False
    return large[labels]
