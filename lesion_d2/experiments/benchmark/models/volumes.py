"""Benchmark of 3-D detectors on a whole volume: time, and memory that does not grow along z."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from lesion_d2.data.volume_set.slices import voxels_slices
from lesion_d2.data.volume_set.voxels import write_voxels
from lesion_d2.data.volumetric.reading import array_record
from lesion_d2.engine import Trainer
from lesion_d2.engine.predictors.ensembles import as_evaluated
from lesion_d2.engine.predictors.prediction import build_test_mapper

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from .. import configs
from ..configs import load_config, with_all_candidates
from ..memory import peak_memory
from ..timing import Row, one_thread, time_calls

NUM_SLICES, FEWER_SLICES = 300, 100
SIZES = {"cpu": 160, "cuda": 320}  # pixels a side of a slice
_REPEATS = {"cpu": 1, "cuda": 5}
_SPACING = (0.7, 0.7, 1.25)  # x, y, z in mm: that of the paper's config


def measure_volumes(device: str, folder: Path) -> Iterator[Row]:
    """Inference on a volume of 300 slices, and its memory compared with a volume of 100.

    Volumes are read from ``.b2nd`` files in the tiles of the config. The untrained models have the
    maximum number of detections in a tile, TEST.DETECTIONS_PER_IMAGE. On a CPU, models are an
    eighth as wide as Detectron2's, and CPU time with one thread is measured.
    """
    files = configs.VOLUMES_GPU_CONFIGS if device == "cuda" else configs.VOLUMES_CPU_CONFIGS
    size = SIZES[device]
    long, short = (write_record(folder, number, size) for number in (NUM_SLICES, FEWER_SLICES))
    with one_thread() if device == "cpu" else contextlib.nullcontext():
        for file in files:
            cfg = with_all_candidates(load_config(file, device))
            name = f"{cfg.MODEL.META_ARCHITECTURE}, {device}:"
            model, mapper = build_evaluated(cfg), build_test_mapper(cfg)
            predict(model, mapper, short)  # kernels are chosen
            call = partial(predict, model, mapper, long)
            (times,) = time_calls([call], repeats=_REPEATS[device], warm_up=0, device=device)
            seconds = min(times.cpu_seconds) if device == "cpu" else times.min
            of_size = f"of {size} x {size}, {configs.name_of(file)}"
            note = f"{seconds / NUM_SLICES * 1e3:.3g} ms per slice, {of_size}"
            yield Row(f"{name} a volume of {NUM_SLICES} slices", 1e3 * seconds, "ms", None, note)
            del model
            a, b = (peak_memory(partial(predict_once, r), cfg) for r in (long, short))
            note = f"{a:.0f} against {b:.0f} MiB, slices {of_size}"
            title = f"{name} memory of {NUM_SLICES} slices / {FEWER_SLICES}"
            yield Row(title, a / b, "x", 1.15, note)


def write_record(folder: Path, num_slices: int, size: int) -> dict:
    """The record of a volume of noise on disk."""
    file = folder / f"volume_{num_slices}_{size}.b2nd"
    noise = np.random.default_rng(0).integers(-1000, 400, (num_slices, size, size))
    voxels = noise.astype(np.int16)
    write_voxels(file, voxels)
    record = array_record(voxels, _SPACING)
    del record["voxels"]
    return {**record, "files": list(voxels_slices(file).values())}


def build_evaluated(cfg: CfgNode) -> nn.Module:
    """The untrained model of a config, with the tiles of an evaluation."""
    return as_evaluated(cfg, Trainer.build_model(cfg).eval())


def predict(model: nn.Module, mapper, record: dict) -> int:
    """Inference as in an evaluation; returns the number of detections."""
    with torch.inference_mode():
        (output,) = model([mapper(record)])
    return len(output["instances"])


def predict_once(record: dict, cfg: CfgNode) -> None:
    """Build a model and run it on a volume once."""
    predict(build_evaluated(cfg), build_test_mapper(cfg), record)
