"""Checks of the dicts of a registered data set."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from detectron2.structures import BoxMode

from ...data.dict_rules import (
    annotation_problems,
    are_numbers,
    image_problems,
    number_problems,
)
from ...data.formats.problems import raise_problems, short_repr
from ...structures.boxes import xyxy_box
from ...structures.rle import check_mask
from ...structures.slice_geometry import EXPECTED_SPACING, is_spacing

_ANNOTATION_KEYS = ("bbox", "bbox_mode", "category_id")


def check_dicts(
    images: Sequence[Mapping],
    classes: Sequence[str] | None,
    *,
    unique: bool = False,
    with_masks: bool = False,
) -> None:
    """Check that a data set's dicts have what training and evaluation need.

    Args:
        images: dicts as from :func:`~lesion_d2.data.deeplesion.load_deeplesion`.
        classes: classes of the data set, if known.
        unique: whether ``image_id`` must be unique, as in an evaluation.
        with_masks: whether the mapper reads masks of annotations.

    Raises:
        ValueError: dicts are invalid, listed one error per line: image, key, found, expected.
    """
    problems = []
    for number, image in enumerate(images):
        texts = [*_problems_of(image, classes), *(_problems_of_masks(image) if with_masks else ())]
        if texts:
            where = f"image {short_repr(image.get('image_id', number))}"
            problems += [f"{where}: {text}" for text in texts]
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
    yield from image_problems(image)
    if image.get("spacing") is not None and not (
        are_numbers(image["spacing"], 3) and all(map(is_spacing, image["spacing"]))
    ):
        expected = f"for x, y and z {EXPECTED_SPACING}, or None"
        yield f"found spacing {short_repr(image['spacing'])}, expected {expected}"
    annotations = image.get("annotations", [])
    if not isinstance(annotations, list | tuple):
        yield f"found annotations {short_repr(annotations)}, expected a list"
        return
    for annotation in annotations:
        yield from _problems_of_annotation(annotation, classes)


def _problems_of_annotation(annotation: Any, classes: Sequence[str] | None) -> Iterable[str]:
    if not isinstance(annotation, Mapping):
        yield f"found annotation {short_repr(annotation)}, expected a dict"
        return
    for key in _ANNOTATION_KEYS:
        if key not in annotation:
            yield f"found no {key!r} in an annotation"
    if "bbox" in annotation and not (
        are_numbers(annotation["bbox"], 4) and all(map(math.isfinite, annotation["bbox"]))
    ):
        yield f"found bbox {short_repr(annotation['bbox'])}, expected four finite numbers"
    elif "bbox" in annotation and "bbox_mode" in annotation:
        yield from _problems_of_box(annotation)
    category = annotation.get("category_id", 0)
    if not isinstance(category, Integral) or (classes and not 0 <= category < len(classes)):
        known = f"0 to {len(classes) - 1}" if classes else "a whole number"
        yield f"found category_id {short_repr(category)}, expected {known}"
    yield from annotation_problems(annotation)


def _problems_of_box(annotation: Mapping) -> Iterable[str]:
    try:
        x1, y1, x2, y2 = xyxy_box(annotation)
    except ValueError as error:
        yield str(error)
        return
    if not (x1 < x2 and y1 < y2):
        mode = BoxMode(annotation["bbox_mode"]).name
        found = f"{short_repr(annotation['bbox'])} ({mode})"
        yield f"found bbox {found}, expected a width and height above 0"


def _problems_of_masks(image: Mapping) -> Iterable[str]:
    size = [image.get("height"), image.get("width")]
    annotations = image.get("annotations", ())
    for annotation in annotations if isinstance(annotations, list | tuple) else ():
        if not isinstance(annotation, Mapping):
            continue
        if "segmentation" not in annotation:
            yield from number_problems(annotation, ["recist"])
            continue
        try:
            check_mask(annotation["segmentation"], size)
        except ValueError as error:
            yield (
                f"found segmentation {short_repr(annotation['segmentation'])}, expected COCO's "
                f"compressed RLE of size {size} for a model that learns masks ({error})"
            )
