"""Lesions of the synthetic patients: shape, place and contrast."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import cv2
import numpy as np

from .looks import UNEVEN_FACTOR, UNEVEN_SHARE, sample_look
from .shapes import BONE, FAT, KIDNEY, LIVER, LUNG, MUSCLE, SKIN_FAT, VESSEL, Canvas, Waves


@dataclass(frozen=True)
class LesionType:
    """Location and appearance of one of DeepLesion's coarse types.

    Attributes:
        coarse_type: 1..8, as in ``DL_info.csv``.
        share: probability of this type.
        heights: range in mm from the lung tips, for a patient of average size.
        hosts: labels of the tissues that it occurs in.
        max_diameter: mm.
        contrasts: tuples (probability, lowest, highest, relative): HU of the lesion, or, if
            ``relative``, HU added to the host tissue.
        window: DICOM window of its key slices, HU.
    """

    coarse_type: int
    share: float
    heights: tuple[float, float]
    hosts: tuple[int, ...]
    max_diameter: float
    contrasts: tuple[tuple[float, float, float, bool], ...]
    window: tuple[int, int] = (-175, 275)


_NODE = ((0.75, 25, 95, False), (0.25, 5, 25, False))
LESION_TYPES = (
    LesionType(1, 0.06, (40, 540), (BONE,), 40, ((0.8, 10, 70, False), (0.2, 800, 1100, False))),
    LesionType(2, 0.20, (300, 455), (FAT,), 50, _NODE),
    LesionType(3, 0.15, (50, 190), (FAT,), 40, _NODE),
    LesionType(4, 0.15, (205, 315), (LIVER,), 50, ((0.8, -85, -35, True), (0.2, 35, 60, True))),
    LesionType(
        5,
        0.20,
        (45, 220),
        (LUNG,),
        50,
        ((0.85, 0, 70, False), (0.15, -550, -250, False)),
        (-1500, 500),
    ),
    LesionType(6, 0.07, (315, 375), (KIDNEY,), 40, ((0.6, 0, 25, False), (0.4, -90, -45, True))),
    LesionType(
        7, 0.09, (40, 540), (SKIN_FAT, MUSCLE), 36, ((0.5, -5, 22, False), (0.5, 85, 140, False))
    ),
    LesionType(8, 0.08, (465, 545), (FAT,), 50, _NODE),
)


@dataclass(frozen=True)
class Lesion:
    """One lesion: an ellipsoid with a bumpy surface.

    Attributes:
        kind: its type.
        center: mm.
        radius: longest half-axis, mm.
        frame: 3 x 3, mm to the lesion's own axes in units of its half-axes.
        bumps: B x 4, direction (3) times frequency, and phase of each bump.
        height: amplitude of the bumps (B,), relative to the radius.
        hu: HU of the lesion, or HU added where ``relative``.
        core: HU added in the center (necrosis), often 0.
        mottle: texture of its interior, a random field of standard deviation 1.
        mottle_hu: standard deviation of the texture, HU.
        softness: width of the transition to the surroundings, mm.
        rim: HU added in the outer quarter of its radius.
        within: labels of the tissues that it is confined to; empty if it is not confined.
    """

    kind: LesionType
    center: tuple[float, float, float]
    radius: float
    frame: np.ndarray
    bumps: np.ndarray
    height: np.ndarray
    hu: float
    relative: bool
    core: float
    mottle: Waves
    mottle_hu: float
    softness: float = 0.0
    rim: float = 0.0
    within: tuple[int, ...] = ()

    @property
    def reach(self) -> float:
        """Largest distance of the surface from the center, mm."""
        return self.radius * (1 + float(np.abs(self.height).sum())) + self.softness / 2

    def inside(self, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
        """Approximate signed distance to the surface in mm, negative inside (x and y broadcast)."""
        offset = np.stack(np.broadcast_arrays(x, y, np.float32(z)), axis=-1) - self.center
        local = offset.astype(np.float32) @ self.frame.astype(np.float32).T
        length = np.sqrt((local**2).sum(axis=-1))
        direction = local / np.maximum(length, 1e-6)[..., None]
        waves = np.sin(direction @ self.bumps[:, :3].T.astype(np.float32) + self.bumps[:, 3])
        return (length - 1 - waves @ self.height) * self.radius

    def paint(self, canvas: Canvas, away: float = 0.0) -> np.ndarray:
        """Paint the lesion on a slice and return its coverage of each pixel, H x W (0..1).

        ``away``: offset in mm at which the texture is sampled, used by :class:`Distractor`.
        """
        cover = np.zeros(canvas.hu.shape, np.float32)
        (x, y, z), reach = self.center, self.reach
        patch = canvas.patch(x - reach, x + reach, y - reach, y + reach)
        if patch is None or abs(canvas.z - z) >= reach:
            return cover
        distance = self.inside(canvas.x[patch[1]], canvas.y[patch[0]][:, None], canvas.z)
        share = canvas.cover(distance, self.softness)
        if self.within:
            host = np.isin(canvas.labels[patch], self.within).astype(np.float32)
            share = share * cv2.blur(host, (3, 3))
        cover[patch] = share
        hu = canvas.hu[patch]
        deep = np.clip(-distance / self.radius - 0.35, 0, 0.3) / 0.3
        uneven = self.mottle(canvas.x[patch[1]], canvas.y[patch[0]], canvas.z + away)
        target = self.hu + self.core * deep + self.mottle_hu * uneven
        if self.rim:
            shell = 0.125 * self.radius  # half of its thickness, and the depth of its middle
            target = target + self.rim * np.maximum(1 - np.abs(distance + shell) / shell, 0)
        if self.relative:
            target = target + canvas.tissues[HOST_TISSUE[self.kind.hosts[0]]]
        hu += share * (target - hu)
        return cover


@dataclass(frozen=True)
class Distractor:
    """Looks like a lesion on its key slice, but continues through all slices.

    Every slice shows the lesion's outline on the key slice, shifted by the drift, and a texture
    that changes with height as a lesion's does. Only its extent in z tells the two apart. Heights
    within a slice differ as in the lesion, so that thick slices blur both equally.

    Attributes:
        lesion: the lesion that it looks like on the key slice.
        key_z: height of the key slice, mm.
        spacing: slice spacing, mm.
        drift: shift along x and y per mm of height, as of an oblique vessel.
    """

    lesion: Lesion
    key_z: float
    spacing: float
    drift: tuple[float, float]

    def paint(self, canvas: Canvas) -> np.ndarray:
        """Paint it on a slice and return its coverage of each pixel, H x W (0..1)."""
        away = self.spacing * round((canvas.z - self.key_z) / self.spacing)
        moved = copy.copy(canvas)  # paints into the same HU
        moved.x, moved.y = canvas.x - self.drift[0] * away, canvas.y - self.drift[1] * away
        moved.z = canvas.z - away
        return self.lesion.paint(moved, away)


HOST_TISSUE = {LIVER: "liver", KIDNEY: "medulla"}


def sample_lesion(
    rng: np.random.Generator,
    kind: LesionType,
    canvas: Canvas,
    taken: np.ndarray,
    median_diameter: float,
    mottle_hu: float,
    clinical: bool = False,
    labeled: bool = True,
) -> Lesion | None:
    """Sample a lesion of one type and its location on a key slice.

    Args:
        rng: random generator.
        kind: the type.
        canvas: the painted key slice; its labels give the location of the type's hosts.
        taken: H x W bool, pixels where no lesion may be (other lesions and their surroundings).
        median_diameter: mm; diameters are log-normal, between 3 mm (or 4.5 pixels) and the
            type's largest.
        mottle_hu: standard deviation of the lesions' texture, HU. For lesions that are not clinical
            it is multiplied by 0.5 to 1.5; the texture is what distinguishes them from similar
            structures.
        clinical: lesions look as on clinical CT, see :mod:`.looks`.
        labeled: canvases that the lesion is painted on have labels. A clinical lesion of the liver
            may then lie at the liver's surface, which limits it.

    Returns:
        The lesion, or None if the slice has no room for it.
    """
    diameter = median_diameter * np.exp(rng.normal(0, 0.6 if clinical else 0.5))
    at_surface = clinical and labeled and kind.coarse_type == 4
    rooms = _ROOM | ({4: _ROOM_AT_SURFACE} if at_surface else {})
    place = _find_place(rng, kind, canvas, taken, diameter, rooms)
    if place is None:
        return None
    center, radius = place
    squeeze = np.array([[1.0], *rng.uniform(0.6, 1.0, (2, 1))])
    shape = {
        "kind": kind,
        "center": center,
        "radius": radius,
        "frame": np.linalg.qr(rng.normal(size=(3, 3)))[0] / (radius * squeeze),
        "bumps": rng.normal(size=(6, 4)) * (*[rng.uniform(1.2, 2.6)] * 3, 3.0),
    }
    sample = _clinical_look if clinical else _mottled_look
    within = (LIVER, VESSEL) if at_surface else ()
    return Lesion(**shape, **sample(rng, kind, radius, mottle_hu), within=within)


def _find_place(
    rng: np.random.Generator,
    kind: LesionType,
    canvas: Canvas,
    taken: np.ndarray,
    diameter: float,
    rooms: dict[int, float],
) -> tuple[tuple[float, float, float], float] | None:
    """Center and radius of a lesion in mm; the radius is reduced if there is less room."""
    smallest = max(3.0, 4.5 * canvas.pixel)
    radius = float(np.clip(diameter, smallest, kind.max_diameter)) / 2
    host = np.isin(canvas.labels, kind.hosts) & ~taken
    room = cv2.distanceTransform(host.astype(np.uint8), cv2.DIST_L2, 3) * canvas.pixel
    for _ in range(4):
        # Lesions of bone and lymph nodes push their neighbors aside; others stay inside the host.
        places = np.flatnonzero(room >= min(0.85 * radius, rooms.get(kind.coarse_type, 99.0)))
        if len(places):
            break
        radius *= 0.75
    if not len(places) or 2 * radius < smallest:
        return None
    row, column = np.unravel_index(rng.choice(places), room.shape)
    z = canvas.z + rng.uniform(-0.3, 0.3) * radius
    return (float(canvas.x[column]), float(canvas.y[row]), float(z)), radius


def _mottled_look(
    rng: np.random.Generator, kind: LesionType, radius: float, mottle_hu: float
) -> dict[str, object]:
    """Appearance of lesions in mottled phantoms: sharp edges, and a texture that no tissue has."""
    _, low, high, relative = kind.contrasts[
        rng.choice(len(kind.contrasts), p=[c[0] for c in kind.contrasts])
    ]
    core = rng.uniform(-40, -10) if radius > 8 and rng.random() < 0.5 else 0.0
    return {
        "height": rng.normal(0, rng.uniform(0.04, 0.13), 6).clip(-0.15, 0.15),
        "hu": float(rng.uniform(low, high)),
        "relative": relative,
        "core": core,
        "mottle": Waves(rng, _MOTTLE_WAVELENGTHS, 12),
        "mottle_hu": mottle_hu * float(rng.uniform(0.5, 1.5)),
    }


def _clinical_look(
    rng: np.random.Generator, kind: LesionType, radius: float, mottle_hu: float
) -> dict[str, object]:
    """Sample a look of the type; small lesions have sharper edges and neither core nor rim."""
    look = sample_look(rng, kind.coarse_type)
    large = radius > 5
    factor = UNEVEN_FACTOR if rng.random() < UNEVEN_SHARE else 1.0
    return {
        "height": rng.normal(0, rng.uniform(0.02, 0.1), 6).clip(-0.15, 0.15),
        "hu": float(rng.uniform(*look.hu)),
        "relative": look.relative,
        "core": float(rng.uniform(*look.core)) * large,
        "mottle": Waves(rng, _CLINICAL_WAVELENGTHS, 12),
        "mottle_hu": mottle_hu * look.uneven * factor * float(rng.uniform(0.5, 1.5)),
        "softness": min(float(rng.uniform(*look.softness)), 0.8 * radius),
        "rim": float(rng.uniform(*look.rim)) * large,
    }


_MOTTLE_WAVELENGTHS = (5.0, 11.0)  # mm, shorter than those of any tissue
_CLINICAL_WAVELENGTHS = (6.0, 30.0)
# Required free distance around the center in mm, for coarse types that cross borders of tissues.
_ROOM = {1: 5.5, 2: 7.0, 3: 4.0, 7: 5.0, 8: 7.0}
_ROOM_AT_SURFACE = 2.0  # the same, for a lesion that ends at its organ's surface
