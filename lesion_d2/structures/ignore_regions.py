"""Regions to ignore: neither lesions nor background, for training and evaluation alike.

In dicts they are annotations with ``iscrowd`` 1, as in COCO. In a training sample they are
instances of class -1 with ``is_region``, which come before the lesions.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from . import pairwise_intersection
from .boxes import xyxy_box

#: Class of instances that no loss counts, neither as lesions nor as background.
IGNORED_CLASS = -1
#: Share of its own area from which on a box lies in a region.
INSIDE_SHARE = 0.5


def is_region(annotation: Mapping) -> bool:
    """Whether an annotation of a dict is a region to ignore, and no lesion."""
    return bool(annotation.get("iscrowd", 0))


def lesions_of(annotations: Iterable[Mapping]) -> list:
    """The annotations that are lesions, in their order."""
    return [a for a in annotations if not is_region(a)]


def regions_of(annotations: Iterable[Mapping]) -> list:
    """The annotations that are regions to ignore, in their order."""
    return [a for a in annotations if is_region(a)]


def region_boxes(record: Mapping) -> np.ndarray:
    """The regions to ignore of a Detectron2 dict as an (m, 4) array of XYXY boxes in pixels."""
    boxes = [xyxy_box(a) for a in regions_of(record.get("annotations", ()))]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def lie_inside(boxes: Boxes, regions: Boxes) -> Tensor:
    """Which boxes lie in a region to ignore.

    A box lies in one where their intersection is at least :data:`INSIDE_SHARE` of the box's own
    area, as COCO's evaluation at that threshold takes it: small boxes in a large region have hardly
    any IoU with it.

    Args:
        boxes: n, or n ``Boxes3D``.
        regions: m of the same kind, on the same device; there may be none.

    Returns:
        (n,) bool. A box without area lies in none.
    """
    if len(regions) == 0:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    shared, areas = pairwise_intersection(regions, boxes).amax(dim=0), boxes.area()
    return (shared >= INSIDE_SHARE * areas) & (areas > 0)


class HostFlags(list):
    """A field of Instances, a bool each, that stays on the host whatever the boxes do.

    So nobody waits for a GPU to learn whether there are regions.
    """

    def __getitem__(self, item: int | slice | Tensor) -> "bool | HostFlags":
        if isinstance(item, Tensor):
            return HostFlags(torch.tensor(list(self), dtype=torch.bool)[item.cpu()].tolist())
        found = super().__getitem__(item)
        return HostFlags(found) if isinstance(item, slice) else found


def mark_regions(instances: Instances, num_regions: int) -> None:
    """Say that the first instances of a training sample are regions to ignore.

    Samples without a region stay as they are.
    """
    if num_regions > 0:
        flags = [True] * num_regions + [False] * (len(instances) - num_regions)
        instances.is_region = HostFlags(flags)


def split_regions(instances: Instances) -> tuple[Instances, Instances | None]:
    """Part the regions to ignore from what else is annotated.

    Args:
        instances: of a training sample.

    Returns:
        The others, which are ``instances`` itself where there is no region, and the regions, or
        None.
    """
    if not instances.has("is_region"):
        return instances, None
    number = sum(instances.is_region)
    others = instances[number:]
    others.remove("is_region")
    return others, instances[:number]
