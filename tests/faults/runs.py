"""Runs of ``train_net.py`` on a tiny data set of a case, up to where they would begin."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from lesion_d2.data.deeplesion.key_slices import register_deeplesion
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.engine import load_config
from lesion_d2.engine.checks import check_inputs

import numpy as np
import pytest
import tiny_run
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from speed_up import draw_quickly, read_configs_quickly

from .kinds.csv_rows import CSV, png_files

DATASET = "faulty_train"
#: Of a run on it; nothing is evaluated.
OPTIONS = {
    "DATASETS__TRAIN": f"('{DATASET}',)",
    "DATASETS__TEST": "()",
    "TEST__EVAL_PERIOD": 0,
    "INPUT__PSEUDO_MASK": "ellipse",
}


@cache
def prepare() -> None:
    """Register the data set; it is read from where DETECTRON2_DATASETS then is."""
    patch = pytest.MonkeyPatch()
    read_configs_quickly(patch)
    draw_quickly(patch)
    if DATASET not in DatasetCatalog:
        register_deeplesion(DATASET, "$DETECTRON2_DATASETS/set", "train")


def set_files() -> Mapping[str, bytes]:
    """The data set's files: one lesion on each of two slices."""
    rows = [CSV.row(), CSV.row(File_name="000001_01_01_012.png")]
    return {f"set/{name}": data for name, data in png_files().items()} | {
        "set/DL_info.csv": CSV.text(rows)
    }


def use_sets_of(folder: Path) -> None:
    """Let the data set be the one in a folder."""
    os.environ["DETECTRON2_DATASETS"] = os.fspath(folder)


def start_run(folder: Path, *flags: str, **options: object) -> CfgNode:
    """Read the config and check all inputs of a run in a folder, as ``train_net.py`` does."""
    use_sets_of(folder)
    args = tiny_run.tiny_args(folder / "output", *flags, **{**OPTIONS, **options})
    cfg = load_config(args)
    check_inputs(cfg, args)
    return cfg


def lesion_masks(cfg: CfgNode) -> list[np.ndarray]:
    """The masks that the training learns, of each lesion, H x W bool."""
    mapper = LesionDatasetMapper(cfg, True)
    images = DatasetCatalog.get(DATASET)
    return [
        np.asarray(mask).astype(bool)
        for image in images
        for mask in mapper._masks(image, image["annotations"], mapper._read_slices(image)[1])
    ]
