"""Reads and checks annotation files in COCO's format, without opening images."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ...utils.files import read_json
from ...utils.values import is_text, is_whole
from ..formats.problems import raise_problems, short_repr
from .annotations import read_annotation
from .images import read_image
from .records import BadEntryError, CocoAnnotation, CocoFile, CocoImage

_LISTS = ("images", "annotations", "categories")


def read_coco(json_file: str | os.PathLike, *, ignore_categories: Iterable[str] = ()) -> CocoFile:
    """Read and check a file in COCO's format.

    Boxes are ``[x, y, width, height]``; an annotation without a box gets that of its mask. Masks
    are polygons, or uncompressed or compressed RLE. Regions to ignore are annotations with
    ``iscrowd`` or ``ignore`` 1, and those of ``ignore_categories``, which apply to all classes.

    In addition to COCO's keys, an image may have ``spacing`` ([x, y, z] mm), ``patient``,
    ``volume`` and ``slice``, ``hu_offset``, ``hu_window`` and ``window`` (see :class:`CocoImage`),
    and an annotation ``lesion_id`` (or ``lesion``, its name before version 0.1), ``recist`` and
    ``diameters_mm`` (see :class:`CocoAnnotation`; ``recist`` in COCO's coordinates).

    Args:
        json_file: its path.
        ignore_categories: names of categories that are regions to ignore instead of classes.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another format, or invalid entries, listed one per line: image or
            annotation, key, found, expected.
    """
    content = read_json(json_file, "COCO's JSON", allow_nan=True)
    _check_lists(json_file, content)
    reader = _Reader(tuple(ignore_categories))
    reader.read_categories(content["categories"])
    raise_problems(json_file, reader.problems)  # otherwise all annotations would be listed, too
    reader.read_images(content["images"])
    reader.read_annotations(content["annotations"])
    raise_problems(json_file, reader.problems)
    return reader.result()


def _check_lists(json_file: str | os.PathLike, content: Any) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{json_file}: found {short_repr(content)}, expected an object with {', '.join(_LISTS)}"
        )
    for key in _LISTS:
        if key not in content:
            raise ValueError(f"{json_file}: found no {key!r}, expected COCO's {', '.join(_LISTS)}")
        if not isinstance(content[key], list):
            raise ValueError(
                f"{json_file}: {key}: found {short_repr(content[key])}, expected a list"
            )
    for key in ("images", "categories"):
        if not content[key]:
            raise ValueError(f"{json_file}: {key}: found an empty list, expected at least one")


class _Reader:
    """Reads the three lists, and collects their problems."""

    def __init__(self, ignore_categories: tuple[str, ...]):
        self.ignore_categories = ignore_categories
        self.problems: list[str] = []
        self._classes: dict[int, str] = {}  # by id, ascending
        self._ignored: set[int] = set()  # ids
        self._images: dict[int, CocoImage] = {}
        self._annotations: dict[int, list[CocoAnnotation]] = {}
        self._num_empty = 0

    def read_categories(self, entries: list) -> None:
        names: dict[str, int] = {}
        for entry, category_id in self._entries("category", entries):
            name = entry.get("name")
            where = f"category {category_id}: name"
            if not is_text(name):
                self.problems.append(f"{where}: found {short_repr(name)}, expected printable text")
            elif name in names:
                self.problems.append(
                    f"{where}: found {short_repr(name)} as in category "
                    f"{names[name]}, expected unique names"
                )
            else:
                names[name] = category_id
        for name in self.ignore_categories:
            if name not in names:
                self.problems.append(
                    f"categories: found no {short_repr(name)} to ignore, expected one of "
                    f"{short_repr(list(names))}"
                )
        by_id = sorted((category_id, name) for name, category_id in names.items())
        self._classes = {i: name for i, name in by_id if name not in self.ignore_categories}
        self._ignored = {i for i, name in by_id if name in self.ignore_categories}
        if not self._classes and not self.problems:
            self.problems.append("categories: found only ignored ones, expected at least one class")

    def read_images(self, entries: list) -> None:
        files: dict[str, int] = {}
        for entry, image_id in self._entries("image", entries):
            try:
                image = read_image(entry, image_id)
                if image.name in files:
                    raise BadEntryError(
                        "file_name",
                        image.name,
                        f"another file than that of image {files[image.name]}",
                    )
            except ValueError as error:
                self.problems.append(f"image {image_id}: {error}")
                self._images[image_id] = None  # known: its annotations are not reported
            else:
                files[image.name] = image_id
                self._images[image_id] = image

    def read_annotations(self, entries: list) -> None:
        indices = {category_id: index for index, category_id in enumerate(self._classes)}
        categories = {**indices, **dict.fromkeys(self._ignored)}
        for entry, annotation_id in self._entries("annotation", entries):
            try:
                image = self._known(entry, "image_id", self._images, "images")
                self._known(entry, "category_id", categories)
                if image is None:
                    continue
                annotation = read_annotation(entry, annotation_id, image, self._count_empty)
            except ValueError as error:
                self.problems.append(f"annotation {annotation_id}: {error}")
                continue
            index = indices.get(entry["category_id"])
            found = self._annotations.setdefault(image.id, [])
            if index is not None:
                found.append(replace(annotation, category=index))
            else:  # a region without class: one copy per class, as crowds belong to one class
                found += [replace(annotation, category=k, ignore=True) for k in range(len(indices))]

    def result(self) -> CocoFile:
        images = (
            replace(image, annotations=tuple(self._annotations.get(image.id, ())))
            for image in self._images.values()
        )
        messages = ()
        if self._num_empty:
            messages = (f"{self._num_empty} masks are empty; only their boxes are used",)
        return CocoFile(
            tuple(self._classes.values()), tuple(self._classes), tuple(images), messages
        )

    def _count_empty(self) -> None:
        self._num_empty += 1

    def _entries(self, kind: str, entries: list) -> Iterable[tuple[Mapping, int]]:
        """The entries that are objects with a unique id, and these ids."""
        seen = set()
        for number, entry in enumerate(entries):
            if not isinstance(entry, Mapping):
                self.problems.append(
                    f"{kind} number {number}: found {short_repr(entry)}, expected an object"
                )
            elif not is_whole(entry.get("id")):
                self.problems.append(
                    f"{kind} number {number}: id: found {short_repr(entry.get('id'))}, "
                    "expected a whole number"
                )
            elif entry["id"] in seen:
                self.problems.append(
                    f"{kind} {entry['id']}: id: found it twice, expected unique ids"
                )
            else:
                seen.add(entry["id"])
                yield entry, entry["id"]

    @staticmethod
    def _known(entry: Mapping, key: str, known: Mapping, kind: str = "categories") -> Any:
        value = entry.get(key)
        if not is_whole(value) or value not in known:
            raise BadEntryError(key, value, f"the id of one of the file's {kind}")
        return known[value]
