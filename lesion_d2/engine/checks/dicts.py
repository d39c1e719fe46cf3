"""What is wrong with the dicts of a registered data set."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from ...boxes import xyxy_box
from ...data.problems import raise_problems, short
from ...slice_geometry import EXPECTED_SPACING, is_spacing

_KEYS = (
    "file_name",
    "image_id",
    "height",
    "width",
    "spacing",
    "slice_range",
    "annotations",
)
_ANNOTATION_KEYS = ("bbox", "bbox_mode", "category_id")


def check_dicts(
    images: Sequence[Mapping],
    classes: Sequence[str] | None,
    *,
    unique: bool = False,
    with_masks: bool = False,
) -> None:
    """Check that training and evaluation will find in a data set's dicts what they look for.

    Args:
        images: as :func:`~lesion_d2.data.deeplesion.load_deeplesion` gives them.
        classes: of the data set, where they are known.
        unique: whether no two images may have one ``image_id``, as in an evaluation.
        with_masks: whether the mapper reads the masks of annotations that have one.

    Raises:
        ValueError: what is wrong, a line each: the image, the key, what was found and expected.
    """
    problems = []
    for number, image in enumerate(images):
        where = f"image {short(image.get('image_id', number))}"
        problems += [f"{where}: {text}" for text in _problems_of(image, classes)]
        if with_masks:
            problems += [f"{where}: {text}" for text in _problems_of_masks(image)]
    if unique:
        counts = Counter(repr(image["image_id"]) for image in images if "image_id" in image)
        problems += [
            f"image {name}: found its image_id {count} times, expected one of its own"
            for name, count in counts.items()
            if count > 1
        ]
    if problems:
        raise_problems(f"its {len(images)} images", problems)


def _problems_of(image: Mapping, classes: Sequence[str] | None) -> Iterable[str]:
    missing = [key for key in _KEYS if key not in image]
    for key in missing:
        yield f"found no {key!r}"
    for key in ("height", "width"):
        if key in image and not (isinstance(image[key], Integral) and image[key] > 0):
            yield f"found {key} {short(image[key])}, expected a whole number of pixels"
    if image.get("spacing") is not None and not (
        _are_numbers(image["spacing"], 3) and all(map(is_spacing, image["spacing"]))
    ):
        expected = f"for x, y and z {EXPECTED_SPACING}, or None"
        yield f"found spacing {short(image['spacing'])}, expected {expected}"
    slice_range = image.get("slice_range")
    if slice_range is not None and not _are_numbers(slice_range, 2):
        yield f"found slice_range {short(slice_range)}, expected the first and last slice, or None"
    annotations = image.get("annotations", [])
    if not isinstance(annotations, list | tuple):
        yield f"found annotations {short(annotations)}, expected a list"
        return
    for annotation in annotations:
        yield from _problems_of_annotation(annotation, classes)


def _problems_of_annotation(annotation: Any, classes: Sequence[str] | None) -> Iterable[str]:
    if not isinstance(annotation, Mapping):
        yield f"found annotation {short(annotation)}, expected a dict"
        return
    for key in _ANNOTATION_KEYS:
        if key not in annotation:
            yield f"found no {key!r} in an annotation"
    if "bbox" in annotation and not (
        _are_numbers(annotation["bbox"], 4) and all(map(math.isfinite, annotation["bbox"]))
    ):
        yield f"found bbox {short(annotation['bbox'])}, expected four finite numbers"
    elif "bbox" in annotation and "bbox_mode" in annotation:
        yield from _problems_of_box(annotation)
    category = annotation.get("category_id", 0)
    if not isinstance(category, Integral) or (classes and not 0 <= category < len(classes)):
        known = f"0 to {len(classes) - 1}" if classes else "a whole number"
        yield f"found category_id {short(category)}, expected {known}"
    if annotation.get("iscrowd", 0) not in (0, 1):
        yield f"found iscrowd {short(annotation['iscrowd'])}, expected 1 (to be ignored) or 0"


def _problems_of_box(annotation: Mapping) -> Iterable[str]:
    try:
        x1, y1, x2, y2 = xyxy_box(annotation)
    except ValueError as error:
        yield str(error)
        return
    if not (x1 < x2 and y1 < y2):
        mode = BoxMode(annotation["bbox_mode"]).name
        found = f"{short(annotation['bbox'])} ({mode})"
        yield f"found bbox {found}, expected a width and height above 0"


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list | tuple | np.ndarray)
        and len(values) == count
        and all(isinstance(v, Real) for v in values)
    )


def _problems_of_masks(image: Mapping) -> Iterable[str]:
    size = [image.get("height"), image.get("width")]
    for annotation in image.get("annotations", ()):
        if not isinstance(annotation, Mapping) or "segmentation" not in annotation:
            continue
        mask = annotation["segmentation"]
        if not (
            isinstance(mask, Mapping)
            and isinstance(mask.get("counts"), str | bytes)
            and list(mask.get("size", ())) == size
        ):
            yield (
                f"found segmentation {short(mask)}, expected COCO's compressed RLE of size {size} "
                "for a model that learns masks"
            )
