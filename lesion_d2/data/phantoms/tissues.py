"""HU of a synthetic patient's tissues, sampled for each series."""

from __future__ import annotations

import numpy as np


def sample_tissues(rng: np.random.Generator) -> dict[str, float]:
    """Sample HU of every tissue for one series: most with contrast medium, some without.

    ``name + ".sd"`` is the standard deviation of a tissue's texture.
    """
    enhanced = rng.random() < 0.85
    artery = rng.uniform(150, 270) if enhanced else rng.uniform(38, 48)
    vein = rng.uniform(130, min(artery, 190)) if enhanced else artery + rng.uniform(-3, 3)
    liver = rng.uniform(95, 125) if enhanced else rng.uniform(50, 64)
    return {
        "air": -1000.0,
        "table": rng.uniform(-250, 60),
        "skin": rng.uniform(10, 50),
        "fat": rng.uniform(-112, -92),
        "fat.sd": 6.0,
        "muscle": rng.uniform(45, 65),
        "muscle.sd": 6.0,
        "lung": rng.uniform(-880, -820),
        "lung.sd": 14.0,
        "gas": rng.uniform(-990, -900),
        "liver": liver,
        "liver.sd": 4.0,
        "spleen": liver + rng.uniform(-8, 22),
        "cortex": rng.uniform(160, 220) if enhanced else 34.0,
        "medulla": rng.uniform(110, 160) if enhanced else 30.0,
        "pancreas": rng.uniform(75, 105) if enhanced else 40.0,
        "pancreas.sd": 10.0,
        "bile": rng.uniform(2, 16),
        "urine": rng.uniform(0, 12),
        "organ": rng.uniform(50, 85),
        "organ.sd": 5.0,
        "heart": (artery + vein) / 3 if enhanced else 42.0,
        "artery": artery,
        "vein": vein,
        "lung vessel": rng.uniform(20, 120) if enhanced else 25.0,
        "wall": rng.uniform(55, 100) if enhanced else rng.uniform(35, 50),
        "fluid": rng.uniform(8, 30),
        "oral": rng.uniform(140, 320) if rng.random() < 0.5 else rng.uniform(10, 30),
        "stool": rng.uniform(-60, 60),
        "stool.sd": 90.0,
        "cortical": rng.uniform(550, 900),
        "marrow": rng.uniform(150, 270),
        "marrow.sd": 35.0,
        "disc": rng.uniform(70, 110),
        "cord": rng.uniform(25, 45),
    }


def sample_clinical_tissues(rng: np.random.Generator) -> dict[str, float]:
    """As :func:`sample_tissues`: non-contrast, arterial or portal phase, any liver."""
    tissues = sample_tissues(rng)
    phase = rng.choice(["native", "arterial", "portal"], p=[0.18, 0.22, 0.6])
    liver = {"native": (48, 66), "arterial": (62, 85), "portal": (92, 128)}[phase]
    tissues["liver"] = float(rng.uniform(*liver))
    if rng.random() < 0.2:  # fatty liver
        tissues["liver"] -= float(rng.uniform(15, 50))
    if phase == "native":
        artery = vein = float(rng.uniform(38, 48))
        rest = {"cortex": 34.0, "medulla": 30.0, "pancreas": 40.0, "spleen": 48.0}
    elif phase == "arterial":
        artery, vein = float(rng.uniform(230, 380)), float(rng.uniform(60, 140))
        rest = {"cortex": rng.uniform(170, 240), "medulla": rng.uniform(50, 90)}
        rest |= {"pancreas": rng.uniform(85, 120), "spleen": rng.uniform(90, 140)}
    else:
        artery, vein = float(rng.uniform(140, 200)), float(rng.uniform(140, 190))
        rest = {"cortex": rng.uniform(160, 210), "medulla": rng.uniform(130, 190)}
        rest |= {"pancreas": rng.uniform(75, 105), "spleen": rng.uniform(105, 135)}
    tissues |= {name: float(value) for name, value in rest.items()}
    tissues |= {"artery": artery, "vein": vein, "heart": (artery + vein) / 2.4}
    spread = {
        "table": (-50, 350),
        "marrow": (100, 230),
        "marrow.sd": (30, 65),
        "cortical": (400, 800),
        "fat.sd": (6, 16),
        "organ.sd": (5, 10),
        "oral.sd": (0, 50),
        "fluid.sd": (0, 15),
        "stool.sd": (60, 220),
    }
    tissues |= {name: float(rng.uniform(*ends)) for name, ends in spread.items()}
    return tissues
