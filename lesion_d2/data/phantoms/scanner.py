"""Simulated CT scanners: field of view, sharpness and noise."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

#: Pixel size in mm that the noise of a clinical scanner refers to.
REFERENCE_PIXEL = 0.75
#: Upsampling factor of clinical slices, which softens edges as a reconstruction does.
_COARSER = 1.6


@dataclass(frozen=True)
class Scanner:
    """A scanner with sharp slices, and noise that is correlated over two pixels.

    Attributes:
        noise: standard deviation, HU.
        fields: lowest and highest width of the field of view, relative to the body's width.
    """

    noise: float
    fields: tuple[float, float] = (1.02, 1.12)

    def painted_size(self, size: int) -> int:
        """Side in pixels at which slices of ``size`` pixels are painted."""
        return size

    def enlarge(self, painted: np.ndarray, size: int) -> np.ndarray:
        """Resize a painted slice or coverage to ``size`` x ``size`` pixels."""
        return painted

    def make_noise(self, rng: np.random.Generator, size: int, pixel: float) -> np.ndarray:
        """Noise in HU to be added, ``size`` x ``size`` pixels of ``pixel`` mm."""
        return self.noise * correlated_noise(rng, (size, size))


@dataclass(frozen=True)
class ClinicalScanner(Scanner):
    """Slices are painted coarsely and upsampled; the noise's correlation length is in mm.

    Attributes:
        noise: standard deviation at a pixel size of ``REFERENCE_PIXEL``, HU.
        fields: see :class:`Scanner`.
        kernel: standard deviation in mm of the Gaussian that correlates the noise.
    """

    fields: tuple[float, float] = (1.03, 1.5)
    kernel: float = 0.45

    def painted_size(self, size: int) -> int:
        """Side in pixels at which slices of ``size`` pixels are painted."""
        return round(size / _COARSER)

    def enlarge(self, painted: np.ndarray, size: int) -> np.ndarray:
        """Resize a painted slice or coverage to ``size`` x ``size`` pixels."""
        return cv2.resize(painted, (size, size), interpolation=cv2.INTER_LINEAR)

    def make_noise(self, rng: np.random.Generator, size: int, pixel: float) -> np.ndarray:
        """Noise in HU to be added; larger pixels average over a larger area and have less noise."""
        widths = [np.hypot(self.kernel, p / np.sqrt(12)) for p in (REFERENCE_PIXEL, pixel)]
        white = rng.standard_normal((size, size), np.float32)
        noise = cv2.GaussianBlur(white, (0, 0), widths[1] / pixel)
        return noise * np.float32(self.noise * widths[0] / widths[1] / noise.std())


def sample_scanner(rng: np.random.Generator, spacing: int) -> Scanner:
    """Sample the scanner of a series with slices ``spacing`` mm apart."""
    return Scanner(float(rng.uniform(8, 17)) * (1.2 if spacing == 1 else 1.0))


def sample_clinical_scanner(rng: np.random.Generator, spacing: int) -> ClinicalScanner:
    """Sample a scanner: 6.5 to 13.5 HU of noise, 20 % more at 1 mm; any kernel."""
    noise = float(rng.uniform(6.5, 13.5)) * (1.2 if spacing == 1 else 1.0)
    return ClinicalScanner(noise, kernel=float(rng.uniform(0.35, 0.75)))


def correlated_noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Noise of a soft CT kernel: standard deviation 1, correlated over about two pixels."""
    white = rng.standard_normal(shape, np.float32)
    noise = cv2.GaussianBlur(white, (0, 0), 0.7) - 0.5 * cv2.GaussianBlur(white, (0, 0), 1.8)
    return noise / noise.std()
