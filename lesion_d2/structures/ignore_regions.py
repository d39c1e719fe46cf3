"""Regions to ignore, neither lesions nor background, in training and in evaluation.

In dicts they are annotations with ``iscrowd`` 1, as in COCO. In a training sample they are
instances of class -1 with ``is_region`` that precede the lesions.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from . import pairwise_intersection
from .boxes import annotation_boxes

#: Class of instances that all losses ignore.
IGNORED_CLASS = -1
#: Fraction of a box's own area that must be in a region for the box to lie in it.
INSIDE_SHARE = 0.5


def is_region(annotation: Mapping) -> bool:
    """Whether an annotation is a region to ignore."""
    return bool(annotation.get("iscrowd", 0))


def lesions_of(annotations: Iterable[Mapping]) -> list:
    """The annotations that are lesions, in their order."""
    return [a for a in annotations if not is_region(a)]


def regions_of(annotations: Iterable[Mapping]) -> list:
    """The annotations that are regions to ignore, in their order."""
    return [a for a in annotations if is_region(a)]


def region_boxes(record: Mapping) -> np.ndarray:
    """The regions to ignore of a Detectron2 dict as an (m, 4) array of XYXY boxes in pixels."""
    return annotation_boxes(regions_of(record.get("annotations", ())))


def lie_inside(boxes: Boxes, regions: Boxes) -> Tensor:
    """Which boxes lie in a region to ignore.

    A box lies in a region if their intersection is at least :data:`INSIDE_SHARE` of the box's area,
    as in COCO's evaluation of crowds at that threshold. IoU would not do: that of a small box with
    a large region is small.

    Args:
        boxes: n ``Boxes`` or ``Boxes3D``.
        regions: m of the same class, on the same device; may be empty.

    Returns:
        (n,) bool; False for boxes without area.
    """
    if len(regions) == 0:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    shared, areas = pairwise_intersection(regions, boxes).amax(dim=0), boxes.area()
    return (shared >= INSIDE_SHARE * areas) & (areas > 0)


class HostFlags(list):
    """A bool per instance, as a field of Instances that stays on the host.

    Checking for regions then does not synchronize with a GPU.
    """

    def __getitem__(self, item: int | slice | Tensor) -> "bool | HostFlags":
        if isinstance(item, Tensor):
            return HostFlags(torch.tensor(list(self), dtype=torch.bool)[item.cpu()].tolist())
        found = super().__getitem__(item)
        return HostFlags(found) if isinstance(item, slice) else found


def mark_regions(instances: Instances, num_regions: int) -> None:
    """Mark the first instances of a training sample as regions to ignore.

    Samples without a region are unchanged.
    """
    if num_regions > 0:
        flags = [True] * num_regions + [False] * (len(instances) - num_regions)
        instances.is_region = HostFlags(flags)


def split_regions(instances: Instances) -> tuple[Instances, Instances | None]:
    """Separate the regions to ignore from the lesions.

    Args:
        instances: the annotations of a training sample.

    Returns:
        The lesions (``instances`` itself if there is no region), and the regions or None.
    """
    if not instances.has("is_region"):
        return instances, None
    number = sum(instances.is_region)
    others = instances[number:]
    others.remove("is_region")
    return others, instances[:number]
