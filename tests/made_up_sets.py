"""A small data set of volumes, for the tests of what reads such."""

from pathlib import Path

from lesion_d2.data.volume_set.form import (
    Lesion,
    Volume,
    VolumeSet,
    lesion_of_mask,
    write_volume_set,
)
from lesion_d2.data.volume_set.voxels import write_voxels

import numpy as np

CLASSES = ("benign", "malignant")
SIZE = (48, 64)


def write_made_up_set(root: Path) -> tuple[Path, tuple[Volume, ...]]:
    """Write volumes with a mask, diameters, boxes alone, a region to ignore, and none of them.

    Returns:
        The folder, and its volumes: "a" of patient "p1" and "b" of "p2", whose spacing is not
        known; "single" and "empty" of "p3", of one slice each. "p1" and "p3" are in train, "p2" in
        val; in fold 0 it is the other way round.
    """
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    radii = np.array([0, 6, 8, 5, 0, 0])[:, None, None]
    mask = (x - 20) ** 2 + (y - 18) ** 2 < radii**2
    first = lesion_of_mask(1, 1, mask)
    second = Lesion(
        2,
        0,
        (50.0, 30.0, 2.0, 70.0, 40.0, 4.0),
        recist={3: (51.0, 35.0, 62.0, 35.0, 56.0, 31.0, 56.0, 39.0)},
        diameters_mm=(11.0, 7.0),
    )
    third = Lesion(3, 0, (10.0, 10.0, 0.0, 20.0, 22.0, 0.0))
    region = Lesion(4, 0, (40.0, 10.0, 0.0, 60.0, 30.0, 1.0), ignore=True)
    fifth = Lesion(5, 0, (30.0, 5.0, 0.0, 36.0, 15.0, 0.0))
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    volumes = (
        Volume(
            "a",
            "p1",
            "images/a.b2nd",
            (6, *SIZE),
            (0.7, 0.7, 2.5),
            (0.0, 0.0, 0.0),
            identity,
            (first, second),
            (-1350.0, 150.0),
        ),
        Volume("b", "p2", "images/b.b2nd", (4, *SIZE), lesions=(third, region)),
        Volume("single", "p3", "images/single.b2nd", (1, *SIZE), lesions=(fifth,)),
        Volume("empty", "p3", "images/empty.b2nd", (1, *SIZE)),
    )
    for seed, volume in enumerate(volumes):
        voxels = np.random.default_rng(seed).integers(-1000, 400, volume.shape)
        write_voxels(root / volume.image, voxels.astype(np.int16))
    splits = {"train": ("p1", "p3"), "val": ("p2",)}
    fold = {"train": ("p2",), "test": ("p1", "p3")}
    write_volume_set(root, VolumeSet(CLASSES, volumes, {"importer": "test"}, splits, (fold,)))
    return root, volumes
