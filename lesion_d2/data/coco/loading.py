"""COCO's format in Detectron2's catalog: CT slices with boxes, without conversion."""

import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ...structures.boxes import set_first_pixel
from ...utils.display_windows import WINDOWS
from ..formats.problems import raise_problems, short_repr
from ..roots import resolve_root
from ..slices.pictures import open_picture, picture_path, stored_geometry, stored_slice_path
from .images import check_image_options
from .reading import read_coco
from .records import FIRST_PIXEL, CocoAnnotation, CocoFile, CocoImage

logger = logging.getLogger(__name__)

#: Default window in HU for display and for GrabCut.
DISPLAY_WINDOW = WINDOWS["abdomen"]
_TOLERANCE = 0.01  # relative, of a spacing in the JSON compared with a volume's header


def load_ct_coco(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    spacing: Sequence[float] | None = None,
    hu_offset: int | None = None,
    hu_window: Sequence[float] | None = None,
    window: Sequence[float] | None = None,
    patient: str | None = None,
    ignore_categories: Iterable[str] = (),
) -> list[dict]:
    """Read a file in COCO's format into Detectron2's dicts, one per image, in the file's order.

    A dict has the keys of :func:`~lesion_d2.data.deeplesion.load_deeplesion` except ``study``,
    ``series`` and unknown values; ``spacing`` is None if unknown. ``image_id`` is that of the file.
    In an annotation, ``bbox`` is XYXY_ABS, with integers at pixel centers, clipped to the image;
    ``row`` is its id in the file; ``segmentation`` is COCO's compressed RLE for any kind of mask;
    ``iscrowd`` is 1 for a region that is neither lesion nor background. See
    :func:`~lesion_d2.data.coco.reading.read_coco` for the keys of the file.

    Pictures (PNG, TIFF, JPEG) are single images, without neighboring slices. ``file#k`` is slice
    ``[:, :, k]`` of a NIfTI, MetaImage or NRRD file as stored; its neighbors are those in the file,
    and its boxes have columns along the first index and rows along the second.

    The options are defaults for images whose entries lack the value.

    Args:
        json_file: the annotation file.
        image_root: the folder that image names are relative to.
        spacing: x, y, z in mm. For volumes, it is read from the header.
        hu_offset: for 16-bit pictures: HU = value - hu_offset; 32768 in DeepLesion's coding.
        hu_window: for 8-bit pictures: the HU of 0 and 255.
        window: (low, high) HU for display; by default ``hu_window``, or the abdomen's.
        patient: a regular expression that is searched for in image names; the patient is its first
            group, or the whole match.
        ignore_categories: names of categories that are regions to ignore.

    Raises:
        FileNotFoundError: json_file or image_root does not exist.
        ValueError: the file has invalid entries, listed one per line; or images are missing, differ
            in size from the file, or lack the mapping to HU (hu_offset, hu_window).
    """
    if not os.path.isdir(image_root):
        raise FileNotFoundError(f"{image_root}: no such folder of images")
    content = read_coco(json_file, ignore_categories=ignore_categories)
    images = complete_images(
        json_file,
        content.images,
        patient=patient,
        spacing=spacing,
        hu_offset=hu_offset,
        hu_window=hu_window,
        window=window,
    )
    dicts = _image_dicts(json_file, images, os.fspath(image_root))
    _log(json_file, content)
    return dicts


def register_ct_coco(
    name: str, json_file: str | os.PathLike, image_root: str | os.PathLike, **options: Any
) -> None:
    """Register a file in COCO's format with Detectron2; it is read now and on use.

    Result files are in COCO's coordinates, with the file's ids of images and categories.

    Example::

        register_ct_coco("mine_train", "mine/train.json", "mine/images", hu_offset=32768)

    Args:
        name: its name in ``DatasetCatalog``.
        json_file, image_root: see :func:`load_ct_coco`; ``$DETECTRON2_DATASETS`` in them is
            expanded, and defaults to "datasets".
        options: options of :func:`load_ct_coco`.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_ct_coco`; images are checked when the data
            set is used.
        AssertionError: the name is already registered (Detectron2's check).
    """
    json_file, image_root = (resolve_root(os.fspath(path)) for path in (json_file, image_root))
    content = read_coco(json_file, ignore_categories=options.get("ignore_categories", ()))
    DatasetCatalog.register(name, partial(load_ct_coco, json_file, image_root, **options))
    MetadataCatalog.get(name).set(
        thing_classes=list(content.classes),
        thing_dataset_id_to_contiguous_id={k: i for i, k in enumerate(content.category_ids)},
        evaluator_type="lesion",
        can_hide_annotations=True,
    )
    set_first_pixel(name, FIRST_PIXEL)


def complete_images(
    json_file: str | os.PathLike,
    images: Iterable[CocoImage],
    *,
    patient: str | None = None,
    **options: Any,
) -> list[CocoImage]:
    """Complete images with values that their file lacks.

    Args:
        json_file: file of the images, for messages.
        images: images as read.
        patient: see :func:`load_ct_coco`.
        options: ``spacing``, ``hu_offset``, ``hu_window``, ``window``; None if not given.

    Raises:
        ValueError: an option is invalid, or ``patient`` does not match an image's name.
    """
    given = check_image_options(**options)
    pattern = None if patient is None else compile_pattern("patient", patient)
    completed, problems = [], []
    for image in images:
        missing = {key: value for key, value in given.items() if getattr(image, key) is None}
        if pattern is not None and image.patient is None:
            match = pattern.search(image.name)
            found = match and match[1 if pattern.groups else 0]
            if not found:
                problems.append(
                    f"image {image.id}: file_name: found {short_repr(image.name)}, expected a "
                    f"match of patient {patient!r}"
                )
                continue
            missing["patient"] = found
        completed.append(replace(image, **missing))
    raise_problems(json_file, problems)
    return completed


def compile_pattern(option: str, pattern: str) -> re.Pattern:
    """Compile an option's regular expression; raises ValueError if it is invalid."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{option}: found {short_repr(pattern)}, expected a regular expression ({error})"
        ) from None


def image_source(
    image: CocoImage, path: str
) -> tuple[str, tuple[int, int], tuple[float, float, float] | None]:
    """Open an image's file and compare its header with the JSON.

    Args:
        image: image with the options of :func:`complete_images`.
        path: path of its file.

    Returns:
        The path of its slice, the first and last slice number of its file, and its spacing.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, has another size or spacing or too few slices, or lacks the
            mapping to HU.
    """
    number, spacing = image.stored_slice, image.spacing
    if number is None:
        picture = open_picture(path)
        options = {"hu_offset": image.hu_offset, "hu_window": image.hu_window}
        slice_path = picture_path(path, picture=picture, **options)
        size, slice_range = picture.size, (0, 0)
    else:
        (depth, *size), header = stored_geometry(path)
        if number >= depth:
            raise ValueError(f"{path}: found {depth} slices, expected slice {number}")
        if spacing is not None and any(
            abs(a / b - 1) > _TOLERANCE for a, b in zip(spacing, header, strict=True)
        ):
            raise ValueError(
                f"{path}: found the spacing {header} in the file, expected {spacing} as given "
                "for this image"
            )
        spacing, slice_range = header, (0, depth - 1)
        slice_path = stored_slice_path(path, number)
    if tuple(size) != (image.height, image.width):
        raise ValueError(
            f"{path}: found {size[1]} x {size[0]} pixels, expected {image.width} x "
            f"{image.height} (width x height) as in the JSON"
        )
    return slice_path, slice_range, spacing


def _image_dicts(
    json_file: str | os.PathLike, images: Iterable[CocoImage], image_root: str
) -> list[dict]:
    dicts, problems = [], []
    for image in images:
        try:
            dicts.append(_image_dict(image, os.path.join(image_root, image.file_name)))
        except (OSError, ValueError) as error:
            problems.append(f"image {image.id}: {error}")
    raise_problems(json_file, problems)
    return dicts


def _image_dict(image: CocoImage, path: str) -> dict:
    slice_path, slice_range, spacing = image_source(image, path)
    found = {
        "file_name": slice_path,
        "image_id": image.id,
        "height": image.height,
        "width": image.width,
        "spacing": spacing,
        "slice_range": slice_range,
        "slice_index": image.stored_slice or 0,
        "window": image.window or image.hu_window or DISPLAY_WINDOW,
    }
    if image.patient is not None:
        found["patient"] = image.patient
    if image.stored_slice is not None:
        found["volume"] = image.file_name
    size = [image.height, image.width]
    found["annotations"] = [{**annotation_dict(a, size), "row": a.id} for a in image.annotations]
    return found


def annotation_dict(annotation: CocoAnnotation, size: Sequence[int]) -> dict:
    """Convert an annotation to Detectron2's format, without ``row``.

    Args:
        annotation: the annotation as read.
        size: height and width of its image.
    """
    found = {
        "bbox": list(annotation.box),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": annotation.category,
    }
    if annotation.mask is not None:
        found["segmentation"] = {"size": list(size), "counts": annotation.mask}
    if annotation.ignore:
        found["iscrowd"] = 1
    for key in ("lesion_id", "recist", "diameters_mm"):
        value = getattr(annotation, key)
        if value is not None:
            found[key] = list(value) if key == "recist" else value
    return found


def _log(json_file: str | os.PathLike, content: CocoFile) -> None:
    annotations = [a for image in content.images for a in image.annotations]
    num_ignored = sum(a.ignore for a in annotations)
    num_masks = sum(a.mask is not None for a in annotations if not a.ignore)
    num_bare = sum(not image.annotations for image in content.images)
    logger.info(
        f"{json_file}: {len(annotations) - num_ignored} lesions, {num_masks} with masks, on "
        f"{len(content.images)} images, {num_bare} of them without annotations; "
        f"{num_ignored} regions to ignore" + "".join(f"; {message}" for message in content.messages)
    )
