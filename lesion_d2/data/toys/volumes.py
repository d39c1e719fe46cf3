"""The toys of Retina U-Net (Jaeger et al., section 4.6) in 3-D: spheres in place of circles.

The paper has them in 2-D only, see :mod:`lesion_d2.data.toys.images`. Volumes of 32 x 64 x 64
voxels are zero except for one sphere, which is 0.2 brighter; then uniform noise in [0, 1) is added
to all voxels. The class, 0 or 1, is determined by the shape (``shells_shape``: a filled sphere, or
one with a hole in its center, which the mask has too), the pattern (``shells_pattern``: the same
volumes, but masks without holes), or the size (``spheres_scale``). Noise and contrast are the
paper's. Radii are our choice: less than half of those in 2-D, so that a volume is a single patch of
a detector on a CPU. So is the radius of the hole: its contrast of 0.2 is 7.7 standard deviations of
the mean of its 123 voxels (in 2-D: 4.8, of 49 pixels).
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..generated import write_data_set
from ..volume_set.form import Lesion, Volume, VolumeSet, lesion_of_mask, write_volume_set
from ..volume_set.voxels import EXTENSION, write_voxels
from .images import CONTRAST, HU_SCALE, HU_WINDOW, SPLITS, Task, ToyOptions

#: Size of a volume in voxels: slices, height and width.
SHAPE = (32, 64, 64)
#: Minimum distance in voxels between a sphere and each side of its volume.
MARGIN = 2
TASKS = {
    "shells_shape": Task("shells", (8, 8), ("sphere", "shell"), 3, hole_in_mask=True),
    "shells_pattern": Task("shells", (8, 8), ("sphere", "shell"), 3),
    "spheres_scale": Task("spheres", (7, 8), ("radius 7", "radius 8")),
}
#: Number of volumes per task.
DEFAULTS = ToyOptions(num_train=200, num_val=100, num_test=200)
_KINDS = tuple(dict.fromkeys(task.folder for task in TASKS.values()))


def make_toy_volume(
    task: str, split: str, index: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Generate volume ``index`` of a split and the mask of its sphere, of class ``index % 2``.

    Args:
        task: a key of :data:`TASKS`. The two tasks of shells have the same volumes.
        split: "train", "val" or "test".
        index: index of the volume in its split, from 0.
        seed: random seed of the data set.

    Returns:
        (32, 64, 64) float64, intensities in [0, 1.2), and (32, 64, 64) bool.
    """
    options = TASKS[task]
    kind = _KINDS.index(options.folder)
    rng = np.random.default_rng([seed, len(SHAPE), kind, SPLITS.index(split), index])
    reach = MARGIN + max(options.radii)
    center = [int(rng.integers(reach, size - reach)) for size in SHAPE]
    volume = rng.random(SHAPE)
    mask = _ball(center, options.radii[index % 2])
    bright = mask
    if options.hole_radius is not None and index % 2 == 1:
        bright = mask & ~_ball(center, options.hole_radius)
    volume[bright] += CONTRAST
    return volume, bright if options.hole_in_mask else mask


def _ball(center: list[int], radius: int) -> np.ndarray:
    grid = np.ogrid[tuple(slice(0, size) for size in SHAPE)]
    squares = [(axis - place) ** 2 for axis, place in zip(grid, center, strict=True)]
    return sum(squares) <= radius**2


def write_toy_volumes(
    folder: str | os.PathLike,
    *,
    num_train: int = DEFAULTS.num_train,
    num_val: int = DEFAULTS.num_val,
    num_test: int = DEFAULTS.num_test,
    seed: int = 0,
    overwrite: bool = False,
) -> list[Path]:
    """Write the three 3-D toys, each a volume set, atomically.

    They are ``<folder>/toy_shells_shape``, ``toy_shells_pattern`` and ``toy_spheres_scale``: in
    ``$DETECTRON2_DATASETS`` they are registered under these names, see
    :func:`~lesion_d2.data.volume_set.catalog.register_volume_set`, such as
    ``toy_shells_shape_volumes_train``. An intensity of 1 is 10,000 HU. The same options give the
    same bytes.

    Args:
        folder: the folder of data sets.
        num_train, num_val, num_test: number of volumes per task, half of them of each class. A
            larger split begins with the volumes of a smaller one.
        seed: random seed.
        overwrite: replace data sets that were written with other options.

    Returns:
        The data sets that were written, without those that existed.

    Raises:
        ValueError: an option is out of range.
        FileExistsError: a data set with other options exists and ``overwrite`` is not set, or
            anything other than a toy data set.
    """
    options = ToyOptions(num_train, num_val, num_test, seed)
    roots = {task: Path(folder, f"toy_{task}") for task in TASKS}
    return [
        root
        for task, root in roots.items()
        if write_data_set(
            root,
            "toy_volumes",
            options,
            partial(_write_task, task=task, options=options),
            overwrite=overwrite,
        )
    ]


def _write_task(root: Path, *, task: str, options: ToyOptions) -> None:
    places = [(split, index) for split in SPLITS for index in range(options.count(split))]
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    volumes = []
    for number, (split, index) in enumerate(tqdm(places, desc=f"Toys: {task}", unit="volume")):
        volume, mask = make_toy_volume(task, split, index, options.seed)
        name = f"{split}_{index:05d}"
        image = f"images/{name}{EXTENSION}"
        write_voxels(root / image, np.rint(HU_SCALE * volume).astype(np.int16))
        lesion = _lesion(number + 1, index % 2, mask)
        volumes.append(
            Volume(name, name, image, SHAPE, (1.0, 1.0, 1.0), lesions=(lesion,), window=HU_WINDOW)
        )
        splits[split].append(name)
    classes, source = TASKS[task].classes, {"format": "toy_volumes", "task": task}
    patients = {split: tuple(names) for split, names in splits.items()}
    write_volume_set(root, VolumeSet(classes, tuple(volumes), source, patients))


def _lesion(id: int, category: int, mask: np.ndarray) -> Lesion:
    first, last = (bound(np.argwhere(mask), axis=0) for bound in (np.min, np.max))
    part = mask[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))]
    return lesion_of_mask(id, category, part, offset=first.tolist(), shape=SHAPE)
