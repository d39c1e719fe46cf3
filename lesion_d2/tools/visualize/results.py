"""Files of detections in COCO's results format."""

from collections.abc import Sequence

from lesion_d2.structures.boxes import first_pixel, moved_xywh
from lesion_d2.structures.rle import check_mask
from lesion_d2.utils.errors import short_repr
from lesion_d2.utils.files import read_json
from lesion_d2.utils.values import are_numbers, field_problems, is_name, is_number, is_whole

import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

DETECTION = ("image_id", "bbox", "score")
HARD_NEGATIVE = (*DETECTION, "segmentation", "mask_iou")
_IOUS = ("mask_iou", "box_iou")
# Of an entry: key -> a check of its value, and what it expects; and defaults of missing keys.
_FIELDS = {
    "image_id": (is_name, "a name or number"),
    "bbox": (
        lambda box: are_numbers(box, 4) and min(box[2:]) >= 0,
        "x, y, width and height: finite numbers, neither of these below 0",
    ),
    "score": (is_number, "a number"),
    "category_id": (is_whole, "a whole number"),
    **dict.fromkeys(_IOUS, (is_number, "a number")),
}
_DEFAULTS = {"category_id": 0, **dict.fromkeys(_IOUS, 0.0)}


def read_results(
    path: str, records: Sequence[dict], dataset: str, *, required: Sequence[str] = DETECTION
) -> dict[str, Instances]:
    """Read the detections of a run.

    Args:
        path: ``coco_instances_results.json`` of an evaluation, or ``hard_negatives.json`` of a
            training: boxes XYWH in the coordinates of the data set's files
            (:func:`lesion_d2.structures.boxes.first_pixel`).
        records: the data set's dicts.
        dataset: its name, for messages.
        required: keys of every entry, :data:`DETECTION` or :data:`HARD_NEGATIVE`. An entry with
            ``box_iou`` needs no mask.

    Returns:
        ``Instances`` by image id, one for every image of the data set, which may be empty:
        pred_boxes (XYXY, in the coordinates of the dicts), scores, pred_classes and, if the file
        has them, pred_masks_rle and lesion_ious (``mask_iou``, or ``box_iou`` of models without
        masks).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a list of COCO results, or an entry has an image or category
            that the data set does not have, or a box of negative size. Names the entry, from 0.
    """
    categories = _categories(dataset, hard_negatives="mask_iou" in required)
    offset = first_pixel(dataset)
    entries: dict[str, list[dict]] = {str(record["image_id"]): [] for record in records}
    sizes = {str(record["image_id"]): (record["height"], record["width"]) for record in records}
    for number, entry in enumerate(_read_entries(path)):
        problem = _entry_problem(entry, required)
        if problem:
            raise ValueError(f"{path}: entry {number}: {problem}")
        image_id = str(entry["image_id"])
        if image_id not in entries:
            raise ValueError(
                f"{path}: entry {number}: found image {short_repr(entry['image_id'])}, expected "
                f"an image of data set {dataset!r}, such as {next(iter(entries))!r}"
            )
        problem = _category_problem(entry, categories) or _mask_problem(entry, sizes[image_id])
        if problem:
            raise ValueError(f"{path}: entry {number}: {problem}")
        entries[image_id].append({**entry, "bbox": moved_xywh(entry["bbox"], -offset)})
    return {image_id: _instances(found, sizes[image_id]) for image_id, found in entries.items()}


def _read_entries(path: str) -> list:
    entries = read_json(path, "the results of a run", allow_nan=True)
    if isinstance(entries, dict) and "detections" in entries:
        raise ValueError(
            f"{path}: found detections in 3-D, expected detections on slices; use "
            "`visualize volumes` for 3-D"
        )
    if not isinstance(entries, list):
        raise ValueError(f"{path}: found a {type(entries).__name__}, expected a list of detections")
    return entries


def _entry_problem(entry: object, required: Sequence[str]) -> str:
    """What is wrong with an entry of any data set."""
    if isinstance(entry, dict):
        # A hard negative of a model without masks has the IoU of boxes in place of both.
        for key in DETECTION if "box_iou" in entry else required:
            if key not in entry:
                return f"found no {key!r}, expected {', '.join(required)}"
        entry = {**_DEFAULTS, **entry}
    return next(field_problems(entry, _FIELDS), "")


def _categories(dataset: str, *, hard_negatives: bool) -> list[int] | None:
    """Valid category ids; None if the classes of the data set are not known."""
    metadata = MetadataCatalog.get(dataset)
    classes = metadata.get("thing_classes")
    if classes is None:
        return None
    ids = list(metadata.get("thing_dataset_id_to_contiguous_id", range(len(classes))))
    return [*ids, len(classes)] if hard_negatives else ids  # the class of false positives


def _category_problem(entry: dict, categories: Sequence[int] | None) -> str:
    found = entry.get("category_id", 0)
    if found >= 0 if categories is None else found in categories:
        return ""
    expected = "an id from 0" if categories is None else f"one of {short_repr(categories)}"
    return f"category_id: found {short_repr(found)}, expected {expected}"


def _mask_problem(entry: dict, image_size: tuple[int, int]) -> str:
    try:
        if "segmentation" in entry:
            check_mask(entry["segmentation"], image_size)
    except ValueError as error:
        return f"segmentation: {error}"
    return ""


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
