"""Benchmark of 3-D training patches: patches per second, and the time of MONAI's transforms."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lesion_d2.data.transforms.augmentation import RandomAffine
from lesion_d2.data.volume_set.slices import voxels_slices
from lesion_d2.data.volume_set.voxels import write_voxels
from lesion_d2.data.volumetric.augmentation import RandomVolumePatch
from lesion_d2.data.volumetric.mapper import VolumePatchMapper
from lesion_d2.data.volumetric.reading import array_record, model_shape, read_block
from lesion_d2.structures.rle import encode_mask

import numpy as np
import torch

from ..timing import Row, time_calls
from .voxels import real_volume

PATCH = (64, 128, 128)
_SPACING, _MODEL_SPACING = (0.7, 0.7, 2.0), (0.8, 0.8, 1.25)  # x, y, z in mm
_REPEATS = 9


def measure_patches(folder: Path) -> list[Row]:
    """Patches per second on one core, from a ``.b2nd`` file, with boxes and masks.

    Also the ratio of their time to that of MONAI's dictionary transforms, for the same part of the
    volume in memory and one mask. The augmentation is that of Jaeger et al.'s code: flips, any
    angle about z, scale.
    """
    record = _write_record(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader's process
    np.random.seed(0)
    rows = []
    for name, elastic in (("", 0.0), (", elastic", 3.0)):
        patches = RandomVolumePatch(
            size=PATCH,
            flip_probs=(0.5, 0.5, 0.5),
            affine=RandomAffine(math.pi, 0.0, 0.2, 0.0),
            elastic=elastic,
        )
        mapper = VolumePatchMapper(patches, spacing=_MODEL_SPACING, with_masks=True)
        calls = [partial(mapper.load, record), *_monai_calls(mapper, record, elastic > 0)]
        ours, *theirs = time_calls(calls, repeats=_REPEATS)
        seconds = float(np.median(ours.cpu_seconds))
        size = " x ".join(map(str, PATCH))
        note = f"a core, {size}, three lesions; {1e3 * seconds:.1f} ms"
        rows.append(Row(f"patches of volumes{name}", 1 / seconds, "/s", note=note))
        for times in theirs:
            other = float(np.median(times.cpu_seconds))
            note = f"{1e3 * seconds:.1f} against {1e3 * other:.1f} ms; ours reads the volume, too"
            rows.append(Row(f"patch{name} / MONAI's transforms", seconds / other, "x", 0.5, note))
    torch.set_num_threads(threads)
    return rows


def _write_record(folder: Path) -> dict:
    """A volume on disk with three lesions, balls of 12 pixels."""
    volume, file = real_volume(folder), folder / "patches.b2nd"
    write_voxels(file, volume)
    record = array_record(volume, _SPACING)
    del record["voxels"]
    return add_lesions({**record, "files": list(voxels_slices(file).values())})


def add_lesions(record: dict) -> dict:
    """Annotate three lesions, balls of 12 pixels, on a record of a volume, and return it."""
    depth, height, width = record["shape"]
    z, y, x = np.ogrid[:depth, :height, :width]
    for number, place in enumerate(((0.3, 0.3, 0.3), (0.5, 0.6, 0.4), (0.8, 0.5, 0.7))):
        center = [int(share * side) for share, side in zip(place, record["shape"], strict=True)]
        ball = ((z - center[0]) * 3) ** 2 + (y - center[1]) ** 2 + (x - center[2]) ** 2 < 12**2
        slices = np.flatnonzero(ball.any(axis=(1, 2))).tolist()
        middle, half = np.array(center[::-1]), np.array((17, 17, 4))
        record["annotations"].append(
            {
                "bbox": [*(middle - half).tolist(), *(middle + half).tolist()],
                "category_id": 0,
                "lesion_id": number,
                "segmentation": {n: encode_mask(ball[n]) for n in slices},
            }
        )
    return record


def _monai_calls(
    mapper: VolumePatchMapper, record: dict, elastic: bool
) -> list[Callable[[], object]]:
    """MONAI's transforms of a patch, as tensors in memory; None without MONAI."""
    try:
        from monai.transforms import Compose, Rand3DElasticd, RandAffined, RandFlipd
    except ImportError:
        return []
    warp = mapper.patches.draw(
        record["shape"], model_shape(record, mapper.spacing), np.zeros((0, 6))
    )
    ranges = warp.source_ranges(record["shape"])
    block = read_block(record, [a for a, _ in ranges], [b - a for a, b in ranges])
    image = torch.from_numpy(block.astype(np.float32))[None]
    sample = {"image": image, "label": (image > 0).float()}
    options = {
        "keys": ("image", "label"),
        "spatial_size": PATCH,
        "prob": 1.0,
        "rotate_range": (math.pi, 0, 0),
        "scale_range": (0.2, 0.2, 0.2),
        "mode": ("bilinear", "nearest"),
        "padding_mode": "border",
    }
    warps = RandAffined(**options)
    if elastic:
        warps = Rand3DElasticd(sigma_range=(5, 8), magnitude_range=(50, 150), **options)
    flips = [RandFlipd(("image", "label"), 0.5, axis) for axis in range(3)]
    return [partial(Compose([*flips, warps]), sample)]
