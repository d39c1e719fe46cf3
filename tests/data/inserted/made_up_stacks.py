"""Slices of a made-up body that lesions are painted into."""

import numpy as np

PIXEL = 1.5
ROWS, COLUMNS = np.mgrid[:200, :200]


def disk(x: float, y: float, radius: float) -> np.ndarray:
    return np.hypot(COLUMNS - x, ROWS - y) < radius


def make_stack(seed: int = 0, number: int = 3) -> np.ndarray:
    """A body of fat with an organ (radius 30) and a lung (radius 25); int16, noise of 10 HU."""
    hu = np.full((200, 200), -1000.0)
    hu[disk(100, 100, 90)] = -100
    hu[disk(70, 100, 30)] = 80
    hu[disk(135, 100, 25)] = -850
    noise = 10 * np.random.default_rng(seed).normal(size=(number, 200, 200))
    return np.rint(hu + noise).astype(np.int16)
