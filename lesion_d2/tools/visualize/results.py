"""Files of detections in COCO's results format."""

import json
import math
import os
from collections.abc import Sequence

from lesion_d2.boxes import first_pixel, moved_xywh

import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

DETECTION = ("image_id", "bbox", "score")
HARD_NEGATIVE = (*DETECTION, "segmentation", "mask_iou")
_IOUS = ("mask_iou", "box_iou")


def read_results(
    path: str, records: Sequence[dict], dataset: str, *, required: Sequence[str] = DETECTION
) -> dict[str, Instances]:
    """Read the detections of a run.

    Args:
        path: ``coco_instances_results.json`` of an evaluation, or ``hard_negatives.json`` of a
            training: boxes XYWH in the coordinates of the data set's files
            (:func:`lesion_d2.boxes.first_pixel`).
        records: the data set's dicts.
        dataset: its name, for messages.
        required: what every entry must have, :data:`DETECTION` or :data:`HARD_NEGATIVE` (of which
            one with ``box_iou`` needs no mask).

    Returns:
        ``Instances`` by image id, one for every image of the data set, perhaps empty: pred_boxes
        (XYXY, in the coordinates of the dicts), scores, pred_classes and, where the file has them,
        pred_masks_rle and lesion_ious (``mask_iou`` or, of a model without masks, ``box_iou``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a list of COCO results, of images or categories that the data set does not
            have, or a box of negative width or height. Names the entry, from 0 on.
    """
    categories = _categories(dataset, hard_negatives="mask_iou" in required)
    offset = first_pixel(dataset)
    entries: dict[str, list[dict]] = {str(record["image_id"]): [] for record in records}
    sizes = {str(record["image_id"]): (record["height"], record["width"]) for record in records}
    for number, entry in enumerate(_read_entries(path)):
        problem = _entry_problem(entry, required)
        if problem:
            raise ValueError(f"{path}: entry {number} {problem}")
        image_id = str(entry["image_id"])
        if image_id not in entries:
            raise ValueError(
                f"{path}: entry {number} is of image {entry['image_id']!r}, which data set "
                f"{dataset!r} does not have (its images are such as {next(iter(entries))!r})"
            )
        problem = _category_problem(entry, categories) or _mask_problem(entry, sizes[image_id])
        if problem:
            raise ValueError(f"{path}: entry {number} {problem}")
        entries[image_id].append({**entry, "bbox": moved_xywh(entry["bbox"], -offset)})
    return {image_id: _instances(found, sizes[image_id]) for image_id, found in entries.items()}


def _read_entries(path: str) -> list:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such results file, expected what a run wrote")
    try:
        with open(path) as f:
            entries = json.load(f)
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    if isinstance(entries, dict) and "detections" in entries:
        raise ValueError(
            f"{path}: holds detections in 3-D, expected those of slices: `visualize volumes` draws "
            "the others"
        )
    if not isinstance(entries, list):
        raise ValueError(f"{path}: holds a {type(entries).__name__}, expected a list of detections")
    return entries


def _entry_problem(entry, required: Sequence[str]) -> str:
    if not isinstance(entry, dict):
        return f"is {entry!r}, expected a detection"
    # A hard negative of a model without masks has the IoU of boxes in place of both.
    for key in DETECTION if "box_iou" in entry else required:
        if key not in entry:
            return f"has no {key!r}"
    box = entry["bbox"] if isinstance(entry["bbox"], list) else []
    if len(box) != 4 or not all(map(_is_number, [entry["score"], *box])):
        return (
            f"has bbox {entry['bbox']!r} and score {entry['score']!r}, expected x, y, width, "
            "height and a number"
        )
    if min(box[2:]) < 0:
        return f"has bbox {box}, expected x, y, width and height with neither of these below 0"
    for key in _IOUS:
        if not _is_number(entry.get(key, 0.0)):
            return f"has {key} {entry[key]!r}, expected a number"
    return ""


def _is_number(value) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _categories(dataset: str, *, hard_negatives: bool) -> list[int] | None:
    """The category ids that entries may have; None where the data set does not tell its classes."""
    metadata = MetadataCatalog.get(dataset)
    classes = metadata.get("thing_classes")
    if classes is None:
        return None
    ids = list(metadata.get("thing_dataset_id_to_contiguous_id", range(len(classes))))
    return [*ids, len(classes)] if hard_negatives else ids  # the class of false positives


def _category_problem(entry: dict, categories: Sequence[int] | None) -> str:
    found = entry.get("category_id", 0)
    is_known = isinstance(found, int) and not isinstance(found, bool)
    if is_known and (found >= 0 if categories is None else found in categories):
        return ""
    return f"has category_id {found!r}, expected {'an id' if categories is None else categories}"


def _mask_problem(entry: dict, image_size: tuple[int, int]) -> str:
    rle = entry.get("segmentation")
    if "segmentation" not in entry or (_is_rle(rle) and rle["size"] == list(image_size)):
        return ""
    found = f"of size {rle['size']}" if _is_rle(rle) else repr(rle)[:40]
    return f"has segmentation {found}, expected COCO RLE of size {list(image_size)}"


def _is_rle(value) -> bool:
    return isinstance(value, dict) and "size" in value and isinstance(value.get("counts"), str)


def _instances(entries: list[dict], image_size: tuple[int, int]) -> Instances:
    boxes = torch.tensor([e["bbox"] for e in entries], dtype=torch.float32).reshape(-1, 4)
    instances = Instances(image_size)
    instances.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
    instances.scores = torch.tensor([e["score"] for e in entries], dtype=torch.float32)
    instances.pred_classes = torch.tensor([e.get("category_id", 0) for e in entries]).long()
    if entries and all("segmentation" in e for e in entries):
        instances.pred_masks_rle = [e["segmentation"] for e in entries]
    ious = [e[key] for e in entries for key in _IOUS if key in e]
    if entries and len(ious) == len(entries):
        instances.lesion_ious = torch.tensor(ious, dtype=torch.float32)
    return instances
