"""Slices of bodies in air."""

import numpy as np

AIR = -1000


def make_body(size=(256, 256), center=(120, 130), radii=(60, 90)):
    y, x = np.ogrid[: size[0], : size[1]]
    inside = ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 <= 1
    return np.where(inside, 40, AIR).astype(np.int16)
