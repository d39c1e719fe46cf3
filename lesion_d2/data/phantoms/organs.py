"""Organs, bones and vessels of a synthetic patient, in mm of the atlas.

Each function samples the shapes of one part of the body, in painting order.
"""

import numpy as np

from .shapes import (
    BONE,
    BOWEL,
    FAT,
    KIDNEY,
    LIVER,
    MUSCLE,
    ORGAN,
    VESSEL,
    Ellipsoid,
    Sheet,
    Tubes,
    join_tubes,
    polyline,
)

# Half-widths (mm) of the body cavity that the atlas is drawn for, and its center's y.
CAVITY = (125.0, 84.0)
CAVITY_Y = -12.0


def _jitter(rng: np.random.Generator, values, sd: float) -> tuple[float, ...]:
    return tuple(np.asarray(values, float) + rng.normal(0, sd, len(values)))


def _wander(rng, start, heading, steps: int, length: float, bend: float) -> np.ndarray:
    """A random walk of ``steps`` pieces (mm) that turns by about ``bend`` radians at each."""
    points, heading = [np.asarray(start, float)], np.asarray(heading, float)
    for _ in range(steps):
        heading = heading / np.linalg.norm(heading) + rng.normal(0, bend, 3)
        points.append(points[-1] + length * heading / np.linalg.norm(heading))
    return np.array(points)


def _lung_tree(rng: np.random.Generator, side: int) -> Tubes:
    tubes = []
    for _ in range(20):
        start = _jitter(rng, (side * 32, 4, 135), 6)
        target = (side * rng.uniform(45, 115), rng.uniform(-75, 55), rng.uniform(20, 250))
        steps = 6
        length = np.linalg.norm(np.subtract(target, start)) / steps
        trunk = _wander(rng, start, np.subtract(target, start), steps, length, 0.22)
        first = rng.uniform(3.0, 5.5)
        tubes.append(polyline(trunk, np.linspace(first, 1, steps + 1), "lung vessel", VESSEL))
        for at in (2, 3, 4):
            twig = _wander(rng, trunk[at], trunk[at] - trunk[at - 1], 4, length * 0.7, 0.5)
            tubes.append(polyline(twig, np.linspace(first * 0.55, 0.8, 5), "lung vessel", VESSEL))
    return join_tubes(tubes)


def chest(rng: np.random.Generator) -> list:
    """Heart, and the vessels of the lungs."""
    heart = _jitter(rng, (16, -34, 188), 4)
    stages = [_lung_tree(rng, -1), _lung_tree(rng, 1)]
    stages += [
        Ellipsoid(heart, (54, 44, 50), "fat", FAT, 0.5),
        Ellipsoid(heart, (49, 39, 46), "heart", ORGAN, 0.5),
    ]
    for offset, radii, tissue in (
        ((20, 8, 4), (22, 17, 30), "artery"),
        ((-16, -12, 2), (20, 15, 30), "vein"),
        ((-8, 20, -18), (20, 11, 16), "artery"),
    ):
        center = np.add(heart, _jitter(rng, offset, 2))
        stages.append(Ellipsoid(tuple(center), radii, tissue, VESSEL, 0.5))
    return stages


def upper_abdomen(rng: np.random.Generator, clinical: bool = False) -> list:
    """Liver, spleen, stomach, pancreas and kidneys, with their vessels."""
    size = rng.uniform(1.0, 1.3) if clinical else rng.uniform(0.9, 1.12)
    right = _jitter(rng, (-60, -12, 262), 4)
    left = _jitter(rng, (8, -46, 250), 5)
    stomach = _jitter(rng, (58, -24, 262), 6)
    stages = [
        Ellipsoid(right, (66 * size, 74 * size, 78 * size), "liver", LIVER),
        Ellipsoid(left, (66 * size, 30, 42), "liver", LIVER, -0.25),
        Ellipsoid(_jitter(rng, (86, 26, 264), 4), (25, 42, 46), "spleen", ORGAN, 0.3),
    ]
    if clinical:
        stages += _fissures(rng)
    stages += _liver_vessels(rng, twigs=3 if clinical else 0)
    stages += [
        Ellipsoid(_jitter(rng, (-42, -28, 312), 4), (14, 18, 26), "bile", ORGAN),
        Ellipsoid(stomach, (36, 34, 50), "wall", BOWEL, 0.4),
        Ellipsoid(stomach, (32, 30, 46), "oral", BOWEL, 0.4),
        Ellipsoid(tuple(np.add(stomach, (3, -15, 0))), (22, 13, 34), "gas", BOWEL, 0.2),
    ]
    pancreas = [(-35, 0, 316), (-5, -14, 304), (35, -2, 292), (72, 18, 276)]
    points = np.array([_jitter(rng, p, 4) for p in pancreas])
    stages.append(polyline(points, [13, 10, 9, 8], "pancreas", ORGAN, cavity=True))
    for x, z in ((-60, 350), (60, 334)):
        center = np.array(_jitter(rng, (x, 34, z), 4))
        radii = np.array((27, 28, 54)) * rng.uniform(0.9, 1.15)
        inner = center - np.array((np.sign(x) * 5, 0, 0))
        stages += [
            Ellipsoid(tuple(center), tuple(radii), "cortex", KIDNEY),
            Ellipsoid(tuple(inner), tuple(radii - (9, 9, 12)), "medulla", KIDNEY),
            Ellipsoid(tuple(inner - (np.sign(x) * 9, 0, 0)), (11, 9, 22), "fat", FAT),
            Ellipsoid(tuple(inner - (np.sign(x) * 12, 0, 0)), (7, 5, 12), "urine", ORGAN),
        ]
    return stages


def _fissures(rng: np.random.Generator) -> list:
    """Fat between the lobes of the liver: dark streaks that are not lesions."""
    stages = []
    for start in ((-14, -60, 245), (-22, -30, 290)):
        heading = np.array((rng.normal(0, 0.2), 1.0, rng.normal(0, 0.3)))
        points = _wander(rng, _jitter(rng, start, 4), heading, 4, 9, 0.25)
        radius = rng.uniform(0.8, 2.6, len(points))
        stages.append(polyline(points, radius, "fat", ORGAN, cavity=True))
    return stages


def _liver_vessels(rng: np.random.Generator, twigs: int = 0) -> list:
    tubes = []
    for start in ((-18, 18, 222), (-30, -5, 285)):
        for _ in range(7):
            target = (rng.uniform(-110, 20), rng.uniform(-60, 45), rng.uniform(205, 310))
            heading = np.subtract(target, start)
            points = _wander(rng, start, heading, 5, np.linalg.norm(heading) / 5, 0.3)
            tubes.append(polyline(points, np.linspace(6, 1.5, 6), "vein", VESSEL, cavity=True))
            for _ in range(twigs):
                at = int(rng.integers(1, 5))
                twig = _wander(rng, points[at], points[at] - points[at - 1], 4, 9, 0.45)
                width = np.linspace(rng.uniform(1.5, 3), 0.8, 5)
                tubes.append(polyline(twig, width, "vein", VESSEL, cavity=True))
    return [join_tubes(tubes)]


def _loop(rng: np.random.Generator, steps: int, length: float, top: float = 300) -> np.ndarray:
    """A walk (K x 3) that stays in the front of the abdominal cavity, from height ``top`` on."""
    low, high = np.array((-85, -78, top)), np.array((85, 5, 520))
    points = [rng.uniform(low, high)]
    heading = rng.normal(size=3)
    for _ in range(steps):
        heading = heading / np.linalg.norm(heading) + rng.normal(0, 0.7, 3)
        outside = np.where(points[-1] < low, 1.0, np.where(points[-1] > high, -1.0, 0.0))
        heading = np.where(outside != 0, outside * np.abs(heading), heading)
        points.append(points[-1] + length * heading / np.linalg.norm(heading))
    return np.array(points)


def bowel(rng: np.random.Generator, loops: int, top: float) -> list:
    """The colon, and ``loops`` loops of small bowel below ``top`` (mm)."""
    stages = []
    for _ in range(loops):
        points = _loop(rng, 16, 16, top)
        radius = rng.uniform(6, 12) * rng.uniform(0.75, 1.25, len(points))
        content = rng.choice(["fluid", "oral", "gas", "wall"], p=[0.4, 0.35, 0.1, 0.15])
        stages.append(polyline(points, radius, "wall", BOWEL, cavity=True))
        stages.append(polyline(points, radius - rng.uniform(1.5, 3.5), content, BOWEL, cavity=True))
    colon = (
        [(-94, 8, 470), (-96, 8, 400), (-92, 0, 335), (-80, -38, 322), (-20, -66, 350)],
        [(-20, -66, 350), (40, -64, 340), (84, -30, 305), (97, 12, 330), (98, 14, 470)],
        [(98, 14, 470), (75, 10, 500), (40, 5, 508), (15, 30, 520), (0, 44, 545), (0, 48, 600)],
    )
    for points in colon:
        points = np.array([_jitter(rng, p, 4) for p in points])
        radius = rng.uniform(12, 19) * rng.uniform(0.85, 1.15, len(points))
        stages.append(polyline(points, radius, "wall", BOWEL, cavity=True))
        content = rng.choice(["gas", "stool"])
        stages.append(polyline(points, radius - 2.5, content, BOWEL, cavity=True))
    return stages


def muscles(rng: np.random.Generator) -> list:
    """The psoas and gluteal muscles."""
    stages = []
    for side in (-1, 1):
        psoas = [(26, 44, 320), (36, 44, 420), (48, 22, 500), (60, 0, 580)]
        points = np.array(psoas) * (side, 1, 1)
        radius = np.array([7, 17, 16, 13]) * rng.uniform(0.85, 1.2)
        stages.append(polyline(points, radius, "muscle", MUSCLE))
        gluteal = Ellipsoid((side * 75, 80, 570), (55, 34, 80), "muscle", MUSCLE, cavity=False)
        stages.append(gluteal)
    return stages


def behind_the_liver(rng: np.random.Generator) -> list:
    """Crura of the diaphragm and adrenal glands, which look like lymph nodes."""
    stages = []
    for side in (-1, 1):
        crus = [(side * 16, 22, 205), (side * 15, 28, 250), (side * 13, 36, 300), (10, 40, 335)]
        points = np.array([_jitter(rng, p, 2.5) for p in crus])
        stages.append(polyline(points, rng.uniform(2.5, 6.5, 4), "muscle", MUSCLE, cavity=True))
        top = np.array(_jitter(rng, (side * 42, 24, 282), 3))
        for _ in range(2):
            points = _wander(rng, top, (rng.normal(), rng.normal(), 2.0), 3, 8, 0.4)
            stages.append(polyline(points, rng.uniform(1.5, 3.5, 4), "organ", ORGAN, cavity=True))
    return stages


def great_vessels(rng: np.random.Generator) -> list:
    """Aorta, caval veins and their branches."""
    paths = [
        ("artery", [(-6, -22, 165), (-14, -26, 120), (-8, -18, 88), (10, 4, 78), (20, 26, 90)], 14),
        ("artery", [(20, 26, 90), (20, 34, 180), (14, 32, 260), (8, 24, 340), (6, 22, 432)], 11),
        ("vein", [(-24, -14, 60), (-26, -14, 160)], 9),
        ("vein", [(-20, 20, 205), (-22, 22, 300), (-20, 24, 440)], 11),
        ("artery", [(-10, -20, 120), (0, -4, 128), (30, -2, 132)], 11),
        ("vein", [(0, 0, 136), (-34, 4, 132)], 9),
        ("vein", [(-18, 12, 318), (-26, 0, 295), (-34, -6, 278)], 7),
        ("vein", [(-18, 14, 318), (10, 10, 300), (70, 22, 276)], 4.5),
        ("artery", [(8, 14, 310), (2, 2, 340), (-4, -12, 430)], 4),
        ("vein", [(-14, 10, 315), (-10, -2, 350), (-14, -14, 440)], 5),
    ]
    for side in (-1, 1):
        leg = [(6 * side, 22, 430), (34 * side, 18, 490), (56 * side, -24, 545)]
        paths.append(("artery", [*leg, (66 * side, -62, 600)], 6))
        paths.append(("vein", [(x - 9 * side, y + 12, z + 5) for x, y, z in leg], 7))
        paths.append(("artery", [(30 * side, 20, 480), (42 * side, 40, 530), (50, 42, 580)], 3.5))
        paths.append(("vein", [(-20, 22, 345), (58 * side, 34, 340)], 4.5))
        paths.append(("artery", [(8 * side, -16, 90), (14 * side, -4, 60), (22 * side, 0, 0)], 5))
    stages = []
    for tissue, points, radius in paths:
        points = np.array([_jitter(rng, p, 2.5) for p in points])
        radii = radius * rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, len(points))
        stages.append(polyline(points, radii, tissue, VESSEL))
    airways = [[(0, 2, 0), (0, 6, 105)], [(0, 6, 105), (-30, 6, 135)], [(0, 6, 105), (32, 8, 138)]]
    for points in airways:
        stages.append(polyline(points, np.full(2, 9.5), "wall", ORGAN))
        stages.append(polyline(points, np.full(2, 8.0), "gas", ORGAN))
    esophagus = np.array([(6, 24, 0), (5, 26, 100), (4, 24, 200), (30, 0, 240)])
    stages.append(polyline(esophagus, np.full(4, 8.0), "organ", ORGAN))
    return stages


def small_vessels(rng: np.random.Generator) -> list:
    """Winding vessels: round dots on a single slice, tubes across slices."""
    groups = {"artery": [], "vein": []}
    for i in range(70):
        tissue = ("artery", "vein")[i % 2]
        points = _loop(rng, 7, 13)
        points[:, 2] = 310 + (points[:, 2] - 300) * 1.2
        radius = rng.uniform(1.5, 4.5) * rng.uniform(0.8, 1.2, len(points))
        groups[tissue].append(polyline(points, radius, tissue, VESSEL, cavity=True))
    for _ in range(14):
        start = rng.uniform((-26, -55, 40), (26, 30, 200))
        points = _wander(rng, start, rng.normal(size=3), 4, 11, 0.5)
        radius = rng.uniform(1.5, 4, len(points))
        groups["vein"].append(polyline(points, radius, "vein", VESSEL, cavity=True))
    for side in (-1, 1):  # under the skin and between the muscles
        for _ in range(10):
            start = (side * rng.uniform(60, 140), rng.uniform(-90, 85), rng.uniform(0, 560))
            points = _wander(rng, start, (0, 0, 1), 5, 18, 0.5)
            groups["vein"].append(polyline(points, rng.uniform(1, 2, 6), "vein", VESSEL))
    return [join_tubes(tubes) for tubes in groups.values()]


def pelvis(rng: np.random.Generator) -> list:
    """Bladder, rectum, hip bones, and the heads of the femurs."""
    stages = [
        Ellipsoid(_jitter(rng, (0, -28, 560), 4), (44, 34, 38), "organ", ORGAN),
        Ellipsoid(_jitter(rng, (0, -28, 560), 1), (40, 30, 34), "urine", ORGAN),
        Ellipsoid(_jitter(rng, (0, 16, 566), 3), (30, 18, 26), "organ", ORGAN),
    ]
    z = np.array([440.0, 480, 530, 575, 600])
    for side in (-1, 1):
        inner = np.array([(70, 62), (50, 62), (52, 58), (70, 40), (74, 34)]) * (side, 1)
        outer = np.array([(88, 40), (112, -12), (108, -28), (92, -18), (84, -22)]) * (side, 1)
        stages.append(Sheet(z, inner, outer, np.array([3.0, 6, 7, 9, 9]), "marrow", BONE))
        for tissue, radius in (("cortical", 23), ("marrow", 20)):
            head = (side * 92, 2, 592)
            stages.append(Ellipsoid(head, (radius,) * 3, tissue, BONE, cavity=False))
    return stages


def ribs(rng: np.random.Generator) -> list:
    """Ribs with marrow, the sternum, and the shoulder blades."""
    drop = rng.uniform(55, 85)
    stages = []
    outer, inner = [], []
    for rib in range(12):
        reach = 1.0 if rib < 9 else (0.75, 0.6, 0.4)[rib - 9]
        angles = np.linspace(np.radians(72), np.radians(72 - 140 * reach), 14)
        for side in (-1, 1):
            wide = np.interp(rib, [0, 2, 7, 11], [0.75, 0.95, 1.05, 1.0])
            x = side * (CAVITY[0] * wide + 4) * np.cos(angles)
            y = CAVITY_Y + (CAVITY[1] * wide + 5) * np.sin(angles)
            z = 14 + 23.5 * rib + drop * np.linspace(0, reach, 14) ** 1.2
            points = np.stack([x, y, z], axis=1) + rng.normal(0, 0.8, (14, 3))
            radius = rng.uniform(4.6, 6.2, 14)
            outer.append(polyline(points, radius, "cortical", BONE))
            inner.append(polyline(points, radius - 2.0, "marrow", BONE))
    stages += [join_tubes(outer), join_tubes(inner)]
    front = CAVITY_Y - CAVITY[1]
    z = np.array([45.0, 120, 205])
    sternum = [
        np.array([(side * w, front + 2 - i) for i, w in enumerate((20, 14, 10))])
        for side in (-1, 1)
    ]
    stages.append(Sheet(z, *sternum, np.array([6.0, 6.5, 5]), "marrow", BONE))
    z = np.array([5.0, 60, 140])
    for side in (-1, 1):
        medial = np.array([(92, 60), (86, 82), (96, 84)]) * (side, 1)
        lateral = np.array([(128, 22), (132, 46), (106, 76)]) * (side, 1)
        stages.append(Sheet(z, medial, lateral, np.array([4.5, 4, 3]), "marrow", BONE))
    return stages


def spine(rng: np.random.Generator) -> list:
    """Vertebrae with their processes, discs, and the spinal cord."""
    stages = []
    pitch = rng.uniform(27, 31)
    for i, z in enumerate(np.arange(5.0, 600, pitch)):
        wide = np.interp(z, [0, 250, 450, 480, 600], [14, 19, 24, 34, 20])
        y = np.interp(z, [0, 150, 380, 480, 600], [48, 52, 46, 60, 74])
        center = np.array(_jitter(rng, (0, y, z), 1.0))
        deep = 0.72 * wide if z < 470 else 16
        tall = pitch * 0.56  # the ellipsoids overlap a little, so that discs stay thin
        stages.append(
            Ellipsoid(
                tuple(center + np.array((0, 0, pitch / 2))),
                (wide - 1, deep - 1, 5),
                "disc",
                ORGAN,
                cavity=False,
            )
        )
        for tissue, less in (("cortical", 0.0), ("marrow", 2.3)):
            radii = (wide - less, deep - less, tall - less)
            stages.append(Ellipsoid(tuple(center), radii, tissue, BONE, cavity=False))
        canal = center + np.array((0, deep + 9, 0))
        stages.append(Ellipsoid(tuple(canal), (14, 12, tall), "cortical", BONE, cavity=False))
        arms = [((0, 10, 2), (0, 32, 10), 4.5)]
        arms += [((side * 10, 4, 0), (side * 34, 14, 2 * (-1) ** i), 4.0) for side in (-1, 1)]
        for tissue, less in (("cortical", 0.0), ("marrow", 1.8)):
            pieces = [
                polyline(canal + np.array(arm[:2]), [arm[2] - less] * 2, tissue, BONE)
                for arm in arms
            ]
            stages.append(join_tubes(pieces))
        stages.append(Ellipsoid(tuple(canal), (9, 8, pitch), "cord", ORGAN, cavity=False))
    return stages
