"""Data for the measurements: phantoms on disk, volumes of noise, and batches on the device."""

from pathlib import Path

from lesion_d2.config.volumetric import is_volumetric
from lesion_d2.data.phantoms.phantom import write_phantom
from lesion_d2.data.transfer import move_annotations

from detectron2.config import CfgNode

from ..benchmark.inputs import random_batch
from ..benchmark.models.bai import with_weak_views
from ..benchmark.models.monai import random_volumes
from ..benchmark.models.volumes import SIZES, write_record
from ..benchmark.samples.patches import add_lesions

NUM_SLICES = 300
_PHANTOM = {"num_patients": 12, "size": 512, "extent_mm": 14.0}
_TINY_PHANTOM = {"num_patients": 5, "size": 64, "workers": 1}
_TINY_VOLUME = (24, 80)  # slices, and pixels a side


def phantom(folder: Path, *, tiny: bool) -> Path:
    """A data set of phantoms, written on first use."""
    root = folder / "phantom"
    write_phantom(root, **(_TINY_PHANTOM if tiny else _PHANTOM))
    return root


def volume(folder: Path, *, tiny: bool) -> dict:
    """The record of a volume of noise with three lesions, which is written first."""
    num_slices, size = _TINY_VOLUME if tiny else (NUM_SLICES, SIZES["cuda"])
    return add_lesions(write_record(folder, num_slices, size))


def made_up_batch(cfg: CfgNode, device: str) -> list[dict]:
    """A training batch of noise on the device."""
    batch = random_volumes(cfg) if is_volumetric(cfg) else random_batch(cfg)
    if cfg.MODEL.MEAN_TEACHER.ENABLED:
        batch = with_weak_views(batch, masks=cfg.MODEL.MASK_ON)
    for sample in batch:
        for key in ("image", "weak_image"):
            if key in sample:
                sample[key] = sample[key].to(device)
        move_annotations(sample, lambda tensor: tensor.to(device))
    return batch
