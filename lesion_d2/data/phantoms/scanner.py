"""The scanner of the synthetic patients: field of view, sharpness and noise."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

#: Pixel side in mm for which the noise of a clinical scanner is given.
REFERENCE_PIXEL = 0.75
#: Pixels of a clinical slice for one that is painted: edges are as soft as a reconstruction's.
_COARSER = 1.6


@dataclass(frozen=True)
class Scanner:
    """How a slice becomes a picture: sharp, with noise that is correlated over two pixels.

    Attributes:
        noise: SD, HU.
        fields: lowest and highest width of the field of view, as a share of the body's.
    """

    noise: float
    fields: tuple[float, float] = (1.02, 1.12)

    def painted_size(self, size: int) -> int:
        """Pixels a side in which slices of ``size`` pixels are painted."""
        return size

    def enlarge(self, painted: np.ndarray, size: int) -> np.ndarray:
        """A painted slice or cover in ``size`` pixels a side."""
        return painted

    def make_noise(self, rng: np.random.Generator, size: int, pixel: float) -> np.ndarray:
        """HU to be added, ``size`` x ``size`` pixels of ``pixel`` mm."""
        return self.noise * correlated_noise(rng, (size, size))


@dataclass(frozen=True)
class ClinicalScanner(Scanner):
    """Slices are painted coarsely and enlarged, and noise has its size in mm.

    Attributes:
        noise: SD at pixels of ``REFERENCE_PIXEL``, HU.
        fields: see :class:`Scanner`.
        kernel: SD in mm of the Gaussian that correlates the noise.
    """

    fields: tuple[float, float] = (1.03, 1.5)
    kernel: float = 0.45

    def painted_size(self, size: int) -> int:
        """Pixels a side in which slices of ``size`` pixels are painted."""
        return round(size / _COARSER)

    def enlarge(self, painted: np.ndarray, size: int) -> np.ndarray:
        """A painted slice or cover in ``size`` pixels a side."""
        return cv2.resize(painted, (size, size), interpolation=cv2.INTER_LINEAR)

    def make_noise(self, rng: np.random.Generator, size: int, pixel: float) -> np.ndarray:
        """HU to be added: a larger pixel, which averages over more of it, has less noise."""
        widths = [np.hypot(self.kernel, p / np.sqrt(12)) for p in (REFERENCE_PIXEL, pixel)]
        white = rng.standard_normal((size, size), np.float32)
        noise = cv2.GaussianBlur(white, (0, 0), widths[1] / pixel)
        return noise * np.float32(self.noise * widths[0] / widths[1] / noise.std())


def sample_scanner(rng: np.random.Generator, spacing: int) -> Scanner:
    """Draw the scanner of a series whose slices are ``spacing`` mm apart."""
    return Scanner(float(rng.uniform(8, 17)) * (1.2 if spacing == 1 else 1.0))


def sample_clinical_scanner(rng: np.random.Generator, spacing: int) -> ClinicalScanner:
    """Draw the scanner of a series: 6.5 to 13.5 HU of noise, a fifth more at 1 mm; any kernel."""
    noise = float(rng.uniform(6.5, 13.5)) * (1.2 if spacing == 1 else 1.0)
    return ClinicalScanner(noise, kernel=float(rng.uniform(0.35, 0.75)))


def correlated_noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Noise of a soft CT kernel: standard deviation 1, correlated over about two pixels."""
    white = rng.standard_normal(shape, np.float32)
    noise = cv2.GaussianBlur(white, (0, 0), 0.7) - 0.5 * cv2.GaussianBlur(white, (0, 0), 1.8)
    return noise / noise.std()
