"""Measure this project's ratios and times on this machine, in one run.

python -m lesion_d2.tools.benchmark [--only slices masks froc csv model] [--threads N]

Writes small phantom data sets into a temporary folder, measures, and prints one table. Times are
the minimum over repeats where nothing else is said; ratios of models are the median over pairs of
calls that follow each other. What runs on one core (slices, masks, FROC, CSV) is counted in
processor time, which other programs on the machine disturb least. Exits with 1 where a limit is
exceeded.
"""

import argparse
import csv
import datetime
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import lesion_d2
from lesion_d2.data.deeplesion import CSV_COLUMNS, load_deeplesion, register_deeplesion
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.phantom import write_phantom
from lesion_d2.evaluation import froc_curve
from lesion_d2.tools.prepare_masks import WHOLE_SLICE, Comparison, dice_against_truth

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from tqdm import tqdm

CONFIGS = Path(__file__).parents[2] / "configs"
CPU_CONFIG = CONFIGS / "quickstart" / "retina_unet_phantom.yaml"
GPU_CONFIG = CONFIGS / "retina_unet" / "retina_unet_R_50_deeplesion.yaml"
NUM_ROWS = 32_735  # of DL_info.csv
# Phantoms: few slices of DeepLesion's size to take the time on, many lesions to average Dice over.
LARGE = {"num_patients": 8, "size": 512}
SMALL = {"num_patients": 60, "size": 256}
DIAMETERS = (5, 60)  # px, of the lesions that masks are compared on
WARM_UP = 3  # untimed calls: oneDNN and cuDNN choose their kernels for a shape in the first ones


@dataclass
class Row:
    """One line of the table; ``limit`` is the most allowed, or the least where ``at_least``."""

    name: str
    measured: float
    unit: str = ""
    limit: float | None = None
    note: str = ""
    at_least: bool = False

    @property
    def ok(self) -> bool:
        """Whether the limit holds; true where there is none."""
        limit = self.measured if self.limit is None else self.limit
        return self.measured >= limit if self.at_least else self.measured <= limit

    def cells(self) -> list[str]:
        """Name, measured, limit, ok, note."""
        limit, ok = "", ""
        if self.limit is not None:
            limit = f"{'>=' if self.at_least else '<='} {self.limit:.3g} {self.unit}"
            ok = "yes" if self.ok else "NO"
        return [self.name, f"{self.measured:.3g} {self.unit}", limit, ok, self.note]


@dataclass
class Times:
    """Seconds of the repeats of one call: by the clock, and of the processor."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def min(self) -> float:
        """The fastest repeat."""
        return min(self.seconds)


def time_calls(
    calls: Sequence[Callable], *, repeats: int, warm_up: int = 1, device: str = "cpu"
) -> list[Times]:
    """Time several calls in turn, so that all of them see the same machine.

    Args:
        calls: functions without arguments.
        repeats: timed calls of each.
        warm_up: untimed calls of each before.
        device: with "cuda" the clock stops when the device is done.
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = [Times() for _ in calls]
    for number in range(warm_up + repeats):
        for call, measured in zip(calls, times, strict=True):
            wait()
            start, cpu_start = time.perf_counter(), time.process_time()
            call()
            wait()
            if number >= warm_up:
                measured.seconds.append(time.perf_counter() - start)
                measured.cpu_seconds.append(time.process_time() - cpu_start)
    return times


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
    name, true_masks = f"benchmark_{root.name}", str(root / "true_masks.json")
    register_deeplesion(name, str(root), None)
    try:
        return [dice_against_truth(name, m, true_masks, diameters=DIAMETERS) for m in methods]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def measure_froc(num_images: int = 5000, per_image: int = 100) -> list[Row]:
    """``froc_curve`` against a loop that visits one detection after the other."""
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, (num_images, per_image))
    lesions = random_boxes(rng, (num_images, 2))
    boxes[:, :2] = lesions + rng.uniform(-3, 3, lesions.shape)
    inputs = list(boxes), list(rng.uniform(0, 1, (num_images, per_image))), list(lesions)
    (ours,) = time_calls([lambda: froc_curve(*inputs)], repeats=9)
    start = time.process_time()
    loop_sensitivity, loop_rate = froc_loop(*inputs)
    loop = time.process_time() - start
    curve = froc_curve(*inputs)
    difference = max(
        np.abs(curve.sensitivity - loop_sensitivity).max(),
        np.abs(curve.fps_per_image - loop_rate).max(),
    )
    note = f"processor time; clock {ours.min:.2f} s; {num_images} images x {per_image} detections"
    same = f"loop over falling scores: {loop:.2f} s; curves differ by at most {difference:.1g}"
    return [
        Row("froc_curve", min(ours.cpu_seconds), "s", 0.25, note),
        Row("published loop / froc_curve", loop / min(ours.cpu_seconds), "x", None, same),
    ]


def random_boxes(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """(*shape, 4) boxes of 10 to 60 px in an image of 512 x 512."""
    corner = rng.uniform(0, 450, (*shape, 2))
    return np.concatenate([corner, corner + rng.uniform(10, 60, (*shape, 2))], axis=-1)


def froc_loop(pred_boxes, pred_scores, gt_boxes) -> tuple[np.ndarray, np.ndarray]:
    """The FROC curve by the published way: one detection at a time, by falling score.

    For every detection its overlap with the image's lesions is computed; it is a false positive if
    none reaches 0.5, and marks as found the lesions that it reaches. The two counts so far are the
    curve's next point (design of the evaluation that 3DCE published with DeepLesion).

    Returns:
        Sensitivity and false positives per image, one entry a detection.
    """
    images = np.repeat(np.arange(len(pred_boxes)), [len(boxes) for boxes in pred_boxes])
    boxes, scores = np.concatenate(pred_boxes), np.concatenate(pred_scores)
    found = [np.zeros(len(lesions), bool) for lesions in gt_boxes]
    num_found = num_false = 0
    points = []
    for i in np.argsort(-scores, kind="stable"):
        overlaps = loop_overlaps(boxes[i], gt_boxes[images[i]])
        if len(overlaps) == 0 or overlaps.max() < 0.5:
            num_false += 1
        else:
            for lesion in range(len(overlaps)):
                if overlaps[lesion] >= 0.5 and not found[images[i]][lesion]:
                    found[images[i]][lesion] = True
                    num_found += 1
        points.append((num_found, num_false))
    hits, errors = np.array(points).T
    return hits / sum(map(len, found)), errors / len(pred_boxes)


def loop_overlaps(box: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    """IoU of one box with the lesions of its image."""
    low = np.maximum(box[:2], lesions[:, :2])
    high = np.minimum(box[2:], lesions[:, 2:])
    shared = np.maximum(high - low, 0).prod(axis=1)
    area = (box[2:] - box[:2]).prod()
    return shared / (area + (lesions[:, 2:] - lesions[:, :2]).prod(axis=1) - shared)


def measure_csv(folder: Path) -> list[Row]:
    """Reading an annotation file with as many rows as DeepLesion's, its slices beside it."""
    root = folder / "rows"
    write_rows(root, NUM_ROWS)
    load = partial(load_deeplesion, root / "DL_info.csv", root / "Images_png", None)
    (times,) = time_calls([load], repeats=5)
    note = f"processor time; clock {times.min:.2f} s"
    return [Row(f"{NUM_ROWS:,} rows loaded", min(times.cpu_seconds), "s", 2, note)]


def write_rows(root: Path, count: int) -> None:
    """Write ``DL_info.csv`` with ``count`` made-up rows, and the empty files that they name."""
    rng = np.random.default_rng(0)
    root.mkdir()
    with open(root / "DL_info.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for number in range(count):
            patient, key = number // 8 + 1, number % 8 + 20
            folder = f"{patient:06d}_01_01"
            row = [f"{folder}_{key:03d}.png", patient, 1, 1, key, *_made_up_lists(rng)]
            row += [number % 8 + 1, 0, "10, 40", "0.8, 0.8, 5", "512, 512", "-175, 275", "F", 60]
            writer.writerow([*row, number % 3 + 1])
            path = root / "Images_png" / folder / f"{key:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def _made_up_lists(rng: np.random.Generator) -> list[str]:
    """RECIST end points, box, diameters and place of an upright lesion, as the file has them."""
    x, y = rng.uniform(50, 400, 2)
    short, long = np.sort(rng.uniform(5, 20, 2))  # half diameters
    ends = [x, y - long, x, y + long, x - short, y, x + short, y]
    box = [x - short - 5, y - long - 5, x + short + 5, y + long + 5]
    lists = [ends, box, [2 * long, 2 * short], [x / 512, y / 512, 0.5]]
    return [", ".join(f"{value:.6g}" for value in values) for values in lists]


def ignore_meshgrid_warning() -> None:
    """Keep a warning that Detectron2's anchor generator gets from torch out of the output."""
    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)


def measure_model(device: str, *, repeats: int = 9) -> list[Row]:
    """A training step and an inference of RetinaUNet against Detectron2's RetinaNet."""
    config_file = GPU_CONFIG if device == "cuda" else CPU_CONFIG
    cfg = load_config(config_file, device)
    cfgs = [predicting_masks(cfg, False), predicting_masks(cfg, True), as_retinanet(cfg)]
    models = [build_for_device(c) for c in cfgs]
    batch = random_batch(cfg)
    options = {"repeats": repeats, "warm_up": WARM_UP, "device": device}
    steps = time_calls([training_step(m, batch) for m in (models[0], models[2])], **options)
    for model in models:
        model.eval()
    calls = [partial(infer, model, batch) for model in models]
    plain, masks, net = time_calls(calls, **options)
    memory = [peak_memory(cfgs[0]), peak_memory(cfgs[2])]
    title = f"RetinaUNet / RetinaNet, {device}:"
    size = " x ".join(map(str, batch[0]["image"].shape))
    one, many = f"1 image of {size}", f"{len(batch)} images of {size}, {config_file.stem}"
    note = f"{memory[0]:.0f} against {memory[1]:.0f} MiB, {many}"
    return [
        paired_ratio(f"{title} training step", *steps, many),
        paired_ratio(f"{title} inference", plain, net, one),
        paired_ratio(f"{title} inference with masks", masks, net, one),
        Row(f"{title} memory of a step", memory[0] / memory[1], "x", None, note),
    ]


def build_for_device(cfg: CfgNode) -> torch.nn.Module:
    """A model in the memory format that the trainer gives it: channels last on a CPU."""
    on_cpu = cfg.MODEL.DEVICE == "cpu"
    memory_format = torch.channels_last if on_cpu else torch.contiguous_format
    return build_model(cfg).to(memory_format=memory_format)


def paired_ratio(name: str, ours: Times, theirs: Times, size: str) -> Row:
    """The median ratio of calls that follow each other: what slows the machine slows both."""
    ratios = [a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    a, b = (1e3 * statistics.median(times.seconds) for times in (ours, theirs))
    note = f"{a:.0f} against {b:.0f} ms, {size}"
    return Row(name, statistics.median(ratios), "x", None, note)


def load_config(file: Path, device: str) -> CfgNode:
    """The config of a file, without pretrained weights."""
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.merge_from_file(str(file), allow_unsafe=True)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.WEIGHTS = ""
    return cfg


def as_retinanet(cfg: CfgNode) -> CfgNode:
    """Detectron2's RetinaNet on its own FPN, with the same ResNet, levels and heads."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    return cfg


def predicting_masks(cfg: CfgNode, predict_masks: bool) -> CfgNode:
    """The same model, with or without segmentation output."""
    cfg = cfg.clone()
    cfg.MODEL.RETINA_UNET.PREDICT_MASKS = predict_masks
    return cfg


def random_batch(cfg: CfgNode) -> list[dict]:
    """A training batch of the config's size, of noise with two lesions an image."""
    rng, size = np.random.default_rng(0), cfg.INPUT.CT.IMAGE_SIZE
    batch = []
    for _ in range(cfg.SOLVER.IMS_PER_BATCH):
        instances, masks = Instances((size, size)), torch.zeros(2, size, size, dtype=torch.bool)
        boxes = torch.as_tensor(random_boxes(rng, (1, 2))[0] * size / 512, dtype=torch.float32)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        instances.gt_boxes, instances.gt_masks = Boxes(boxes), BitMasks(masks)
        instances.gt_classes = torch.zeros(2, dtype=torch.int64)
        image = rng.uniform(0, 255, (cfg.INPUT.CT.NUM_SLICES, size, size))
        batch.append({"image": torch.as_tensor(image, dtype=torch.float32), "instances": instances})
    return batch


def training_step(model: torch.nn.Module, batch: list[dict]) -> Callable[[], None]:
    """A function that trains the model by one step of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)

    def step() -> None:
        """Forward, backward and update."""
        model.train()
        with EventStorage():
            losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step


def infer(model: torch.nn.Module, batch: list[dict]) -> None:
    """One inference of an evaluation: a single image."""
    with torch.inference_mode():
        model(batch[:1])


def peak_memory(cfg: CfgNode) -> float:
    """MiB that two training steps need beyond what the process has before it builds the model."""
    if cfg.MODEL.DEVICE == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        _run_steps(cfg)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process has only one peak
        return pool.apply(_peak_resident_memory, (cfg, torch.get_num_threads()))


def _peak_resident_memory(cfg: CfgNode, threads: int) -> float:
    torch.set_num_threads(threads)
    ignore_meshgrid_warning()
    before = _high_water()
    _run_steps(cfg)
    return _high_water() - before


def _high_water() -> float:
    """Most resident memory of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts the parent's peak too on Linux
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _run_steps(cfg: CfgNode) -> None:
    step = training_step(build_for_device(cfg), random_batch(cfg))
    step()
    step()


def prepare_phantom(folder: Path, *, num_patients: int, size: int) -> Path:
    """The folder of a phantom data set, which is written when first asked for."""
    root = folder / f"phantom_{size}"
    write_phantom(root, num_patients=num_patients, size=size)
    return root


def measure(parts: Sequence[str], folder: Path) -> Iterator[Row]:
    """The rows of the chosen parts, as they are measured."""
    if "slices" in parts:
        yield from measure_slices(folder)
    if "masks" in parts:
        yield from measure_masks(folder)
    if "froc" in parts:
        yield from measure_froc()
    if "csv" in parts:
        yield from measure_csv(folder)
    if "model" in parts:
        yield from measure_model("cpu")
    if "model" in parts and torch.cuda.is_available():
        yield from measure_model("cuda", repeats=20)


def machine_line() -> str:
    """Processor, cores, GPU, versions and date."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {gpu}; "
        f"torch {torch.__version__}, Python {platform.python_version()}; {datetime.date.today()}"
    )


PARTS = ("slices", "masks", "froc", "csv", "model")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and return 1 where a limit is exceeded."""
    parser = argparse.ArgumentParser(prog="lesion_d2.tools.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--threads", type=int, help="of torch (its own choice)")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    ignore_meshgrid_warning()
    print(machine_line(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(tqdm(measure(args.only, Path(folder)), desc="benchmark", unit="row"))
    headers = ["", "measured", "limit", "ok", "note"]
    print(tabulate([row.cells() for row in rows], headers, disable_numparse=True))
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
