"""What makes tests quicker.

Detectron2 looks a key of a config up by writing the whole config as YAML and reading that: 0.1 s a
key. With four keys a run it was a quarter of the time of all tests that train. It logs configs in
colors, too.

Every file that is written whole is flushed to the disk, and a tiny run writes dozens: it waits
longer than it works. No test cuts the power. Every evaluation draws its curves, for 0.1 s.
Pictures are larger than most tests of what is drawn need.

A ResNet-50 takes 0.4 s to draw its first weights, of which most layers do so twice.

A tiny run reads its data sets some six times, each in as much time as two of its iterations.
"""

import math
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any
from unittest import mock

from lesion_d2.data.deeplesion import key_slices as deeplesion
from lesion_d2.evaluation import report
from lesion_d2.evaluation.volumetric import volume_evaluator

import pytest
import torch
from detectron2.engine import defaults
from torch import Tensor, nn

_NUM_DRAWN = 2**22
_LARGE = 2**12


def read_configs_quickly(patch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone, keys are looked up without writing them, configs logged plain."""
    for name, quicker in (("_try_get_key", _try_get_key), ("_highlight", lambda code, name: code)):
        if hasattr(defaults, name):
            patch.setattr(defaults, name, quicker)


def write_quickly(patch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone, no file is flushed to the disk, and no data set with all else."""
    patch.setattr(os, "fsync", lambda descriptor: None)
    patch.setattr(os, "sync", lambda: None)


def read_set_quickly(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Until the patch is undone, a set that does not change is read once with the same options.

    Only where it is registered; the log tells of each time as of the first.
    """
    load, kept = deeplesion.load_deeplesion, {}

    def load_once(csv_file: str, image_root: str, split: str | None, **options: Any) -> list[dict]:
        if Path(csv_file).parent != root:
            return load(csv_file, image_root, split, **options)
        key = image_root, split, *sorted(options.items())
        if key not in kept:
            with mock.patch.object(deeplesion, "logger") as log:
                kept[key] = pickle.dumps(load(csv_file, image_root, split, **options)), log
        dicts, log = kept[key]
        for call in log.info.call_args_list:
            deeplesion.logger.info(*call.args)
        return pickle.loads(dicts)

    patch.setattr(deeplesion, "load_deeplesion", load_once)


def draw_no_curves(patch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone, the figures of an evaluation's curves are empty files."""
    for module in (report, volume_evaluator):
        patch.setattr(module, "plot_froc", _touch_figures)


def _touch_figures(curves: object, file: os.PathLike, **options: object) -> None:
    for ending in (".png", ".pdf"):
        Path(file).with_suffix(ending).touch()


def draw_small(patch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone, pictures of ``visualize`` have 1/16 of their pixels."""
    for module in ("pictures", "rows", "slice_attention", "volumes"):
        patch.setattr(f"lesion_d2.tools.visualize.{module}.TILE_SIDE", 128)
    patch.setattr("lesion_d2.tools.visualize.pictures.PICTURE_SIDE", 256)


def draw_quickly(patch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone, weights of large layers are pieces of one drawn vector.

    The seed decides which. They are for models that are not trained.
    """
    for name in ("kaiming_uniform_", "kaiming_normal_"):
        patch.setattr(nn.init, name, partial(_initialize, getattr(nn.init, name)))


def _try_get_key(cfg: Any, *keys: str, default: Any = None) -> Any:
    for key in keys:
        with suppress(KeyError):
            return reduce(getitem, key.split("."), cfg)
    return default


def _initialize(
    initialize: Callable[..., Tensor],
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    **kwargs: Any,
) -> Tensor:
    """He initialization, by PyTorch's own function where a layer is small."""
    if kwargs or tensor.is_meta or not _LARGE <= tensor.numel() <= _NUM_DRAWN:
        return initialize(tensor, a, mode, nonlinearity, **kwargs)
    fan = nn.init._calculate_correct_fan(tensor, mode)
    std = nn.init.calculate_gain(nonlinearity, a) / math.sqrt(fan)
    start = torch.randint(_NUM_DRAWN - tensor.numel() + 1, ()).item()
    piece = _drawn(initialize.__name__)[start : start + tensor.numel()]
    with torch.no_grad():
        return tensor.copy_(piece.view(tensor.shape)).mul_(std)


@cache
def _drawn(name: str) -> Tensor:
    """Of variance 1."""
    generator, drawn = torch.Generator().manual_seed(0), torch.empty(_NUM_DRAWN)
    if name == "kaiming_normal_":
        return drawn.normal_(generator=generator)
    return drawn.uniform_(-math.sqrt(3), math.sqrt(3), generator=generator)
