"""Files of annotations in COCO's format, read and checked; no image is opened."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import PureWindowsPath
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ...files import read_json
from ...rle import check_mask
from ...slice_geometry import EXPECTED_SPACING, is_spacing
from ..pictures import is_stored_volume
from ..problems import raise_problems, short

#: What COCO's coordinates are at the center of an image's first pixel: 0 is its outer edge.
FIRST_PIXEL = 0.5
# Annotation tools let boxes and outlines reach past the image's border a bit.
_MAX_OVERHANG = 10.0
_MAX_SIDE = 8192
_MAX_NUMBER = 1e15
_MAX_TEXT = 1000
_SLICE = re.compile(r"(.+)#(\d{1,6})", re.DOTALL)
_LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class CocoAnnotation:
    """A box of an image.

    Args:
        id: in the file.
        category: index in :attr:`CocoFile.classes`.
        box: XYXY in pixels, whole numbers being pixel centers; cut to the image.
        mask: counts of the compressed RLE of the image's (H, W); None without one.
        ignore: whether the region is neither lesion nor background.
        lesion: annotations of a volume's slices that have this in common are one lesion.
        recist: end points of the long and the short diameter, 8 numbers x, y, as ``box`` is.
        diameters_mm: long and short diameter, mm.
    """

    id: int
    category: int
    box: tuple[float, float, float, float]
    mask: str | None = None
    ignore: bool = False
    lesion: int | str | None = None
    recist: tuple[float, ...] | None = None
    diameters_mm: tuple[float, float] | None = None


@dataclass(frozen=True)
class CocoImage:
    """An image.

    Args:
        id: in the file.
        file_name: relative to the folder of images, with ``/``; of a volume's slice without ``#k``.
        stored_slice: the ``k`` of ``file#k``; None for a picture.
        height, width: in pixels.
        spacing: x, y, z in mm; None where the file does not say.
        patient: who it shows.
        volume, slice: the volume that a picture is of, and the number of its slice.
        hu_offset, hu_window: what its grey values mean, see
            :func:`~lesion_d2.data.pictures.picture_path`.
        window: (low, high) HU for display.
        annotations: of it.
    """

    id: int
    file_name: str
    stored_slice: int | None
    height: int
    width: int
    spacing: tuple[float, float, float] | None = None
    patient: str | None = None
    volume: str | None = None
    slice: int | None = None
    hu_offset: int | None = None
    hu_window: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    annotations: tuple[CocoAnnotation, ...] = ()

    @property
    def name(self) -> str:
        """``file_name`` as the file has it."""
        number = self.stored_slice
        return self.file_name if number is None else f"{self.file_name}#{number}"


@dataclass(frozen=True)
class CocoFile:
    """What a file holds.

    Args:
        classes: names of the categories, by rising id.
        category_ids: of these in the file.
        images: in the file's order.
        messages: what has to be told, a line each.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[CocoImage, ...]
    messages: tuple[str, ...] = ()


def read_coco(json_file: str | os.PathLike, *, ignore_categories: Iterable[str] = ()) -> CocoFile:
    """Read a file of COCO's format and check all that it says.

    Boxes are ``[x, y, width, height]``; an annotation without one has that of its mask. Masks are
    polygons, uncompressed and compressed RLE. Regions to be ignored are annotations with
    ``iscrowd`` or ``ignore`` 1, and those of ``ignore_categories``, which count for each class.

    Beside COCO's own keys an image may have ``spacing`` ([x, y, z] mm), ``patient``, ``volume`` and
    ``slice``, ``hu_offset``, ``hu_window`` and ``window`` (see :class:`CocoImage`), and an
    annotation ``lesion``, ``recist`` and ``diameters_mm`` (see :class:`CocoAnnotation`; ``recist``
    in COCO's coordinates).

    Args:
        json_file: its path.
        ignore_categories: names of categories that are no class, but regions to be ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or what is wrong in it: the image or annotation, the key,
            what was found and expected, a line each.
    """
    content = read_json(json_file, "COCO's JSON")
    _check_lists(json_file, content)
    reader = _Reader(tuple(ignore_categories))
    reader.read_categories(content["categories"])
    raise_problems(json_file, reader.problems)  # all annotations would follow
    reader.read_images(content["images"])
    reader.read_annotations(content["annotations"])
    raise_problems(json_file, reader.problems)
    return reader.result()


def _check_lists(json_file: str | os.PathLike, content: Any) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{json_file}: found {short(content)}, expected an object with {', '.join(_LISTS)}"
        )
    for key in _LISTS:
        if key not in content:
            raise ValueError(f"{json_file}: found no {key!r}, expected COCO's {', '.join(_LISTS)}")
        if not isinstance(content[key], list):
            raise ValueError(f"{json_file}: {key}: found {short(content[key])}, expected a list")
    for key in ("images", "categories"):
        if not content[key]:
            raise ValueError(f"{json_file}: {key}: found an empty list, expected at least one")


class _Bad(ValueError):
    """What is wrong with one entry."""


class _Reader:
    """Reads the three lists, and collects what is wrong in them."""

    def __init__(self, ignore_categories: tuple[str, ...]):
        self.ignore_categories = ignore_categories
        self.problems: list[str] = []
        self._classes: dict[int, str] = {}  # by id, rising
        self._ignored: set[int] = set()  # ids
        self._images: dict[int, CocoImage] = {}
        self._annotations: dict[int, list[CocoAnnotation]] = {}
        self._num_empty = 0

    def read_categories(self, entries: list) -> None:
        names: dict[str, int] = {}
        for entry, category_id in self._entries("category", entries):
            name = entry.get("name")
            where = f"category {category_id}: name"
            if not _is_text(name):
                self.problems.append(f"{where}: found {short(name)}, expected printable text")
            elif name in names:
                self.problems.append(
                    f"{where}: found {short(name)}, the name of category {names[name]}, expected "
                    "another"
                )
            else:
                names[name] = category_id
        for name in self.ignore_categories:
            if name not in names:
                self.problems.append(
                    f"categories: found none of the name {short(name)} to be ignored, expected it "
                    f"among {short(list(names))}"
                )
        by_id = sorted((category_id, name) for name, category_id in names.items())
        self._classes = {i: name for i, name in by_id if name not in self.ignore_categories}
        self._ignored = {i for i, name in by_id if name in self.ignore_categories}
        if not self._classes and not self.problems:
            self.problems.append("categories: found none but ignored ones, expected a class")

    def read_images(self, entries: list) -> None:
        files: dict[str, int] = {}
        for entry, image_id in self._entries("image", entries):
            try:
                image = _read_image(entry, image_id)
                if image.name in files:
                    raise _Bad(
                        f"file_name: found {short(image.name)}, which image {files[image.name]} "
                        "has, expected another"
                    )
            except _Bad as error:
                self.problems.append(f"image {image_id}: {error}")
                self._images[image_id] = None  # known, so that its annotations are not told of
            else:
                files[image.name] = image_id
                self._images[image_id] = image

    def read_annotations(self, entries: list) -> None:
        indices = {category_id: index for index, category_id in enumerate(self._classes)}
        for entry, annotation_id in self._entries("annotation", entries):
            try:
                image = self._known(entry, "image_id", self._images, "image")
                self._known(entry, "category_id", {**indices, **dict.fromkeys(self._ignored)})
                if image is None:
                    continue
                annotation = _read_annotation(entry, annotation_id, image, self._count_empty)
            except _Bad as error:
                self.problems.append(f"annotation {annotation_id}: {error}")
                continue
            index = indices.get(entry["category_id"])
            found = self._annotations.setdefault(image.id, [])
            if index is not None:
                found.append(replace(annotation, category=index))
            else:  # a region of no class: one for each, as crowds are of one class
                found += [
                    replace(annotation, category=k, ignore=True) for k in range(len(indices))
                ]

    def result(self) -> CocoFile:
        images = (
            replace(image, annotations=tuple(self._annotations.get(image.id, ())))
            for image in self._images.values()
        )
        messages = ()
        if self._num_empty:
            messages = (f"{self._num_empty} masks hold no pixel: their boxes are taken alone",)
        return CocoFile(
            tuple(self._classes.values()), tuple(self._classes), tuple(images), messages
        )

    def _count_empty(self) -> None:
        self._num_empty += 1

    def _entries(self, kind: str, entries: list) -> Iterable[tuple[Mapping, int]]:
        """The entries that are objects with an id of their own, and these ids."""
        seen = set()
        for number, entry in enumerate(entries):
            if not isinstance(entry, Mapping):
                self.problems.append(
                    f"{kind} number {number}: found {short(entry)}, expected an object"
                )
            elif not _is_id(entry.get("id")):
                self.problems.append(
                    f"{kind} number {number}: id: found {short(entry.get('id'))}, expected a whole "
                    "number"
                )
            elif entry["id"] in seen:
                self.problems.append(
                    f"{kind} {entry['id']}: id: found it twice, expected one of its own"
                )
            else:
                seen.add(entry["id"])
                yield entry, entry["id"]

    @staticmethod
    def _known(entry: Mapping, key: str, known: Mapping, kind: str = "category") -> Any:
        value = entry.get(key)
        if not _is_id(value) or value not in known:
            raise _Bad(f"{key}: found {short(value)}, expected the id of one of the file's {kind}s")
        return known[value]


# --- images ---------------------------------------------------------------------------------------


def _read_image(entry: Mapping, image_id: int) -> CocoImage:
    file_name, stored_slice = _read_file_name(entry.get("file_name"))
    sides = []
    for key in ("height", "width"):
        side = entry.get(key)
        if not _is_id(side) or not 1 <= side <= _MAX_SIDE:
            raise _Bad(f"{key}: found {short(side)}, expected 1 to {_MAX_SIDE} pixels")
        sides.append(int(side))
    optional = {key: entry[key] for key in _IMAGE_KEYS if entry.get(key) is not None}
    for key, value in optional.items():
        is_good, expected, convert = _IMAGE_KEYS[key]
        if not is_good(value):
            raise _Bad(f"{key}: found {short(value)}, expected {expected}")
        optional[key] = convert(value)
    if ("volume" in optional) != ("slice" in optional):
        found, missing = ("volume", "slice") if "volume" in optional else ("slice", "volume")
        raise _Bad(f"{missing}: found none beside {found}, expected both or neither")
    return CocoImage(image_id, file_name, stored_slice, *sides, **optional)


def _read_file_name(name: Any) -> tuple[str, int | None]:
    """A path below the folder of images, and the ``k`` of ``file#k``."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise _Bad(f"file_name: found {short(name)}, expected a file's path")
    is_absolute = os.path.isabs(name) or PureWindowsPath(name).anchor
    path = os.path.normpath(name)
    if is_absolute or path == ".." or path.startswith(f"..{os.sep}"):
        raise _Bad(f"file_name: found {short(name)}, expected a path below the folder of images")
    match = _SLICE.fullmatch(path)
    if match is not None and is_stored_volume(match[1]):
        return match[1].replace(os.sep, "/"), int(match[2])
    if is_stored_volume(path):
        raise _Bad(f"file_name: found the volume {short(name)}, expected its slice <file>#<number>")
    return path.replace(os.sep, "/"), None


def _is_spacing(value: Any) -> bool:
    return _are_numbers(value, 3) and all(map(is_spacing, value))


def _is_window(value: Any) -> bool:
    return _are_numbers(value, 2) and -32768 <= value[0] < value[1] <= 32767


def _is_name(value: Any) -> bool:
    return _is_id(value) or _is_text(value)


def _is_text(value: Any) -> bool:
    return (
        isinstance(value, str)
        and bool(value.strip())
        and value.isprintable()
        and len(value) <= _MAX_TEXT
    )


def is_hu_offset(value: Any) -> bool:
    """Whether a value can be what has to be subtracted from 16-bit values for HU."""
    return _is_id(value) and 0 <= value <= 65535


EXPECTED_OFFSET = "a whole number from 0 to 65535"
EXPECTED_WINDOW = "two numbers of HU, low < high, from -32768 to 32767"
# Key -> whether a value is one, what is one, and how it is kept.
_IMAGE_KEYS: dict[str, tuple[Callable[[Any], bool], str, Callable]] = {
    "spacing": (
        _is_spacing,
        f"for x, y and z {EXPECTED_SPACING}",
        lambda value: tuple(map(float, value)),
    ),
    "patient": (_is_name, "a name or number", str),
    "volume": (_is_name, "a name or number", str),
    "slice": (lambda value: _is_id(value) and value >= 0, "a whole number from 0", int),
    "hu_offset": (is_hu_offset, EXPECTED_OFFSET, int),
    "hu_window": (_is_window, EXPECTED_WINDOW, lambda value: tuple(map(float, value))),
    "window": (_is_window, EXPECTED_WINDOW, lambda value: tuple(map(float, value))),
}


def check_image_options(**options: Any) -> dict[str, Any]:
    """Check values for all images of a file that say nothing themselves.

    Args:
        options: by the keys of images, None for none.

    Returns:
        Those that are given, as :class:`CocoImage` holds them.

    Raises:
        ValueError: one is none that an image may have.
    """
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        is_good, expected, convert = _IMAGE_KEYS[key]
        if not is_good(value):
            raise ValueError(f"{key}: found {short(value)}, expected {expected}")
        given[key] = convert(value)
    return given


# --- annotations ----------------------------------------------------------------------------------


def _read_annotation(
    entry: Mapping, annotation_id: int, image: CocoImage, count_empty: Callable[[], None]
) -> CocoAnnotation:
    flags = {}
    for key in ("iscrowd", "ignore"):
        flags[key] = entry.get(key, 0)
        if not isinstance(flags[key], Integral) or flags[key] not in (0, 1):
            raise _Bad(f"{key}: found {short(flags[key])}, expected 0 or 1")
    lesion = entry.get("lesion")
    if lesion is not None and not _is_name(lesion):
        raise _Bad(f"lesion: found {short(lesion)}, expected a name or number")
    mask = _read_mask(entry.get("segmentation"), (image.height, image.width))
    if mask is not None and not coco_mask.area(mask):
        mask = None
        count_empty()
    box = entry.get("bbox")
    if box is None and mask is not None:
        box = coco_mask.toBbox(mask).tolist()
    return CocoAnnotation(
        annotation_id,
        0,
        _read_box(box, image),
        None if mask is None else mask["counts"],
        bool(flags["iscrowd"] or flags["ignore"]),
        lesion,
        _read_recist(entry.get("recist")),
        _read_diameters(entry.get("diameters_mm")),
    )


def _read_box(box: Any, image: CocoImage) -> tuple[float, float, float, float]:
    expected = "x, y, width, height: finite numbers, width and height above 0"
    if not _are_numbers(box, 4) or min(box[2:]) <= 0:
        raise _Bad(f"bbox: found {short(box)}, expected {expected}")
    x, y, width, height = map(float, box)
    found = np.array([x, y, x + width, y + height])
    cut = np.clip(found, 0, [image.width, image.height] * 2)
    if (np.abs(cut - found) > _MAX_OVERHANG).any() or (cut[2:] <= cut[:2]).any():
        raise _Bad(
            f"bbox: found {short(box)}, expected x, y, width, height in the image of "
            f"{image.width} x {image.height} pixels"
        )
    return tuple((cut - FIRST_PIXEL).tolist())


def _read_mask(segmentation: Any, size: tuple[int, int]) -> dict | None:
    """COCO's compressed RLE of a mask; None where there is none, as in an empty list."""
    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, list):
        return _mask_of_polygons(segmentation, size)
    if not isinstance(segmentation, Mapping):
        raise _Bad(f"segmentation: found {short(segmentation)}, expected polygons or RLE")
    counts, found_size = segmentation.get("counts"), segmentation.get("size")
    if not _are_numbers(found_size, 2) or tuple(found_size) != size:
        raise _Bad(
            f"segmentation: found RLE of size {short(found_size)}, expected the image's "
            f"[{size[0]}, {size[1]}]"
        )
    if isinstance(counts, str) and counts.isascii():
        rle = {"size": list(size), "counts": counts}
        try:
            check_mask(rle)
        except ValueError as error:
            raise _Bad(f"segmentation: {error}") from None
        return rle
    if not isinstance(counts, list) or not all(_is_id(n) and n >= 0 for n in counts):
        raise _Bad(f"segmentation: found counts {short(counts)}, expected a text, or run lengths")
    if sum(counts) != size[0] * size[1]:
        raise _Bad(
            f"segmentation: found run lengths of {short(sum(counts))} pixels, expected the "
            f"{size[0] * size[1]} of {size[0]} x {size[1]}"
        )
    return _as_text(coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size))


def _mask_of_polygons(polygons: Sequence, size: tuple[int, int]) -> dict:
    limit = np.add([size[1], size[0]], _MAX_OVERHANG)
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            count = f" of {len(polygon)} numbers" if isinstance(polygon, list) else ""
            raise _Bad(
                f"segmentation: found the polygon {short(polygon)}{count}, expected a list of "
                "x, y, x, y, ...: 6 numbers or more"
            )
        if not _are_numbers(polygon, len(polygon)):
            raise _Bad(
                f"segmentation: found the polygon {short(polygon)}, expected finite numbers"
            )
        points = np.reshape(polygon, (-1, 2))
        outside = ((points < -_MAX_OVERHANG) | (points > limit)).any(axis=1)
        if outside.any():
            raise _Bad(
                f"segmentation: found the point {short(points[outside][0].tolist())}, expected "
                f"one in the image of {size[1]} x {size[0]} pixels"
            )
    return _as_text(coco_mask.merge(coco_mask.frPyObjects(polygons, *size)))


def _as_text(rle: dict) -> dict:
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def _read_recist(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not _are_numbers(value, 8):
        raise _Bad(f"recist: found {short(value)}, expected 8 numbers: x, y of four end points")
    return tuple(float(number) - FIRST_PIXEL for number in value)


def _read_diameters(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not _are_numbers(value, 2) or not value[0] >= value[1] > 0:
        raise _Bad(f"diameters_mm: found {short(value)}, expected the long and the short one in mm")
    return float(value[0]), float(value[1])


def _is_id(value: Any) -> bool:
    return (
        isinstance(value, Integral) and not isinstance(value, bool) and abs(value) <= _MAX_NUMBER
    )


def _are_numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == count
        and all(
            # NaN is not below anything.
            isinstance(v, Real) and not isinstance(v, bool) and abs(v) <= _MAX_NUMBER
            for v in value
        )
    )
