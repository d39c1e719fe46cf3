"""Benchmark of samples, of the annotation file and of GrabCut."""

import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from lesion_d2.config import get_lesion_config
from lesion_d2.data.deeplesion.key_slices import load_deeplesion
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.prepared.slices import prepared_file
from lesion_d2.data.pseudo_masks import METHODS
from lesion_d2.tools.prepare_masks import WHOLE_SLICE, Comparison, dice_against_truth
from lesion_d2.tools.prepare_slices import prepare_slices

import cv2
import numpy as np
import pandas as pd
import torch

from ..inputs import LARGE, SMALL, prepare_phantom, registered, write_rows
from ..timing import Row, time_calls

NUM_ROWS = 32_735  # of DL_info.csv
_FEWER_ROWS = (4_092, 1_023)  # growth of the time per row with the size of the file
DIAMETERS = (5, 60)  # px, of the lesions for the comparison of masks


def measure_slices(folder: Path) -> list[Row]:
    """3-slice samples of the loader, from both kinds of files, against ``cv2.imread`` of slices."""
    root = prepare_phantom(folder, **LARGE)
    prepare_slices(root, workers=1)
    records = load_deeplesion(root / "DL_info.csv", root / "Images_png", None)
    mappers = _mappers()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader's process
    sides = defaultdict(list)
    for record in records:
        files = _slices_of(record)
        if not all(file.exists() for file in files):
            continue
        calls = {"imread": partial(_imread, files)}
        for name, mapper in mappers.items():
            calls[name] = partial(_load, mapper, record)
            calls[name, "prepared"] = partial(_load, mapper, _of_prepared(record))
        calls["windowed"] = partial(mappers["inference"], record)
        for side, times in zip(calls, time_calls([*calls.values()], repeats=5), strict=True):
            sides[side].append(min(times.cpu_seconds) * 1000)
    torch.set_num_threads(threads)
    medians = {side: statistics.median(values) for side, values in sides.items()}
    return _sample_rows(medians, len(sides["imread"]))


def _mappers() -> dict[str, LesionDatasetMapper]:
    """Samples for inference; and for training, with all augmentations and both kinds of masks."""
    cfg = get_lesion_config()
    cfg.INPUT.CT.IMAGE_SIZE, cfg.MODEL.MASK_ON = 0, True
    mappers = {"inference": LesionDatasetMapper(cfg, is_train=False)}
    for method in METHODS:
        cfg.INPUT.PSEUDO_MASK = method
        mappers[method] = LesionDatasetMapper(cfg, is_train=True)
    return mappers


def _slices_of(record: dict) -> list[Path]:
    """The files of a sample's three slices, from the spacing of a phantom's series."""
    key, offsets = Path(record["file_name"]), {1.0: (-2, 0, 2), 2.0: (-1, 0, 1), 5.0: (-1, 0, 1)}
    return [key.with_stem(f"{int(key.stem) + i:03d}") for i in offsets[record["spacing"][2]]]


def _imread(files: Sequence[Path]) -> None:
    for file in files:
        cv2.imread(str(file), cv2.IMREAD_UNCHANGED)


def _load(mapper: LesionDatasetMapper, record: dict) -> None:
    np.random.seed(0)  # the same augmentation for both kinds of files
    mapper.load(record)


def _of_prepared(record: dict) -> dict:
    folder, png = os.path.split(record["file_name"])
    return {**record, "file_name": os.path.join(prepared_file(folder), png)}


def _sample_rows(medians: Mapping[object, float], number: int) -> list[Row]:
    """Rows of the medians in ms."""
    imread = medians["imread"]
    rows = []
    for side, name, limit in (
        ("inference", "3-slice sample (int16) / imread", 1.5),
        ("windowed", "3-slice sample (float32, windowed) / imread", 1.5),
        ("ellipse", "training sample, ellipses / imread", 1.6),
        ("grabcut", "training sample, GrabCut / imread", 2.4),
    ):
        note = f"{medians[side]:.1f} against {imread:.2f} ms, 512 x 512, {number} samples"
        rows.append(Row(name, medians[side] / imread, "x", limit, note))
    for side, name, limit in (
        ("inference", "3-slice sample", 0.3),
        ("ellipse", "training sample, ellipses", 0.5),
        ("grabcut", "training sample, GrabCut", None),
    ):
        prepared, png = medians[side, "prepared"], medians[side]
        note = f"{prepared:.1f} against {png:.1f} ms"
        rows.append(Row(f"{name}, prepared slices / PNG files", prepared / png, "x", limit, note))
    return rows


def measure_csv(folder: Path) -> list[Row]:
    """Reading an annotation file with as many rows as DeepLesion's, with its slices."""
    root = folder / "rows"
    write_rows(root, NUM_ROWS)
    load = partial(load_deeplesion, root / "DL_info.csv", root / "Images_png", None)
    read = partial(pd.read_csv, root / "DL_info.csv", dtype=str)
    times, bare = time_calls([load, read], repeats=5)
    seconds = [min(times.cpu_seconds)]
    for count in _FEWER_ROWS:
        fewer = folder / f"rows_{count}"
        write_rows(fewer, count)
        load = partial(load_deeplesion, fewer / "DL_info.csv", fewer / "Images_png", None)
        seconds.append(min(time_calls([load], repeats=5)[0].cpu_seconds))
    a_row = [1e6 * s / n for s, n in zip(seconds, (NUM_ROWS, *_FEWER_ROWS), strict=True)]
    growth = f"µs per row at {NUM_ROWS:,}: {a_row[0]:.1f}"
    growth += "".join(f", {n:,}: {s:.1f}" for n, s in zip(_FEWER_ROWS, a_row[1:], strict=True))
    text = min(bare.cpu_seconds)
    note = (
        f"{seconds[0]:.2f} against {text:.3f} s, the text of all columns; files found and compared"
    )
    return [
        Row(f"{NUM_ROWS:,} rows loaded / pandas.read_csv", seconds[0] / text, "x", 18, note),
        Row("time of a row, the whole file / an eighth", a_row[0] / a_row[1], "x", 1.5, growth),
    ]


def measure_masks(folder: Path) -> list[Row]:
    """GrabCut's time on the crop and on the whole slice, and Dice with the true masks."""
    timed_crop, timed_whole = compare_masks(folder, ("grabcut", WHOLE_SLICE), **LARGE)
    methods = ("grabcut", WHOLE_SLICE, "ellipse")
    compared = [result.dice for result in compare_masks(folder, methods, **SMALL)]
    crop, whole, ellipse = (float(dice.mean()) for dice in compared)
    lesions = "lesions of {} to {} px".format(*DIAMETERS)
    timed = f"{len(timed_crop.dice)} {lesions}, {LARGE['size']} x {LARGE['size']}"
    note = f"{len(compared[0])} {lesions}, {SMALL['size']} x {SMALL['size']}"
    return [
        Row("GrabCut on the crop, median", timed_crop.milliseconds, "ms", 15, timed),
        Row("GrabCut on the whole slice, median", timed_whole.milliseconds, "ms"),
        Row("Dice of GrabCut on the crop", crop, "", ellipse, f"limit: ellipse; {note}", True),
        Row("Dice of GrabCut on the whole slice", whole),
        Row("Dice lost by the crop", max(0.0, whole - crop), "", 0.01),
        Row("Dice of the ellipse", ellipse, "", 0.8, at_least=True),
    ]


def compare_masks(folder: Path, methods: Sequence[str], **phantom: int) -> list[Comparison]:
    """Time and Dice of methods for masks, on the lesions of 5 to 60 px of a phantom data set."""
    root = prepare_phantom(folder, **phantom)
    true_masks = str(root / "true_masks.json")
    with registered(root) as name:
        return [dice_against_truth(name, m, true_masks, diameters=DIAMETERS) for m in methods]
