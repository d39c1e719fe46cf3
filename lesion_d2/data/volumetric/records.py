"""Records of volumes: dicts of slices, grouped into contiguous runs of slices."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ...structures.boxes import annotation_boxes
from ...structures.ignore_regions import is_region
from ...structures.rle import check_mask
from ..formats.problems import short_repr

# Keys of masks in annotations of slices: those that 2-D models use too, and those of phantoms.
_MASK_KEYS = ("segmentation", "true_segmentation")


def volume_records(dicts: Iterable[Mapping], name: str = "data set") -> list[dict]:
    """Group the dicts of a data set's slices into volumes.

    3-D detectors need consecutive slices: a volume with gaps in its slice numbers becomes several
    runs, each a record with its part of the lesions.

    Args:
        dicts: dicts of a data set with all slices, one per slice, such as
            ``phantom_volumes_train``.
        name: name of the data set, for messages.

    Returns:
        One dict per run, in the order of volumes, then of slices, with

        - ``image_id``: the volume's name; with ``@<first slice>`` if it has several runs.
        - ``volume``, ``patient`` (the volume's name if slices have none), ``first_slice`` (its
          number on disk), ``shape`` (D, H, W), ``spacing`` (x, y, z) in mm or None, and ``files``,
          the paths of its D slices.
        - ``annotations``, one for each lesion and region to ignore: ``bbox`` X1Y1Z1X2Y2Z2 in the
          run's voxels, the extent of its boxes on the slices with the edges of its first and last
          slice (z1 - 0.5 and z2 + 0.5); ``category_id``; ``lesion_id`` (None for regions without);
          ``segmentation``, slice index in the run -> COCO's RLE, if all its slices have a mask; and
          ``iscrowd``, 1, for regions to ignore.

        Regions without ``lesion_id`` are on one slice each. A lesion that is missing on slices in
        between remains one lesion from its first to its last slice, with a mask of two parts.

    Raises:
        ValueError: a dict has no ``volume`` or ``slice_index``, a slice is duplicate, slices of a
            run differ in size, a lesion's annotation has no ``lesion_id`` or another class than its
            first, or a mask is empty or not a compressed RLE of the slice's size.
    """
    volumes: dict[object, dict[int, Mapping]] = {}
    for image in dicts:
        for key in ("volume", "slice_index"):
            if image.get(key) is None:
                raise ValueError(
                    f"{name}, image {short_repr(image.get('image_id'))}: found no {key!r}, "
                    "expected a slice of a data set with all slices of its volumes, such as "
                    "<name>_volumes"
                )
        slices = volumes.setdefault(image["volume"], {})
        if image["slice_index"] in slices:
            raise ValueError(
                f"{name}, volume {short_repr(image['volume'])}: found slice {image['slice_index']} "
                "twice, expected once"
            )
        slices[image["slice_index"]] = image
    records = []
    for volume, slices in volumes.items():
        runs = list(_runs(sorted(slices)))
        for numbers in runs:
            image_id = str(volume) if len(runs) == 1 else f"{volume}@{numbers[0]}"
            where = f"{name}, volume {image_id}"
            records.append(_record(image_id, [slices[n] for n in numbers], where))
    return records


def _runs(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Group ascending numbers into runs of consecutive ones."""
    for _, run in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        yield [number for _, number in run]


def _record(image_id: str, slices: Sequence[Mapping], where: str) -> dict:
    first = slices[0]
    size = first["height"], first["width"]
    for image in slices:
        if (image["height"], image["width"]) != size:
            raise ValueError(
                f"{where}, slice {image['slice_index']}: found {image['width']} x "
                f"{image['height']} pixels, expected {size[1]} x {size[0]} as in its first slice"
            )
    spacing = first.get("spacing")
    return {
        "image_id": image_id,
        "volume": first["volume"],
        "patient": first.get("patient", first["volume"]),
        "first_slice": first["slice_index"],
        "shape": (len(slices), *size),
        "spacing": None if spacing is None else tuple(map(float, spacing)),
        "files": [image["file_name"] for image in slices],
        "annotations": [
            _annotation(found, size, where) for found in _by_lesion(slices, where).values()
        ],
    }


def _by_lesion(slices: Sequence[Mapping], where: str) -> dict[tuple, dict[int, Mapping]]:
    """Key of a lesion in 3-D -> slice index -> annotation on this slice."""
    lesions: dict[tuple, dict[int, Mapping]] = {}
    for index, image in enumerate(slices):
        for number, annotation in enumerate(image.get("annotations", ())):
            lesion, region = annotation.get("lesion_id"), is_region(annotation)
            here = f"{where}, slice {image['slice_index']}"
            if lesion is None and not region:
                raise ValueError(f"{here}: found an annotation without 'lesion_id', expected one")
            key = (lesion, region) if lesion is not None else (lesion, region, index, number)
            found = lesions.setdefault(key, {})
            if index in found:
                raise ValueError(f"{here}: found lesion {short_repr(lesion)} twice, expected once")
            found[index] = annotation
    return lesions


def _annotation(found: Mapping[int, Mapping], size: tuple[int, int], where: str) -> dict:
    """Make one lesion from its annotations by slice index, in ascending order."""
    first = next(iter(found.values()))
    lesion, category = first.get("lesion_id"), first["category_id"]
    here = f"{where}, lesion {short_repr(lesion)}"
    for annotation in found.values():
        if annotation["category_id"] != category:
            raise ValueError(
                f"{here}: found the classes {category} and {annotation['category_id']}, expected "
                "one"
            )
    boxes = annotation_boxes(found.values())
    (x1, y1), (x2, y2) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
    joined = {
        "bbox": [x1, y1, min(found) - 0.5, x2, y2, max(found) + 0.5],
        "category_id": category,
        "lesion_id": lesion,
    }
    masks = {index: _mask(annotation, size, here) for index, annotation in found.items()}
    if all(mask is not None for mask in masks.values()):
        joined["segmentation"] = masks
    if is_region(first):
        joined["iscrowd"] = 1
    return joined


def _mask(annotation: Mapping, size: tuple[int, int], where: str) -> Mapping | None:
    for key in _MASK_KEYS:
        if key in annotation:
            rle = annotation[key]
            try:
                _, area = check_mask(rle, size)
            except ValueError as error:
                raise ValueError(f"{where}: {key}: {error}") from None
            if not area:
                raise ValueError(
                    f"{where}: {key}: found an empty mask, expected at least one pixel"
                )
            return rle
    return None
