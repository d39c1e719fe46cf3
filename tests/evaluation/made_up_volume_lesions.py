"""Made-up volumes with lesions, and detections on their slices."""

import math
from functools import partial

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.evaluation import VolumeEvaluator
from lesion_d2.inference import Linker

import made_up_lesions
import numpy as np
from detectron2.structures import BoxMode

NAME = "made_up_volumes"
make_instances = partial(made_up_lesions.make_instances, size=200)


def make_volume(patient, study, lesions, numbers=range(10, 20)):
    """Slices of a volume; lesions are (class, x1, y1, x2, y2, first, last)."""
    volume = f"{patient:06d}_{study:02d}_01"
    return [
        {
            "file_name": f"{volume}/{number:03d}.png",
            "image_id": f"{volume}_{number:03d}",
            "height": 200,
            "width": 200,
            "patient": patient,
            "volume": volume,
            "slice_index": number,
            "annotations": [
                {
                    "bbox": [float(v) for v in box],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": number_of_class,
                    "lesion_id": lesion,
                }
                for lesion, (number_of_class, *box, first, last) in enumerate(lesions)
                if first <= number <= last
            ],
        }
        for number in numbers
    ]


def make_dicts(seed=0, num_patients=8, num_classes=3):
    """Up to two volumes a patient, up to three lesions a volume, far from each other."""
    rng = np.random.default_rng(seed)
    dicts = []
    for patient in range(1, num_patients + 1):
        for study in range(1, int(rng.integers(2, 4))):
            lesions = []
            for k in range(rng.integers(0, 4)):
                x, y = 60 * k + int(rng.integers(5, 20)), int(rng.integers(5, 20))
                first = int(rng.integers(10, 20))
                last = min(19, first + int(rng.integers(0, 6)))
                size = rng.integers(8, 40, 2)
                number = int(rng.integers(num_classes))
                lesions.append((number, x, y, x + size[0], y + size[1], first, last))
            dicts += make_volume(patient, study, lesions)
    return dicts


def detect(record, seed=0, num_classes=3):
    """Boxes near most lesions, half of them of another class, and some elsewhere."""
    rng = np.random.default_rng([seed, int(record["volume"].replace("_", ""))])
    offset = rng.uniform(-6, 6, (4, 2))
    scores = rng.integers(1, 20, 5) / 20
    classes = rng.integers(num_classes, size=4)
    boxes = []
    for a in record["annotations"]:
        k = a["lesion_id"]
        box = (np.reshape(a["bbox"], (2, 2)) + offset[k]).ravel()
        boxes.append((box, scores[k], classes[k] if k % 2 else a["category_id"]))
    if record["slice_index"] % 4:
        boxes.append(([150, 150, 170, 170], scores[4], classes[3]))
    return make_instances(*zip(*boxes, strict=True)) if boxes else make_instances([], [], [])


def truth_as_detections(record, score=0.9):
    annotations = record["annotations"]
    boxes, classes = ([a[key] for a in annotations] for key in ("bbox", "category_id"))
    return make_instances(boxes, [score] * len(boxes), classes)


def make_evaluator(output_dir=None, **settings):
    link = Linker("merge", {"iou_threshold": 0.1})
    return VolumeEvaluator(NAME, output_dir, link=link, **settings)


def same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value == second[key] or (math.isnan(value) and math.isnan(second[key])), key


def true_boxes(dicts):
    """(volume, lesion) -> box in 3-D, class."""
    found = {}
    for d in dicts:
        for a in d["annotations"]:
            x1, y1, x2, y2 = a["bbox"]
            entry = found.setdefault((d["volume"], a["lesion_id"]), ([], a["category_id"]))
            entry[0].append([x1, y1, d["slice_index"], x2, y2, d["slice_index"]])
    return {
        key: ([*np.min(boxes, axis=0)[:3], *np.max(boxes, axis=0)[3:]], number)
        for key, (boxes, number) in found.items()
    }


def thick(boxes):
    return np.array([[a, b, c - 0.5, d, e, f + 0.5] for a, b, c, d, e, f in boxes]).reshape(-1, 6)


def mark_key_slices(dicts, seed=0):
    """Mark one slice of each lesion at random, where its box is smaller than elsewhere."""
    rng = np.random.default_rng(seed)
    slices = {}
    for d in dicts:
        for a in d["annotations"]:
            slices.setdefault((d["volume"], a["lesion_id"]), []).append(a)
    for annotations in slices.values():
        key = annotations[rng.integers(len(annotations))]
        key["is_key"] = True
        x1, y1, x2, y2 = key["bbox"]
        key["bbox"] = [x1, y1, x1 + 0.8 * (x2 - x1), y2]
    return dicts
