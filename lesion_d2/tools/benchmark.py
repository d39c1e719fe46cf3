"""Measure this project's ratios and times on this machine, in one run.

python -m lesion_d2.tools.benchmark [--only slices masks froc csv model] [--threads N]

Writes small phantom data sets into a temporary folder, measures, and prints one table. Times are
the minimum over repeats where nothing else is said; ratios come from alternating repeats. What runs
on one core (slices, FROC, CSV) is counted in processor time, which other programs on the machine
disturb least. Exits with 1 where a limit is exceeded.
"""

import argparse
import csv
import datetime
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lesion_d2
from lesion_d2.data.ct import read_slice
from lesion_d2.data.deeplesion import load_deeplesion
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.phantom import CSV_COLUMNS, write_phantom
from lesion_d2.data.pseudo_masks import ellipse_mask, grabcut_image, grabcut_mask
from lesion_d2.evaluation import froc_curve

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from pycocotools import mask as mask_util
from tabulate import tabulate

CONFIGS = Path(__file__).parents[2] / "configs"
CPU_CONFIG = CONFIGS / "quickstart" / "retina_unet_phantom.yaml"
GPU_CONFIG = CONFIGS / "retina_unet" / "retina_unet_R_50_deeplesion.yaml"
NUM_ROWS = 32_735  # of DL_info.csv
# Phantoms: few slices of DeepLesion's size to take the time on, many lesions to average Dice over.
LARGE = {"num_patients": 8, "size": 512}
SMALL = {"num_patients": 60, "size": 256}


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


def time_calls(calls: Sequence[Callable], *, repeats: int, device: str = "cpu") -> list[Times]:
    """Time several calls in turn, so that all of them see the same machine.

    Args:
        calls: functions without arguments; each is called once more at first, untimed.
        repeats: timed calls of each.
        device: with "cuda" the clock stops when the device is done.
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = [Times() for _ in calls]
    for repeat in range(repeats + 1):
        for call, measured in zip(calls, times, strict=True):
            wait()
            start, cpu_start = time.perf_counter(), time.process_time()
            call()
            wait()
            if repeat:
                measured.seconds.append(time.perf_counter() - start)
                measured.cpu_seconds.append(time.process_time() - cpu_start)
    return times


def measure_slices(folder: Path) -> list[Row]:
    """The 3-slice sample of the loader against the bare ``cv2.imread`` of its slices."""
    records = load_phantom(folder, **LARGE)
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
        Row("3-slice sample (float32, windowed) / imread", sample / imread, "x", None, windowed),
    ]


def measure_masks(folder: Path) -> list[Row]:
    """GrabCut's time on the crop and on the whole slice, and Dice with the true masks."""
    times, _ = compare_masks(folder, **LARGE)
    _, dice = compare_masks(folder, **SMALL)
    crop, whole, ellipse = (float(np.mean(values)) for values in dice.values())
    timed = f"{len(times['crop'])} lesions of 5 to 60 px, 512 x 512"
    note = f"{len(dice['crop'])} lesions of 5 to 60 px, 256 x 256"
    return [
        Row("GrabCut on the crop, median", statistics.median(times["crop"]), "ms", 15, timed),
        Row("GrabCut on the whole slice, median", statistics.median(times["whole"]), "ms"),
        Row("Dice of GrabCut on the crop", crop, "", ellipse, f"limit: ellipse; {note}", True),
        Row("Dice of GrabCut on the whole slice", whole),
        Row("Dice lost by the crop", max(0.0, whole - crop), "", 0.01),
        Row("Dice of the ellipse", ellipse, "", 0.8, at_least=True),
    ]


def compare_masks(folder: Path, **phantom: int) -> tuple[dict, dict]:
    """Milliseconds and Dice of every way to a mask, one number a lesion of 5 to 60 px."""
    times, dice = {"crop": [], "whole": []}, {"crop": [], "whole": [], "ellipse": []}
    truth = load_true_masks(folder, **phantom)
    for record in load_phantom(folder, **phantom):
        image = grabcut_image(read_slice(record["file_name"]), record["window"])
        for lesion in record["annotations"]:
            recist, box = lesion["recist"], lesion["bbox"]
            if not 5 <= np.hypot(recist[2] - recist[0], recist[3] - recist[1]) <= 60:
                continue
            true_mask = truth[record["image_id"], lesion["row"]]
            for side, margin in (("crop", {}), ("whole", {"margin": max(image.shape)})):
                start = time.perf_counter()
                mask = grabcut_mask(image, recist, box, **margin)
                times[side].append((time.perf_counter() - start) * 1000)
                dice[side].append(dice_score(mask, true_mask))
            dice["ellipse"].append(dice_score(ellipse_mask(recist, *image.shape), true_mask))
    return times, dice


def dice_score(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient of two masks."""
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


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

    def load() -> None:
        load_deeplesion(root / "DL_info.csv", root / "Images_png", None)

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


def measure_model(device: str, *, repeats: int = 5) -> list[Row]:
    """A training step and an inference of RetinaUNet against Detectron2's RetinaNet."""
    config_file = GPU_CONFIG if device == "cuda" else CPU_CONFIG
    unet = load_config(config_file, device)
    cfgs = {
        "RetinaUNet": unet,
        "RetinaUNet, masks too": with_predicted_masks(unet),
        "RetinaNet": as_retinanet(unet),
    }
    models, batch = {name: build_model(cfg) for name, cfg in cfgs.items()}, random_batch(unet)
    names = ["RetinaUNet", "RetinaNet"]
    steps = [training_step(models[name], batch) for name in names]
    unet_step, net_step = time_calls(steps, repeats=repeats, device=device)
    for model in models.values():
        model.eval()
    inferences = [lambda model=model: infer(model, batch) for model in models.values()]
    unet_time, mask_time, net_time = time_calls(inferences, repeats=repeats, device=device)
    memory = {name: peak_memory(cfgs[name]) for name in names}
    title = f"RetinaUNet / RetinaNet, {device}:"
    size = f"{len(batch)} x {tuple(batch[0]['image'].shape)}, {config_file.stem}"
    return [
        _ratio(f"{title} training step", unet_step.min * 1e3, net_step.min * 1e3, f"ms, {size}"),
        _ratio(f"{title} inference", unet_time.min * 1e3, net_time.min * 1e3, "ms, 1 image"),
        _ratio(f"{title} inference with masks", mask_time.min * 1e3, net_time.min * 1e3, "ms"),
        _ratio(f"{title} memory of a step", memory["RetinaUNet"], memory["RetinaNet"], "MiB"),
    ]


def _ratio(name: str, ours: float, theirs: float, note: str) -> Row:
    return Row(name, ours / theirs, "x", None, f"{ours:.0f} against {theirs:.0f} {note}")


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


def with_predicted_masks(cfg: CfgNode) -> CfgNode:
    """The same model, with segmentation output."""
    cfg = cfg.clone()
    cfg.MODEL.RETINA_UNET.PREDICT_MASKS = True
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
    step = training_step(build_model(cfg), random_batch(cfg))
    step()
    step()


def load_phantom(folder: Path, *, num_patients: int, size: int) -> list[dict]:
    """The dicts of a phantom data set, which is written when first asked for."""
    root = folder / f"phantom_{size}"
    write_phantom(root, num_patients=num_patients, size=size)
    return load_deeplesion(root / "DL_info.csv", root / "Images_png", None)


def load_true_masks(folder: Path, **phantom: int) -> dict[tuple[str, int], np.ndarray]:
    """The phantoms' true masks (H, W) bool, by image id and row."""
    load_phantom(folder, **phantom)
    content = json.loads((folder / f"phantom_{phantom['size']}" / "true_masks.json").read_text())
    return {
        (image_id, int(row)): mask_util.decode(rle).astype(bool)
        for image_id, rows in content.items()
        for row, rle in rows.items()
    }


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
    parser.add_argument("--threads", type=int, help="of torch and OpenCV (torch's choice)")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    cv2.setNumThreads(torch.get_num_threads())
    print(machine_line(), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(args.only, Path(folder)):
            rows.append(row)
            print(f"{row.name}: {row.measured:.3g} {row.unit}", file=sys.stderr, flush=True)
    headers = ["", "measured", "limit", "ok", "note"]
    print(tabulate([row.cells() for row in rows], headers, disable_numparse=True))
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
