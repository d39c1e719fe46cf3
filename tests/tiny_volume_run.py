"""A run of ``train_net.py`` in 3-D that takes seconds: a thin model, patches of small volumes."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lesion_d2.data.volume_set.catalog import register_volume_set
from lesion_d2.data.volume_set.form import Volume, VolumeSet, lesion_of_mask, write_volume_set
from lesion_d2.data.volume_set.voxels import write_voxels

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_run import tiny_args, tiny_command  # first: it makes detectron2 importable

#: Of every volume: slices, height, width, and x, y, z in mm.
SHAPE, SPACING = (20, 40, 48), (1.0, 1.0, 2.0)
NAME = "tiny_balls"
_OPTIONS = {
    "MODEL.META_ARCHITECTURE": "RetinaUNet3D",
    "MODEL.BACKBONE.NAME": "build_resnet_unet_fpn_3d_backbone",
    "MODEL.PIXEL_MEAN": [127.5],
    "MODEL.PIXEL_STD": [127.5],
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.VOLUMETRIC.HEAD_CHANNELS": 8,
    "MODEL.VOLUMETRIC.ANCHOR_DEPTHS": [[4.0], [6.0], [8.0], [12.0]],
    "MODEL.ANCHOR_GENERATOR.NAME": "AnchorGenerator3D",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8.0], [12.0], [16.0], [24.0]],
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": (1.0,) * 6,
    "INPUT.VOLUME.PATCH_SIZE": (16, 32, 32),
    "DATASETS.TRAIN": (f"{NAME}_volumes_train",),
    "DATASETS.TEST": (f"{NAME}_volumes_val",),
    "SOLVER.IMS_PER_BATCH": 2,
    "TEST.BEST_METRIC": "volume/AP10",
    "TEST.WRITE_MASKS": False,
}


def volume_args(output_dir: str | os.PathLike, *flags: str, **changes) -> argparse.Namespace:
    """The command line of a tiny run on :func:`balls`, parsed, see ``tiny_run.tiny_args``."""
    return tiny_args(output_dir, *flags, **_options(changes))


def volume_command(output_dir: str | os.PathLike, *flags: str, **changes) -> list[str]:
    """As :func:`volume_args`, not parsed."""
    return tiny_command(output_dir, *flags, **_options(changes))


def _options(changes: dict) -> dict:
    return {**_OPTIONS, **{key.replace("__", "."): value for key, value in changes.items()}}


def write_balls(root: Path, num_patients: int = 6) -> Path:
    """Write a data set of volumes with one or two bright balls each; a third of the patients val.

    Every patient's second volume is empty.
    """
    z, y, x = np.mgrid[tuple(slice(0, side) for side in SHAPE)]
    volumes = []
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    for number in range(2 * num_patients):
        rng = np.random.default_rng(number)
        voxels, lesions = rng.integers(-950, -850, SHAPE), []
        for i in range(int(rng.integers(1, 3)) if number % 2 == 0 else 0):
            center = rng.integers((5, 8, 8 + 20 * i), (15, 32, 18 + 20 * i))
            radius = int(rng.integers(4, 8))
            ball = ((z - center[0]) * 2) ** 2 + (y - center[1]) ** 2 + (x - center[2]) ** 2
            mask = ball <= radius**2
            voxels[mask] = rng.integers(0, 100, mask.sum())
            lesions.append(lesion_of_mask(2 * number + i + 1, 0, mask))
        name, patient = f"v{number}", f"p{number // 2}"
        file = f"images/{name}.b2nd"
        write_voxels(root / file, voxels.astype(np.int16))
        volumes.append(
            Volume(name, patient, file, SHAPE, SPACING, (0.0,) * 3, identity, tuple(lesions))
        )
    patients = [f"p{number}" for number in range(num_patients)]
    cut = num_patients - num_patients // 3
    splits = {"train": tuple(patients[:cut]), "val": tuple(patients[cut:])}
    made_up = VolumeSet(("lesion",), tuple(volumes), {"importer": "test"}, splits, ())
    write_volume_set(root, made_up)
    return root


@contextmanager
def balls(root: Path) -> Iterator[Path]:
    """Write :func:`write_balls` and have it registered."""
    write_balls(root)
    names = register_volume_set(root, NAME)
    try:
        yield root
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
