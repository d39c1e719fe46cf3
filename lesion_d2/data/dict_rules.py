"""Requirements of training and evaluation on the dicts of any registered data set."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real

import numpy as np
from detectron2.structures import BoxMode

from ..structures.boxes import xyxy_box
from ..structures.rle import check_mask
from ..structures.slice_geometry import EXPECTED_SPACING, is_spacing
from .formats.problems import raise_problems, short_repr

#: Required keys of an image; ``spacing`` and ``slice_range`` may be None.
KEYS = (
    "file_name",
    "image_id",
    "height",
    "width",
    "spacing",
    "slice_range",
    "annotations",
)
#: Optional keys of annotations, and the length of their values; unknown values have no key.
OPTIONAL_NUMBERS = {"recist": 8, "diameters_mm": 2}
# For these types, checking an abstract base class would take most of the time.
_PLAIN = (float, int)
_NAMES = ("image_id", "patient", "study", "series", "volume")


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
    problems = [
        f"image {short_repr(image.get('image_id', number))}: {text}"
        for number, image in enumerate(images)
        for text in _problems_of(image, classes, with_masks)
    ]
    if unique:
        counts = Counter(repr(image["image_id"]) for image in images if "image_id" in image)
        problems += [
            f"image {name}: found its image_id {count} times, expected one of its own"
            for name, count in counts.items()
            if count > 1
        ]
    if problems:
        raise_problems(f"its {len(images)} images", problems)


def image_problems(image: Mapping) -> Iterator[str]:
    """Yield errors of an image's dict, except spacing and annotations: found, expected."""
    for key in KEYS:
        if key not in image:
            yield f"found no {key!r}"
    for key in ("height", "width"):
        if key in image and not (isinstance(image[key], Integral) and image[key] > 0):
            yield f"found {key} {short_repr(image[key])}, expected a whole number of pixels"
    slice_range = image.get("slice_range")
    if slice_range is not None and not are_numbers(slice_range, 2):
        yield (
            f"found slice_range {short_repr(slice_range)}, expected the first and last "
            "slice, or None"
        )
    yield from _bad_names(image, _NAMES)


def annotation_problems(annotation: Mapping) -> Iterator[str]:
    """Yield errors of an annotation, except box, class and mask: found, expected."""
    is_crowd = annotation.get("iscrowd", 0)
    is_number = type(is_crowd) in _PLAIN or isinstance(is_crowd, Real | np.bool_)
    if not is_number or is_crowd not in (0, 1):
        yield f"found iscrowd {short_repr(is_crowd)}, expected 1 (to be ignored) or 0"
    yield from _bad_names(annotation, ("lesion_id", "row"))
    yield from old_key_problems(annotation)


def old_key_problems(annotation: Mapping) -> Iterator[str]:
    """Yield an error if an annotation has an old key, whose value would be ignored."""
    if "lesion" in annotation and "lesion_id" not in annotation:
        yield "found the key 'lesion', expected 'lesion_id', its name since version 0.1"


def number_problems(annotation: Mapping, keys: Sequence[str]) -> Iterator[str]:
    """Yield errors in those :data:`OPTIONAL_NUMBERS` that an annotation has."""
    for key in keys:
        if key in annotation and not has_numbers(annotation, key):
            yield (
                f"found {key} {short_repr(annotation[key])}, expected "
                f"{OPTIONAL_NUMBERS[key]} finite "
                "numbers, or no such key"
            )


def has_numbers(annotation: Mapping, key: str) -> bool:
    """Whether an annotation has a key of :data:`OPTIONAL_NUMBERS`, with finite values."""
    found = annotation.get(key)
    if type(found) in (list, tuple) and all(type(v) is float for v in found):
        return len(found) == OPTIONAL_NUMBERS[key] and all(map(math.isfinite, found))
    try:
        values = np.asarray(found, dtype=float)
    except (TypeError, ValueError):
        return False
    return values.shape == (OPTIONAL_NUMBERS[key],) and bool(np.isfinite(values).all())


def are_numbers(values: object, count: int) -> bool:
    """Whether this is a list or array of ``count`` numbers, which need not be finite."""
    return (
        isinstance(values, list | tuple | np.ndarray)
        and len(values) == count
        and all(type(v) in _PLAIN or isinstance(v, Real) for v in values)
    )


def _bad_names(record: Mapping, keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        if type(record.get(key)).__hash__ is None:
            yield f"found {key} {short_repr(record[key])}, expected text or a number"


def _problems_of(image: Mapping, classes: Sequence[str] | None, with_masks: bool) -> Iterator[str]:
    yield from image_problems(image)
    spacing, annotations = image.get("spacing"), image.get("annotations", [])
    if spacing is not None and not (are_numbers(spacing, 3) and all(map(is_spacing, spacing))):
        expected = f"for x, y and z {EXPECTED_SPACING}, or None"
        yield f"found spacing {short_repr(spacing)}, expected {expected}"
    if not isinstance(annotations, list | tuple):
        yield f"found annotations {short_repr(annotations)}, expected a list"
        return
    for annotation in annotations:
        if not isinstance(annotation, Mapping):
            yield f"found annotation {short_repr(annotation)}, expected a dict"
            continue
        yield from _problems_of_annotation(annotation, classes)
        if with_masks:
            yield from _problems_of_mask(annotation, [image.get("height"), image.get("width")])


def _problems_of_annotation(annotation: Mapping, classes: Sequence[str] | None) -> Iterator[str]:
    missing = [key for key in ("bbox", "bbox_mode", "category_id") if key not in annotation]
    yield from (f"found no {key!r} in an annotation" for key in missing)
    box, category = annotation.get("bbox"), annotation.get("category_id", 0)
    if "bbox" in annotation and not (are_numbers(box, 4) and all(map(math.isfinite, box))):
        yield f"found bbox {short_repr(box)}, expected four finite numbers"
    elif {"bbox", "bbox_mode"} <= annotation.keys():
        yield from _problems_of_box(annotation)
    if not isinstance(category, Integral) or (classes and not 0 <= category < len(classes)):
        known = f"0 to {len(classes) - 1}" if classes else "a whole number"
        yield f"found category_id {short_repr(category)}, expected {known}"
    yield from annotation_problems(annotation)


def _problems_of_box(annotation: Mapping) -> Iterator[str]:
    try:
        x1, y1, x2, y2 = xyxy_box(annotation)
    except ValueError as error:
        yield str(error)
        return
    if not (x1 < x2 and y1 < y2):
        found = f"{short_repr(annotation['bbox'])} ({BoxMode(annotation['bbox_mode']).name})"
        yield f"found bbox {found}, expected a width and height above 0"


def _problems_of_mask(annotation: Mapping, size: Sequence) -> Iterator[str]:
    if "segmentation" not in annotation:
        yield from number_problems(annotation, ["recist"])
        return
    try:
        check_mask(annotation["segmentation"], size)
    except ValueError as error:
        yield (
            f"found segmentation {short_repr(annotation['segmentation'])}, expected COCO's "
            f"compressed RLE of size {size} for a model that learns masks ({error})"
        )
