"""Contact sheet of data sets: images with faults first, then some with lesions."""

from collections.abc import Mapping, Sequence

import numpy as np
from detectron2.data import MetadataCatalog

from ..data.dict_rules import has_numbers
from ..structures.ignore_regions import lesions_of
from ..visualization import (
    MASK_COLOR,
    REGION_LEGEND,
    TRUTH_COLOR,
    TRUTH_LEGEND,
    WINDOWS,
    LesionVisualizer,
    contact_sheet,
    slice_marks,
    window_image,
)
from ..visualization.visualizer import lesion_label
from .faults import Fault
from .loading import LoadedSet
from .pixels import PixelPass
from .rules.annotations import box_of
from .rules.volumes import spacing_of
from .slices import mask_of

_SIDE = 512
_COLUMNS = 4
_LEGEND = [*TRUTH_LEGEND, *REGION_LEGEND]


def draw_sheet(
    pixel_pass: PixelPass, faults: Sequence[Fault], *, number: int, seed: int = 0
) -> np.ndarray | None:
    """Draw boxes, masks and diameters of some images, titled with name and fault.

    At most half of the pictures show faults, alternating between kinds; the others are sampled
    evenly from all data sets and classes. Images that cannot be read are left out.

    Args:
        pixel_pass: pass over the data sets.
        faults: the faults found.
        number: maximum number of pictures.
        seed: seed of the random selection.

    Returns:
        RGB uint8 picture; None if no image can be drawn.
    """
    wanted: dict[int, str] = {}
    for image, kind in _faulty(faults):
        if len(wanted) < number // 2:
            wanted.setdefault(image, kind)
    for image in _drawn(pixel_pass.sets, seed):
        wanted.setdefault(image, "")
    tiles, titles = [], []
    for image, kind in wanted.items():
        if len(tiles) == number:
            break
        loaded, record = pixel_pass.image(image)
        tile = _tile(loaded, record)
        if tile is not None:
            tiles.append(tile)
            titles.append(f"{loaded.name} {record['image_id']}\n{kind or _lesions(record)}")
    if not tiles:
        return None
    return contact_sheet(tiles, titles, _LEGEND, columns=min(_COLUMNS, len(tiles)))


def _faulty(faults: Sequence[Fault]):
    """Images with faults: the first of each kind, then the second, and so on."""
    longest = max((len(fault.images) for fault in faults), default=0)
    for i in range(longest):
        for fault in faults:
            if i < len(fault.images):
                yield fault.images[i], fault.kind


def _drawn(sets: Sequence[LoadedSet], seed: int):
    """Images with lesions, alternating between data sets and classes; others if there are none."""
    rng = np.random.default_rng(seed)
    groups: dict[tuple, list[int]] = {}
    for loaded in sets:
        for number, image in loaded.numbered():
            lesions = lesions_of(image["annotations"])
            for category in {str(one.get("category_id")) for one in lesions} or {""}:
                groups.setdefault((not category, loaded.name, category), []).append(number)
    queues = [rng.permutation(groups[key]).tolist() for key in sorted(groups) if not key[0]]
    queues = queues or [rng.permutation(groups[key]).tolist() for key in sorted(groups)]
    while queues:
        for queue in queues:
            yield queue.pop()
        queues = [queue for queue in queues if queue]


def _lesions(record: Mapping) -> str:
    number = len(lesions_of(record["annotations"]))
    return f"{number} lesion{'' if number == 1 else 's'}"


def _tile(loaded: LoadedSet, record: Mapping) -> np.ndarray | None:
    """One picture; None if the image cannot be read."""
    window = record.get("window") or WINDOWS["abdomen"]
    try:
        image = window_image(record, window)
    except (OSError, ValueError):
        return None  # already logged
    annotations = [one for one in record["annotations"] if box_of(one) is not None]
    lesions = lesions_of(annotations)
    spacing, metadata = spacing_of(record), MetadataCatalog.get(loaded.name)
    is_known = isinstance(spacing, tuple)  # an invalid one is text
    marks = slice_marks({"spacing": spacing if is_known else None}, window)
    visualizer = LesionVisualizer(image, metadata, side=_SIDE, **marks)
    for one in lesions:
        mask = _mask(one, image.shape[:2])
        if mask is not None:
            visualizer.draw_soft_mask(mask.astype(np.float32), MASK_COLOR, alpha=0.35)
    visualizer.draw_truth_boxes({"annotations": annotations})
    for one in lesions:
        if has_numbers(one, "recist"):
            visualizer.draw_recist(one["recist"])
    for one in lesions:
        text = lesion_label(one, loaded.classes)
        if text:
            visualizer.draw_label(text, box_of(one), TRUTH_COLOR)
    return visualizer.get_output().get_image()


def _mask(annotation: Mapping, shape: tuple[int, int]) -> np.ndarray | None:
    """A lesion's mask; None if it is missing or invalid, which is already logged."""
    if annotation.get("segmentation") is None:
        return None
    try:
        return mask_of(annotation["segmentation"], shape)
    except ValueError:
        return None
