"""Benchmark of the evaluation of slices against pycocotools and Detectron2's evaluator."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

from lesion_d2.evaluation import LesionEvaluator
from lesion_d2.evaluation.coco import CocoEvaluation, ImageDetections

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..inputs import random_boxes
from ..memory import peak_memory
from ..timing import Row, paired_ratio, time_calls

_NAME = "benchmark_evaluation"
_MAX_AP_RATIO = 0.1
_MAX_RATIO = 0.4
_MAX_MEMORY_RATIO = 0.5
_MAX_GROWTH = 1.2


def measure_evaluation(
    num_images: int = 1000, num_in_memory: int = 2000, num_most: int = 4900, per_image: int = 100
) -> Iterator[Row]:
    """AP alone, then a whole evaluation, against pycocotools; then a large evaluation.

    Args:
        num_images: number of images for the comparison with pycocotools.
        num_in_memory: number of images for the comparison of memory.
        num_most: of a large evaluation; a fourth of them should take a fourth of the time.
        per_image: detections per image.
    """
    size = f"{num_images:,} images x {per_image} detections"
    theirs, ours = _average_precisions(num_images, per_image)
    difference = np.abs(ours() - theirs()).max()
    note = f"{size}; numbers differ by at most {difference:.1g}"
    times = time_calls([ours, theirs], repeats=3)
    name = "COCO's AP and AP10 / pycocotools"
    yield paired_ratio(name, *times, note, limit=_MAX_AP_RATIO, of_processor=True)

    calls = [partial(_evaluate, make, num_images, per_image) for make in (_ours, _detectron2s)]
    note = f"{size}; AP10, FROC with intervals and files as well"
    times = time_calls(calls, repeats=3)
    name = "evaluation / Detectron2's"
    yield paired_ratio(name, *times, note, limit=_MAX_RATIO, of_processor=True)

    counts = {"IMAGES": num_in_memory, "DETECTIONS": per_image, "MODEL": {"DEVICE": "cpu"}}
    mib, their_mib = (peak_memory(work, CfgNode(counts)) for work in (_run_ours, _run_detectron2s))
    note = f"{mib:.0f} against {their_mib:.0f} MiB, {num_in_memory:,} images"
    yield Row("evaluation memory / Detectron2's", mib / their_mib, "x", _MAX_MEMORY_RATIO, note)

    sizes = num_most // 4, num_most
    calls = [partial(_evaluate, _ours, n, per_image) for n in sizes]
    few, many = time_calls(calls, repeats=1, warm_up=0)
    seconds = many.cpu_seconds[0]
    yield Row(f"evaluation of {num_most:,} images", seconds, "s", None, "CPU time")
    mib = peak_memory(_run_ours, CfgNode({**counts, "IMAGES": num_most}))
    yield Row(f"memory of the evaluation of {num_most:,} images", mib, "MiB")
    growth = seconds / few.cpu_seconds[0] * sizes[0] / sizes[1]
    note = "4 times as many images, time per image"
    yield Row("evaluation as data grows", growth, "x", _MAX_GROWTH, note)


def _run_ours(cfg: CfgNode) -> None:
    _evaluate(_ours, cfg.IMAGES, cfg.DETECTIONS)


def _run_detectron2s(cfg: CfgNode) -> None:
    _evaluate(_detectron2s, cfg.IMAGES, cfg.DETECTIONS)


def _ours(folder: str) -> DatasetEvaluator:
    return LesionEvaluator(_NAME, folder, distributed=False)


def _detectron2s(folder: str) -> DatasetEvaluator:
    tasks = ("bbox",)
    return COCOEvaluator(_NAME, tasks, False, folder, use_fast_impl=False, allow_cached_coco=False)


def _evaluate(
    make_evaluator: Callable[[str], DatasetEvaluator], num_images: int, per_image: int
) -> None:
    """Evaluate synthetic detections, which are passed to the evaluator image by image."""
    records = _made_up_records(num_images)
    DatasetCatalog.register(_NAME, lambda: records)
    MetadataCatalog.get(_NAME).set(thing_classes=["lesion"])
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            evaluator = make_evaluator(folder)
            evaluator.reset()
            for record in records:
                evaluator.process([record], [{"instances": _made_up_instances(record, per_image)}])
            evaluator.evaluate()
    finally:
        DatasetCatalog.remove(_NAME)
        MetadataCatalog.remove(_NAME)


def _average_precisions(
    num_images: int, per_image: int
) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    """Functions that compute COCO's metrics and AP10: by pycocotools, and by this project."""
    records = _made_up_records(num_images)
    found = {
        r["image_id"]: ImageDetections.from_instances(_made_up_instances(r, per_image), masks=False)
        for r in records
    }
    results = [result for image_id, each in found.items() for result in each.results(image_id)]
    coco = _as_coco(records)

    def pycocotools_run() -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()):
            detections = coco.loadRes([dict(result) for result in results])
            run, low = (COCOeval(coco, detections, "bbox") for _ in range(2))
            low.params.iouThrs, low.params.areaRng = np.array([0.1]), low.params.areaRng[:1]
            for each in (run, low):
                each.evaluate()
                each.accumulate()
            run.summarize()
        return np.append(run.stats, low.eval["precision"][0, :, 0, 0, -1].mean())

    def our_run() -> np.ndarray:
        run = CocoEvaluation(coco, found, more_thresholds=[0.1])
        run.evaluate()
        run.accumulate()
        with contextlib.redirect_stdout(io.StringIO()):
            run.summarize()
        return np.append(run.stats, run.eval["more_precision"][0, :, 0, 0, -1].mean())

    return pycocotools_run, our_run


def _as_coco(records: list[dict]) -> COCO:
    annotations = [(r["image_id"], a["bbox"]) for r in records for a in r["annotations"]]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": r["image_id"]} for r in records],
        "categories": [{"id": 0, "name": "lesion"}],
        "annotations": [
            {"id": number, "image_id": image_id, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            | {"area": (x2 - x1) * (y2 - y1), "category_id": 0, "iscrowd": 0}
            for number, (image_id, (x1, y1, x2, y2)) in enumerate(annotations, 1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _made_up_records(num_images: int) -> list[dict]:
    """Two lesions per image and eight images per patient, with all attributes of strata."""
    boxes = random_boxes(np.random.default_rng(0), (num_images, 2)).round(1).tolist()
    return [
        {
            "file_name": f"{number}.png",
            "image_id": f"{number:06d}",
            "height": 512,
            "width": 512,
            "patient": number // 8,
            "spacing": (0.8, 0.8, 1.0 + number % 2 * 4),
            "annotations": [
                {
                    "bbox": box,
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": 0,
                    "diameters_mm": (box[2] - box[0], 5.0),
                    "coarse_type": number % 8 + 1,
                }
                for box in of_image
            ],
        }
        for number, of_image in enumerate(boxes)
    ]


def _made_up_instances(record: dict, per_image: int) -> Instances:
    """Six detections near lesions with higher scores, the others at random positions."""
    rng = np.random.default_rng(int(record["image_id"]))
    boxes, scores = random_boxes(rng, (per_image,)), rng.beta(1, 6, per_image)
    lesions = np.repeat([a["bbox"] for a in record["annotations"]], 3, axis=0)[:per_image]
    boxes[: len(lesions)] = lesions + rng.uniform(-3, 3, lesions.shape)
    scores[: len(lesions)] = rng.beta(2, 2, len(lesions))
    found = Instances((512, 512))
    found.pred_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
    found.scores = torch.as_tensor(scores, dtype=torch.float32)
    found.pred_classes = torch.zeros(per_image, dtype=torch.int64)
    return found
