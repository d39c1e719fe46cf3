"""Volume sets as Detectron2's dicts."""

import logging
import os
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from detectron2.structures import BoxMode

from ...utils.display_windows import WINDOWS
from ..deeplesion.csv_rows import cut_boxes
from ..formats.problems import raise_problems
from .form import FILE_NAME, read_volume_set
from .records import Lesion, Volume, VolumeSet
from .slices import voxels_slice_path
from .voxels import voxels_shape

logger = logging.getLogger(__name__)

#: Display window in HU of volumes without ``window``.
WINDOW = WINDOWS["abdomen"]

_MAX_SETS = 8
_MAX_SHAPES = 2**16


def load_volume_set(
    root: str | os.PathLike,
    patients: Collection[str] | None = None,
    *,
    every_slice: bool = False,
) -> list[dict]:
    """Convert a volume set to Detectron2's dicts, one per slice, in the file's order.

    In addition to Detectron2's ``file_name, image_id, height, width, annotations`` a dict has
    ``spacing`` (x, y, z) mm or None, ``slice_range`` (first, last), ``slice_index`` (from 0),
    ``patient`` and ``volume`` (names), ``window`` (low, high) HU and, with ``every_slice``,
    ``volume_boxes``: per lesion, the union of its boxes on all slices, XYXY in pixels; all dicts of
    a volume share this list.

    An annotation has ``bbox`` (XYXY_ABS, clipped to the image), ``bbox_mode``, ``category_id``,
    ``lesion_id`` and ``row``, the lesion's id; if known on this slice, ``segmentation`` (COCO's
    RLE) and ``recist``; if known, ``diameters_mm``; ``is_key``, True, on the slice of its largest
    box (of several, the one nearest to its middle slice); and ``iscrowd``, 1, for a region to
    ignore.

    Args:
        root: the folder with ``volume_set.json``. Its content is cached until the file changes.
        patients: use only volumes of these patients; None for all.
        every_slice: include slices without lesions. Volumes of one slice, which are single images,
            are always included.

    Raises:
        FileNotFoundError: there is no ``volume_set.json``.
        ValueError: it is invalid, or voxel files are missing, damaged or of another size; one line
            for each.
    """
    volume_set = read_cached(root)
    volumes = [v for v in volume_set.volumes if patients is None or v.patient in patients]
    _check_files(root, volumes)
    dicts = [image for volume in volumes for image in _slices(root, volume, every_slice)]
    lesions = [lesion for volume in volumes for lesion in volume.lesions]
    num_regions = sum(lesion.ignore for lesion in lesions)
    logger.info(
        f"{root}: {len(lesions) - num_regions} lesions and {num_regions} regions to ignore in "
        f"{len(volumes)} volumes, with {len(dicts)} slices"
    )
    return dicts


def read_cached(root: str | os.PathLike) -> VolumeSet:
    """Like :func:`read_volume_set`, cached until the file changes; do not modify the result.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_volume_set`.
    """
    file = Path(root, FILE_NAME)
    state = os.stat(file) if file.exists() else None
    return _read(os.path.abspath(root), state and (state.st_mtime_ns, state.st_size))


@lru_cache(_MAX_SETS)
def _read(root: str, state: tuple[int, int] | None) -> VolumeSet:
    return read_volume_set(root)


def _check_files(root: str | os.PathLike, volumes: list[Volume]) -> None:
    problems = []
    for volume in volumes:
        file = os.path.join(root, volume.image)
        try:
            state = os.stat(file)
            shape = _shape(file, (state.st_mtime_ns, state.st_size))
        except FileNotFoundError:
            problems.append(f"volume {volume.name!r}: found no {file}, expected its voxel file")
        except (OSError, ValueError) as error:
            problems.append(f"volume {volume.name!r}: {error}")
        else:
            if shape != volume.shape:
                problems.append(
                    f"volume {volume.name!r}: found voxels of shape {shape} in {file}, expected "
                    f"{volume.shape}"
                )
    raise_problems(Path(root, FILE_NAME), problems)


@lru_cache(_MAX_SHAPES)
def _shape(file: str, state: tuple[int, int]) -> tuple[int, int, int]:
    return voxels_shape(file)


def _slices(root: str | os.PathLike, volume: Volume, every_slice: bool) -> Iterator[dict]:
    """The dicts of a volume, which share common objects."""
    depth, height, width = volume.shape
    common = {
        "height": height,
        "width": width,
        "spacing": volume.spacing,
        "slice_range": (0, depth - 1),
        "patient": volume.patient,
        "volume": volume.name,
        "window": volume.window or WINDOW,
    }
    if every_slice:
        common["volume_boxes"] = _extents(volume)
    annotations: dict[int, list[dict]] = {}
    for lesion in volume.lesions:
        for number, annotation in _annotations(lesion, (height, width)):
            annotations.setdefault(number, []).append(annotation)
    for number in range(depth):
        found = annotations.get(number, [])
        if every_slice or depth == 1 or not all(a.get("iscrowd") for a in found):
            yield {
                "file_name": voxels_slice_path(os.path.join(root, volume.image), number),
                "image_id": f"{volume.name}_{number:03d}",
                "slice_index": number,
                **common,
                "annotations": found,
            }


def _annotations(lesion: Lesion, size: tuple[int, int]) -> Iterator[tuple[int, dict]]:
    """A lesion's annotations, each with its slice number."""
    key = _key_slice(lesion)
    for number in lesion.slices:
        annotation = {
            "bbox": _cut(lesion.box_on(number), size),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": lesion.category,
            "lesion_id": lesion.id,
            "row": lesion.id,
        }
        if lesion.masks and number in lesion.masks:
            annotation["segmentation"] = {"size": list(size), "counts": lesion.masks[number]}
        if lesion.recist and number in lesion.recist:
            annotation["recist"] = list(lesion.recist[number])
        if lesion.diameters_mm is not None:
            annotation["diameters_mm"] = lesion.diameters_mm
        if number == key:
            annotation["is_key"] = True
        if lesion.ignore:
            annotation["iscrowd"] = 1
        yield number, annotation


def _key_slice(lesion: Lesion) -> int:
    middle = (lesion.box[2] + lesion.box[5]) / 2

    def rank(number: int) -> tuple[float, float]:
        x1, y1, x2, y2 = lesion.box_on(number)
        return (x2 - x1) * (y2 - y1), -abs(number - middle)

    return max(lesion.slices, key=rank)


def _extents(volume: Volume) -> list[list[float]]:
    """Union of each lesion's boxes over all its slices, XYXY."""
    return [
        _cut((*lesion.box[:2], *lesion.box[3:5]), volume.shape[1:])
        for lesion in volume.lesions
        if not lesion.ignore
    ]


def _cut(box: tuple[float, ...], size: tuple[int, int]) -> list[float]:
    """Clip a box XYXY to an image of a size (height, width)."""
    return cut_boxes(np.array([box]), np.array([size[::-1]]))[0][0].tolist()
