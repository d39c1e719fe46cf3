"""A data set of made-up lesions, and detections of them."""

import math
from contextlib import contextmanager

from lesion_d2.engine import finish_run

import numpy as np
import torch
import torch.distributed as dist
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAME = "made_up_lesions"


def make_dicts(num_images, seed=0, num_classes=1):
    rng = np.random.default_rng(seed)
    dicts = []
    for i in range(num_images):
        low = rng.integers(0, 200, (rng.integers(0, 4), 2))
        boxes = np.concatenate([low, low + rng.integers(5, 120, low.shape)], axis=1)
        annotations = [
            {
                "bbox": box.tolist(),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": int(rng.integers(num_classes)),
                "diameters_mm": (float(rng.choice([5, 10, 20, 30, 45])), 4.0),
                "coarse_type": int(rng.choice([-1, 1, 4, 5])),
            }
            for box in boxes.astype(float)
        ]
        dicts.append(
            {
                "file_name": f"{i}.png",
                "image_id": f"{i // 3:06d}_01_01_{i:03d}",
                "height": 320,
                "width": 320,
                "patient": i // 3,
                "spacing": (0.8, 0.8, float(rng.choice([1, 2.5, 5]))),
                "annotations": annotations,
            }
        )
    return dicts


def predict(record, seed=0, num_classes=1, max_false=8):
    """Detections near most lesions, and some elsewhere; scores are often equal."""
    rng = np.random.default_rng([seed, int(record["image_id"][-3:])])
    truth = np.array([a["bbox"] for a in record["annotations"]]).reshape(-1, 4)
    near = truth[rng.random(len(truth)) < 0.8]
    near = near + rng.normal(0, 2, near.shape)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
    low = rng.uniform(0, 200, (rng.integers(0, max_false), 2))
    boxes = np.concatenate([near, np.concatenate([low, low + 30], axis=1)])
    scores = rng.integers(1, 30, len(boxes)) + 10 * (np.arange(len(boxes)) < len(near))
    return make_instances(boxes, scores / 40, rng.integers(num_classes, size=len(boxes)))


def make_instances(boxes, scores, classes=None, *, size=320):
    result = Instances((size, size))
    result.pred_boxes = Boxes(torch.as_tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4))
    result.scores = torch.as_tensor(np.array(scores), dtype=torch.float32)
    classes = np.zeros(len(scores)) if classes is None else classes
    result.pred_classes = torch.as_tensor(np.array(classes), dtype=torch.int64)
    return result


def run(evaluator, dicts, outputs):
    evaluator.reset()
    for record, instances in zip(dicts, outputs, strict=True):
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()


def same(first, second):
    flat = [flatten_results_dict(results) for results in (first, second)]
    assert flat[0].keys() == flat[1].keys()
    for key, value in flat[0].items():
        assert value == flat[1][key] or (math.isnan(value) and math.isnan(flat[1][key])), key


@contextmanager
def registering(name, classes, kind):
    """Gives a function that registers dicts under a name, in place of those before."""

    def add(dicts, classes=classes, kind=kind):
        remove()
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(thing_classes=list(classes), evaluator_type=kind)
        return dicts

    def remove():
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    yield add
    remove()


def coco_average_precision(boxes, scores, truth, threshold, regions=None):
    """pycocotools' AP at an IoU of one class; regions are crowds."""

    def xywh(box):
        return BoxMode.convert(box.tolist(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)

    annotations = [
        (i, box, crowd)
        for i, pair in enumerate(zip(truth, regions or [()] * len(truth), strict=True), 1)
        for crowd, found in enumerate(pair)
        for box in map(xywh, found)
    ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i + 1} for i in range(len(truth))],
        "categories": [{"id": 1}],
        "annotations": [
            {"id": k, "image_id": i, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
            | {"category_id": 1}
            for k, (i, box, crowd) in enumerate(annotations, 1)
        ],
    }
    coco.createIndex()
    found = coco.loadRes(
        [
            {"image_id": i, "category_id": 1, "bbox": xywh(box), "score": score}
            for i, pair in enumerate(zip(boxes, scores, strict=True), 1)
            for box, score in zip(*pair, strict=True)
        ]
    )
    run = COCOeval(coco, found, "bbox")
    run.params.iouThrs = np.array([threshold])
    run.evaluate()
    run.accumulate()
    return run.eval["precision"][0, :, 0, 0, -1].mean()


def evaluate_shard(rank, folder, name, dicts, classes, make_evaluator, predict):
    """What one of two processes does that evaluate together; the first writes the results.

    Args:
        rank: of the process.
        folder: for files.
        name, dicts, classes: of the data set.
        make_evaluator: from a folder for its files.
        predict: gives the detections of a dict.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(thing_classes=classes)
    shard = dicts[:16] if rank == 0 else dicts[15:]  # one image twice
    results = run(make_evaluator(f"{folder}/two"), shard, [predict(d) for d in shard])
    assert bool(results) == (rank == 0)
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    finish_run()
