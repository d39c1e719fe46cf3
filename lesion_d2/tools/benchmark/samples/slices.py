"""From disk to masks: the loader's samples, the annotation file, GrabCut."""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lesion_d2.data.deeplesion import load_deeplesion
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.tools.prepare_masks import WHOLE_SLICE, Comparison, dice_against_truth

import cv2
import torch

from ..configs import CPU_CONFIG, load_config
from ..inputs import LARGE, SMALL, prepare_phantom, registered, write_rows
from ..timing import Row, time_calls

NUM_ROWS = 32_735  # of DL_info.csv
DIAMETERS = (5, 60)  # px, of the lesions that masks are compared on


def measure_slices(folder: Path) -> list[Row]:
    """The 3-slice sample of the loader against the bare ``cv2.imread`` of its slices."""
    root = prepare_phantom(folder, **LARGE)
    records = load_deeplesion(root / "DL_info.csv", root / "Images_png", None)
    cfg = load_config(CPU_CONFIG, "cpu")
    cfg.INPUT.CT.IMAGE_SIZE = 0
    mapper = LesionDatasetMapper(cfg, is_train=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader's process
    offsets = {1.0: (-2, 0, 2), 2.0: (-1, 0, 1), 5.0: (-1, 0, 1)}
    sides: dict[str, list[float]] = {"imread": [], "load": [], "sample": []}
    for record in records:
        key = Path(record["file_name"])
        files = [key.with_stem(f"{int(key.stem) + i:03d}") for i in offsets[record["spacing"][2]]]
        if not all(file.exists() for file in files):
            continue
        calls = [
            lambda files=files: [cv2.imread(str(f), cv2.IMREAD_UNCHANGED) for f in files],
            lambda record=record: mapper.load(record),
            lambda record=record: mapper(record),
        ]
        for side, times in zip(sides, time_calls(calls, repeats=7), strict=True):
            sides[side].append(min(times.cpu_seconds) * 1000)
    torch.set_num_threads(threads)
    imread, load, sample = (statistics.median(values) for values in sides.values())
    note = f"{load:.1f} against {imread:.2f} ms, 512 x 512, {len(sides['load'])} samples"
    windowed = f"{sample:.2f} ms; without a GPU, the window in the loader's process"
    return [
        Row("3-slice sample (int16) / imread", load / imread, "x", 1.5, note),
        Row("3-slice sample (float32, windowed) / imread", sample / imread, "x", 1.5, windowed),
    ]


def measure_csv(folder: Path) -> list[Row]:
    """Reading an annotation file with as many rows as DeepLesion's, its slices beside it."""
    root = folder / "rows"
    write_rows(root, NUM_ROWS)
    load = partial(load_deeplesion, root / "DL_info.csv", root / "Images_png", None)
    (times,) = time_calls([load], repeats=5)
    note = f"processor time; clock {times.min:.2f} s"
    return [Row(f"{NUM_ROWS:,} rows loaded", min(times.cpu_seconds), "s", 2, note)]


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
    """Time and Dice of ways to a mask, on the lesions of 5 to 60 px of a phantom data set."""
    root = prepare_phantom(folder, **phantom)
    true_masks = str(root / "true_masks.json")
    with registered(root) as name:
        return [dice_against_truth(name, m, true_masks, diameters=DIAMETERS) for m in methods]
