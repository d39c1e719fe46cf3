"""Reading of the voxels and lesions of a group of images."""

import os
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from ...data.coco.loading import image_source
from ...data.coco.records import CocoAnnotation, CocoImage
from ...data.formats.problems import short_repr
from ...data.slices.pictures import open_stored, read_picture_slice
from ...data.volume_set.form import Lesion, Volume
from ...scans.orientation import Turn
from ...structures.rle import encode_mask
from ..case import ImportedVolume
from .groups import Group


class _Placing:
    """Maps pixels of images to a volume in DeepLesion's orientation.

    Args:
        shape: (Z, H, W) of the volume.
        first: slice number of the images that becomes slice 0, without a turn.
        turn: from a file's axes (columns, rows, slices) to the volume's.
    """

    def __init__(self, shape: tuple[int, int, int], first: int = 0, turn: Turn | None = None):
        self.shape, self.first = shape, first
        self.turn = turn or Turn((2, 1, 0), (False, False, False))

    def slice(self, number: int) -> int:
        index = number - self.first
        return self.shape[0] - 1 - index if self.turn.flips[0] else index

    def points(self, points: np.ndarray) -> np.ndarray:
        """Map (N, 2) x, y in an image to the volume's slice."""
        _, y_axis, x_axis = self.turn.axes
        turned = np.asarray(points, float)[:, [x_axis, y_axis]]
        last = np.array([self.shape[2] - 1, self.shape[1] - 1])
        return np.where([self.turn.flips[2], self.turn.flips[1]], last - turned, turned)

    def box(self, box: Sequence[float]) -> tuple[float, ...]:
        corners = self.points(np.reshape(box, (2, 2)))
        return (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())

    def mask(self, counts: str, size: tuple[int, int]) -> str:
        """Map the RLE counts of an image's mask of size (H, W) to the volume's slice."""
        mask = coco_mask.decode({"size": list(size), "counts": counts})
        return encode_mask(self.turn.apply(mask.T[:, :, None])[0])["counts"]


def read_case(group: Group, name: str, patient: str) -> ImportedVolume:
    """Read the voxels and the lesions of a group of images.

    Args:
        group: a group of :func:`list_coco`.
        name, patient: name and patient of its volume.

    Raises:
        FileNotFoundError, ValueError: an image cannot be read, or annotations of a lesion conflict.
    """
    first, left_out = group.images[0], ()
    if group.is_stored:
        scan = open_stored(group.files[0]).read()
        voxels, left_out = scan.volume, scan.messages
        placing = _Placing(voxels.shape, turn=scan.grid.turn)
        geometry = {
            "spacing": scan.spacing,
            "origin": tuple(scan.origin.tolist()),
            "direction": tuple(scan.direction.ravel().tolist()),
        }
        num_other = len(voxels) - len(group.images)
        if num_other:
            left_out += (
                f"{num_other} of {len(voxels)} slices are not in the JSON; they are imported "
                "without lesions",
            )
    else:
        paths = [
            image_source(image, os.path.join(group.image_root, image.file_name))[0]
            for image in group.images
        ]
        voxels = np.stack([read_picture_slice(path) for path in paths])
        placing, geometry = _Placing(voxels.shape, group.numbers[0]), {"spacing": first.spacing}
    window = first.window or first.hu_window
    lesions = _lesions(group, placing)
    volume = Volume(name, patient, "", voxels.shape, window=window, lesions=lesions, **geometry)
    return ImportedVolume(voxels, volume, tuple(f"{name}: {line}" for line in left_out))


def _lesions(group: Group, placing: _Placing) -> tuple[Lesion, ...]:
    found: dict[tuple, dict[int, tuple[CocoImage, CocoAnnotation]]] = {}
    for number, image in zip(group.numbers, group.images, strict=True):
        for annotation in image.annotations:
            key = ("single", annotation.id, annotation.category)
            if annotation.lesion_id is not None:
                key = ("lesion", annotation.lesion_id)
            slices = found.setdefault(key, {})
            index = placing.slice(number)
            other = next(iter(slices.values()), (None, annotation))[1]
            if index in slices or _kind(other) != _kind(annotation):
                what = "on the same slice" if index in slices else "with another category"
                raise ValueError(
                    f"{group.json_file}: annotation {annotation.id}: found the lesion "
                    f"{short_repr(annotation.lesion_id)} of annotation {other.id} again {what}, "
                    "expected one annotation per slice, all of one category"
                )
            slices[index] = image, annotation
    return tuple(_lesion(n, slices, placing) for n, slices in enumerate(found.values(), 1))


def _kind(annotation: CocoAnnotation) -> tuple[int, bool]:
    return annotation.category, annotation.ignore


def _lesion(
    number: int, slices: dict[int, tuple[CocoImage, CocoAnnotation]], placing: _Placing
) -> Lesion:
    annotations = {z: annotation for z, (_, annotation) in sorted(slices.items())}
    boxes = {z: placing.box(a.box) for z, a in annotations.items()}
    size = next(iter(slices.values()))[0]
    size = size.height, size.width
    masks = {z: placing.mask(a.mask, size) for z, a in annotations.items() if a.mask is not None}
    recist = {
        z: tuple(placing.points(np.reshape(a.recist, (4, 2))).ravel().tolist())
        for z, a in annotations.items()
        if a.recist is not None
    }
    lows, highs = (np.array([box[i : i + 2] for box in boxes.values()]) for i in (0, 2))
    first = next(iter(annotations.values()))
    return Lesion(
        id=number,
        category=first.category,
        box=(
            *lows.min(axis=0).tolist(),
            float(min(boxes)),
            *highs.max(axis=0).tolist(),
            float(max(boxes)),
        ),
        boxes=boxes if len(boxes) > 1 else None,
        masks=masks or None,
        recist=recist or None,
        diameters_mm=max(
            (a.diameters_mm for a in annotations.values() if a.diameters_mm is not None),
            default=None,
        ),
        ignore=first.ignore,
        attributes={"annotation": first.id} if len(annotations) == 1 else {},
    )
