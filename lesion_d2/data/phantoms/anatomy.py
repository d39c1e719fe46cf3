"""A synthetic patient: organs, bones and vessels in mm, and the painting of one slice of it.

The atlas below is a torso of 600 mm from the lung tips (z = 0) to the hips, simplified from any
anatomy book. Each patient scales, bends and populates it at random, so that vessels, bowel loops
and ribs run through the slices at their own angles.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .organs import (
    CAVITY,
    CAVITY_Y,
    behind_the_liver,
    bowel,
    chest,
    great_vessels,
    muscles,
    pelvis,
    ribs,
    small_vessels,
    spine,
    upper_abdomen,
)
from .shapes import (
    AIR,
    FAT,
    LUNG,
    MUSCLE,
    SKIN_FAT,
    Canvas,
    Ellipsoid,
    Sheet,
    Tubes,
    Waves,
)


@dataclass
class Body:
    """One patient's geometry in mm. ``stages`` are painted in order; later ones cover earlier ones.

    Attributes:
        scale: scale factors of the atlas along x, y and z.
        fat: thickness of the fat under the skin, mm.
        table: arcs of the table in mm, each as (distance below the back, c of the parabola (x / c)
            ** 2, half of its thickness).
        strength: thickness of the muscle wall, relative to the atlas.
        planes: fat planes between the layers of that wall, each as (relative depth, thickness in
            mm).
    """

    scale: tuple[float, float, float]
    fat: float
    table: tuple[tuple[float, float, float], ...] = ((7.0, 26.0, 1.5),)
    strength: float = 1.0
    planes: tuple[tuple[float, float], ...] = ()
    stages: list[Ellipsoid | Tubes | Sheet] = field(default_factory=list)
    bend: tuple[Waves, Waves] | None = None
    texture: Waves | None = None

    def half_widths(self, z: float) -> tuple[float, float]:
        """Half-widths of the body cavity at height z."""
        taper = np.interp(z, [0, 60, 200, 330, 450, 600], [0.72, 0.95, 1.03, 0.95, 0.95, 1.0])
        return CAVITY[0] * self.scale[0] * taper, CAVITY[1] * self.scale[1] * min(taper + 0.05, 1)

    def wall(self, z: float) -> float:
        """Thickness of the muscle wall around the cavity at height z."""
        atlas = np.interp(z, [0, 80, 200, 440, 540, 600], [24, 15, 12, 11, 22, 30])
        return self.strength * float(atlas)

    def outer_half_width(self) -> float:
        """Largest half-width of the body, skin included."""
        return max(self.half_widths(z)[0] + self.wall(z) + self.fat for z in range(0, 601, 20))


def sample_body(rng: np.random.Generator, clinical: bool = False) -> Body:
    """Sample a patient; a clinical one has more bowel, a larger liver and a different table."""
    scale = tuple(rng.uniform(low, high) for low, high in ((0.9, 1.12), (0.92, 1.1), (0.92, 1.08)))
    body = Body(scale, fat=float(rng.uniform(8, 28)))
    loops = 9
    if clinical:
        body.table, body.fat = _clinical_table(rng), float(rng.uniform(4, 26))
        body.strength, loops = float(rng.uniform(0.5, 1.0)), int(rng.integers(20, 46))
        shares = rng.uniform(0.15, 0.9, rng.integers(1, 4))
        body.planes = tuple((float(share), float(rng.uniform(0.5, 2.5))) for share in shares)
    body.bend = (Waves(rng, (60, 140), 4), Waves(rng, (60, 140), 4))
    body.texture = Waves(rng, (5, 35) if clinical else (9, 40), 14)
    lungs, abdomen = chest(rng), upper_abdomen(rng, clinical)
    intestines = bowel(rng, loops, top=265 if clinical else 300)
    # Clinical bowel does not overlap the liver.
    abdomen = intestines + abdomen if clinical else abdomen + intestines
    body.stages = [
        *lungs,
        *abdomen,
        *muscles(rng),
        *(behind_the_liver(rng) if clinical else ()),
        *great_vessels(rng),
        *small_vessels(rng),
        *pelvis(rng),
        *ribs(rng),
        *spine(rng),
    ]
    body.stages = [_scaled(stage, body.scale) for stage in body.stages]
    return body


def _clinical_table(rng: np.random.Generator) -> tuple[tuple[float, float, float], ...]:
    """One or two thin arcs."""
    gap, curve = float(rng.uniform(4, 22)), float(rng.uniform(22, 70))
    arcs = [(gap, curve, float(rng.uniform(1.0, 2.2)))]
    if rng.random() < 0.6:
        below = gap + float(rng.uniform(15, 60))
        arcs.append((below, curve * float(rng.uniform(0.7, 1.3)), float(rng.uniform(1.0, 2.2))))
    return tuple(arcs)


def paint_body(body: Body, x: np.ndarray, y: np.ndarray, z: float, tissues: dict) -> Canvas:
    """Paint the slice at height z (mm) over pixel centers x (W,) and y (H,) in mm.

    Returns:
        The canvas, with ``hu`` (H x W float32, no noise) and ``labels`` (H x W uint8).
    """
    bend = tuple(3.2 * waves(x, y, z) for waves in body.bend)
    canvas = Canvas(x, y, z, bend, tissues, body.texture(x, y, z))
    _paint_outline(canvas, body)
    _paint_lungs(canvas, body)
    painters = {Ellipsoid: canvas.ellipsoid, Tubes: canvas.tubes, Sheet: canvas.sheet}
    for stage in body.stages:
        painters[type(stage)](stage)
    return canvas


def _paint_outline(canvas: Canvas, body: Body) -> None:
    patch = (slice(None), slice(None))
    x, y = canvas.bent(patch)
    half, depth = body.half_widths(canvas.z)
    wall, fat = body.wall(canvas.z), body.fat
    back = 14.0  # the muscles along the spine

    def distance(half_x: float, front: float, rear: float) -> np.ndarray:
        """Signed distance in mm to the rounded outline with these extents."""
        center, half_y = (rear - front) / 2, (rear + front) / 2
        u, v = (x / half_x) ** 2, ((y - center) / half_y) ** 2
        return (np.sqrt(u + v - 0.35 * u * v) - 1) * half_y

    front, rear = depth - CAVITY_Y, depth + CAVITY_Y
    rings = [
        (fat + wall, 1.2 * fat + wall, fat + wall + back, "skin", MUSCLE),
        (fat + wall - 2, 1.2 * fat + wall - 2, fat + wall + back - 2, "fat", SKIN_FAT),
        (wall, wall, wall + back, "muscle", MUSCLE),
    ]
    for gap, curve, thick in body.table:
        table = rear + fat + wall + back + gap - (canvas.x / curve) ** 2  # around the patient
        canvas.paint(patch, canvas.cover(np.abs(canvas.y[:, None] - table) - thick), "table", AIR)
    for side, ahead, behind, tissue, label in rings:
        inside = canvas.cover(distance(half + side, front + ahead, rear + behind))
        canvas.paint(patch, inside, tissue, label)
        if tissue == "fat":
            canvas.body = inside
    for depth_share, thick in body.planes:
        side = depth_share * wall
        plane = distance(half + side, front + side, rear + side + depth_share * back)
        canvas.paint(patch, canvas.cover(np.abs(plane) - thick / 2), "fat", MUSCLE)
    canvas.cavity = canvas.cover(distance(half, front, rear))
    canvas.paint(patch, canvas.cavity, "fat", FAT)


def _paint_lungs(canvas: Canvas, body: Body) -> None:
    sx, sy, sz = body.scale
    z = canvas.z / sz
    for side in (-1, 1):
        dome = 218 - (34 if side < 0 else 26)
        height = 1 - abs((z - 150) / (145 if z < 150 else 110)) ** 3
        if height <= 0:
            continue
        patch = (slice(None), slice(None))
        x, y = canvas.bent(patch)
        u, v = x / sx - side * 70, y / sy - CAVITY_Y
        grow = np.sqrt(height)
        lung = canvas.cover((np.hypot(u / (54 * min(1.25 * grow, 1)), v / 82) - grow) * 54)
        floor = 262 - (262 - dome) * np.exp(-((u / 42) ** 2) - ((v + 6) / 55) ** 2)
        lung *= canvas.cover(z - floor) * canvas.cavity
        canvas.paint(patch, lung, "lung", LUNG)


def _scaled(stage, scale):
    """Scale a stage of the atlas to the patient's size."""
    factor = np.asarray(scale)
    if isinstance(stage, Ellipsoid):
        center, radii = stage.center * factor, stage.radii * factor
        return Ellipsoid(
            tuple(center), tuple(radii), stage.tissue, stage.label, stage.angle, stage.cavity
        )
    if isinstance(stage, Tubes):
        ends = stage.start * factor, stage.end * factor
        return Tubes(*ends, stage.radius, stage.tissue, stage.label, stage.cavity)
    sides = stage.a * factor[:2], stage.b * factor[:2]
    return Sheet(stage.z * factor[2], *sides, stage.radius, stage.tissue, stage.label, stage.shell)
