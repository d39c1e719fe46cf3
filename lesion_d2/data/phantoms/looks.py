"""Appearance of lesions on clinical CT, for each of DeepLesion's coarse types.

Shares are estimates; HU are typical values from the literature:

- liver: hypodense metastases, some with an enhancing rim (Sica, Ji and Ros, AJR 174, 2000), cysts
  with the density of water (Mortelé and Ros, RadioGraphics 21, 2001), and lesions brighter than a
  fatty liver or than one in the arterial phase;
- lung: solid, part-solid and ground-glass nodules (Hansell et al., Radiology 246, 2008);
- kidney: simple cysts of at most 20 HU, and solid masses that enhance less than the cortex
  (Bosniak, Radiology 262, 2012);
- bone: lytic lesions of soft-tissue density, and sclerotic lesions of 650 HU in metastases to 1,200
  HU in bone islands (Ulano et al., AJR 207, 2016);
- nodes of the mediastinum, abdomen and pelvis: as dense as soft tissue, some with a necrotic center
  (Ganeshalingam and Koh, Cancer Imaging 9, 2009).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Look:
    """One way that lesions of a type look.

    Attributes:
        share: probability among the looks of the type.
        hu: lowest and highest HU; added to the host tissue's if ``relative``.
        relative: see ``hu``.
        softness: width of the transition to the surroundings in mm, lowest and highest.
        rim: HU added in the outer shell, lowest and highest.
        core: HU added in the center, lowest and highest.
        uneven: factor of ``mottle_hu``.
    """

    share: float
    hu: tuple[float, float]
    relative: bool = False
    softness: tuple[float, float] = (0.5, 2.0)
    rim: tuple[float, float] = (0.0, 0.0)
    core: tuple[float, float] = (0.0, 0.0)
    uneven: float = 1.0


_NODES = (
    Look(0.70, (30, 100)),
    Look(0.20, (45, 110), core=(-50, -20)),
    Look(0.10, (0, 30), softness=(0.5, 1.5)),
)
#: Coarse type -> its looks.
LOOKS: dict[int, tuple[Look, ...]] = {
    1: (
        Look(0.55, (20, 90), softness=(1, 3)),
        Look(0.45, (500, 1100), softness=(1, 4), uneven=3.0),
    ),
    2: _NODES,
    3: _NODES,
    4: (
        Look(0.50, (-75, -20), relative=True, softness=(2, 6), core=(-20, 0)),
        Look(0.18, (-60, -20), relative=True, softness=(1, 4), rim=(15, 45), core=(-25, -5)),
        Look(0.20, (0, 20), softness=(0.5, 2)),
        Look(0.12, (15, 55), relative=True, softness=(1, 4)),
    ),
    5: (
        Look(0.72, (-20, 80), softness=(0.3, 1.5)),
        Look(0.14, (-650, -350), softness=(2, 6), uneven=4.0),
        Look(0.14, (-450, -250), softness=(2, 5), core=(250, 400), uneven=3.0),
    ),
    6: (
        Look(0.60, (0, 20), softness=(0.3, 1.5)),
        Look(0.40, (-90, -30), relative=True, softness=(1, 3), uneven=2.0),
    ),
    7: (
        Look(0.60, (20, 70), softness=(0.5, 3)),
        Look(0.25, (70, 120), softness=(0.5, 2)),
        Look(0.15, (0, 25), softness=(0.5, 2)),
    ),
    8: _NODES,
}

#: Lesions with a stronger texture: their share, and the factor of ``mottle_hu``.
UNEVEN_SHARE, UNEVEN_FACTOR = 0.12, 4.0


def sample_look(rng: np.random.Generator, coarse_type: int) -> Look:
    """Sample one of a type's looks."""
    looks = LOOKS[coarse_type]
    shares = np.array([look.share for look in looks])
    return looks[rng.choice(len(looks), p=shares / shares.sum())]
