"""Statistics and faults of the pixels of slices, computed in worker processes."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..data.slices.ct import read_slice
from ..structures.boxes import mask_extent
from ..structures.recist import BOX_MARGIN
from ..structures.rle import decode_mask

#: HU above which a pixel is tissue, and above which it may be bone.
TISSUE, BONE = -300, 300
# Values of soft tissue (-200 to 300 HU) if the offset of 1024 was not subtracted.
_WITHOUT_OFFSET = (824, 1324)
# A lesion is on air if nine of ten pixels are below; lungs are above it, air outside the body
# below.
_AIR = -900.0
_MIN_IOU = 0.5
_STEP = 2  # bones are located on every second row and column
_MIN_BODY_ROW = 10  # tissue pixels (at this step) in a row of the body; fewer are noise


class Region(NamedTuple):
    """An annotation on a slice.

    Args:
        image: number of its image.
        index: index in the image's annotations.
        box: XYXY in pixels; None if invalid.
        has_mask: whether it has a ``segmentation``.
        mask: its ``segmentation``.
        ignore: whether it is a region to ignore.
    """

    image: int
    index: int
    box: tuple[float, float, float, float] | None
    has_mask: bool
    mask: object
    ignore: bool


class SliceTask(NamedTuple):
    """A slice to check: number of its first image, file, height and width, and annotations."""

    number: int
    file: str
    size: tuple[int, int]
    regions: tuple[Region, ...]


class Pixels(NamedTuple):
    """Statistics over the pixels of slices; :meth:`joined` merges them.

    Args:
        low, high: minimum and maximum in HU.
        count, tissue, offset: number of all pixels, of those above -300 HU, and of those from 824
            to 1324, the range of soft tissue if an offset was not subtracted.
        bones: number of pixels (in every second row and column) above 300 HU.
        bone_height: sum over them of their distance below the center of the body's tissue, relative
            to the body's height; positive if bones are posterior.
    """

    low: int
    high: int
    count: int
    tissue: int
    offset: int
    bones: int
    bone_height: float

    def joined(self, other: "Pixels") -> "Pixels":
        """Statistics over both sets of slices."""
        sums = (a + b for a, b in zip(self[2:], other[2:], strict=True))
        return Pixels(min(self.low, other.low), max(self.high, other.high), *sums)


class SliceFacts(NamedTuple):
    """Result of the check of a slice.

    Args:
        number: number of its task.
        fault: kind and description of the fault if it could not be read, else None.
        shape: height, width.
        digest: digest of its pixels and shape, 16 bytes.
        pixels: see :class:`Pixels`.
        regions: faults of annotations: number of the image, index of the annotation, kind, and
            description.
    """

    number: int
    fault: tuple[str, str] | None = None
    shape: tuple[int, int] = (0, 0)
    digest: bytes = b""
    pixels: Pixels | None = None
    regions: tuple[tuple[int, int, str, str], ...] = ()


def look_at_slices(tasks: Sequence[SliceTask]) -> list[SliceFacts]:
    """Check slices one by one, without keeping their pixels.

    Args:
        tasks: preferably of one folder or volume, so that its file is opened once.

    Returns:
        One result per task, in order.
    """
    return [_look_at(task) for task in tasks]


def _look_at(task: SliceTask) -> SliceFacts:
    try:
        hu = read_slice(task.file)
    except FileNotFoundError as error:
        return SliceFacts(task.number, ("missing_file", str(error)))
    except (OSError, ValueError) as error:
        return SliceFacts(task.number, ("unreadable_file", _with_file(task.file, error)))
    digest = hashlib.blake2b(repr(hu.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(hu))
    return SliceFacts(
        task.number,
        shape=hu.shape,
        digest=digest.digest(),
        pixels=_pixels(hu),
        regions=tuple(_faults_of_regions(hu, task)),
    )


def _with_file(file: str, error: Exception) -> str:
    return str(error) if file in str(error) else f"{file}: {error}"


def _pixels(hu: np.ndarray) -> Pixels:
    low, high = _WITHOUT_OFFSET
    bones, bone_height = _bones(hu[::_STEP, ::_STEP])
    return Pixels(
        int(hu.min()),
        int(hu.max()),
        hu.size,
        int(np.count_nonzero(hu > TISSUE)),
        int(np.count_nonzero((hu >= low) & (hu <= high))),
        bones,
        bone_height,
    )


def _bones(hu: np.ndarray) -> tuple[int, float]:
    """Number of bone pixels, and the sum of their distances below the body's center."""
    tissue = np.count_nonzero(hu > TISSUE, axis=1)
    bone = np.count_nonzero(hu > BONE, axis=1)
    body = np.flatnonzero(tissue >= _MIN_BODY_ROW)
    if not len(body) or not bone.any():
        return 0, 0.0
    rows = np.arange(len(hu))
    center = tissue @ rows / tissue.sum()
    return int(bone.sum()), float(bone @ (rows - center) / (body[-1] - body[0] + 1))


def _faults_of_regions(hu: np.ndarray, task: SliceTask) -> Iterable[tuple[int, int, str, str]]:
    for region in task.regions:
        for kind, text in _region_faults(hu, region, task.size):
            yield region.image, region.index, kind, text


def _region_faults(
    hu: np.ndarray, region: Region, size: tuple[int, int]
) -> Iterable[tuple[str, str]]:
    mask = None
    if region.has_mask:
        try:
            mask = mask_of(region.mask, size)
        except ValueError as error:
            yield "bad_mask", str(error)
    if region.box is None:
        return
    if mask is not None and not _fits(mask, region.box):
        expected = "{:g}, {:g}, {:g}, {:g}".format(*_extent(mask))
        found = "{:g}, {:g}, {:g}, {:g}".format(*region.box)
        yield "mask_box", f"found the box {found}, expected about its mask's extent, {expected}"
    if not region.ignore and hu.shape == size:
        values = hu[mask] if mask is not None else _inside(hu, region.box)
        if values.size and (top := np.percentile(values, 90)) < _AIR:
            yield "lesion_on_air", f"found 90 % of its pixels below {top:.0f} HU, expected tissue"


def mask_of(mask: object, size: Sequence[int]) -> np.ndarray:
    """Decode the mask of an annotation, (H, W) bool.

    Args:
        mask: its ``segmentation``.
        size: height and width of its image.

    Raises:
        ValueError: it is not COCO's compressed RLE of this size, or it is empty.
    """
    decoded = decode_mask(mask, size)
    if not decoded.any():
        raise ValueError("found an empty mask, expected at least one pixel")
    return decoded


def _extent(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The outer edges of a mask's pixels, XYXY."""
    rows, columns = mask_extent(mask)
    return columns.start - 0.5, rows.start - 0.5, columns.stop - 0.5, rows.stop - 0.5


def _fits(mask: np.ndarray, box: Sequence[float]) -> bool:
    """Whether a box matches a mask: tight, or with DeepLesion's margin of 5 pixels."""
    extent, box = np.array(_extent(mask)), np.array(box)
    if np.abs(extent - box).max() <= 1.0:  # half a pixel matters for tiny masks
        return True
    limit = np.array([mask.shape[1], mask.shape[0]] * 2) - 0.5
    grown = np.clip(extent + BOX_MARGIN * np.array([-1, -1, 1, 1]), -0.5, limit)
    return max(_iou(extent, box), _iou(grown, box)) >= _MIN_IOU


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    both = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return float(both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both))


def _inside(hu: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The pixels whose centers lie in a box."""
    x1, y1, x2, y2 = box
    top, left = max(0, math.ceil(y1)), max(0, math.ceil(x1))
    bottom, right = max(0, math.floor(y2) + 1), max(0, math.floor(x2) + 1)
    return hu[top:bottom, left:right]
