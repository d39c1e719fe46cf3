"""Exports registered data sets of slices as COCO JSON, optionally with pictures."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from pycocotools import mask as coco_mask

from ...scans.names import safe_name, unique_names
from ...scans.png import write_png
from ...structures.boxes import moved_xywh, xyxy_box
from ...structures.outlines import mask_outlines
from ...structures.rle import decode_mask
from ...utils.files import atomic_folder, recover_folder, write_json
from ...utils.parallel import map_with_progress
from ..catalog import load_records
from ..dataset_options import DatasetOptions
from ..formats.problems import short_repr
from ..slices.ct import hu_to_pixels, read_slice
from ..slices.pictures import is_picture, picture_coding, picture_source
from .records import FIRST_PIXEL

#: The file's name in its folder.
FILE_NAME = "annotations.json"
#: Pictures to write: none, or 8-bit or 16-bit ones.
IMAGES = ("none", "png8", "png16")
#: 16-bit pictures are in DeepLesion's coding: HU = value - 32768.
HU_OFFSET = 32768
_DIGITS = 6  # of coordinates
# A slice, its height and width, and the picture to write.
_Job = tuple[str, tuple[int, int], str]


@dataclass(frozen=True)
class WrittenCoco:
    """Summary of an export.

    Args:
        file: the JSON file.
        image_root: the folder that its image names are relative to.
        num_images, num_annotations: number of images and annotations.
        num_masks: number of annotations with a mask.
        num_rles: number of masks written as RLE because polygons do not reproduce them.
    """

    file: Path
    image_root: Path
    num_images: int
    num_annotations: int
    num_masks: int
    num_rles: int


def write_coco(
    dataset: str,
    output: str | os.PathLike,
    *,
    images: str = "none",
    window: tuple[float, float] | None = None,
    polygons: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    allow_missing: bool = False,
) -> WrittenCoco:
    """Write a registered data set as ``<output>/annotations.json``, atomically.

    Boxes are x, y, width, height in COCO's coordinates, where 0 is the outer edge of the first
    pixel; ids start at 1; categories have the order of the data set's classes; masks are RLE.
    In addition to COCO's keys, it has those of :func:`~lesion_d2.data.coco.reading.read_coco`, and
    the data set's ``image_id`` as ``source_id``.

    Args:
        dataset: its name in ``DatasetCatalog``.
        output: the output folder; a temporary folder beside it is renamed at the end.
        images: "none": image names refer to the data set's files, relative to their common folder;
            "png16": write pictures in DeepLesion's coding; "png8": write pictures in ``window``.
        window: (low, high) HU mapped to 0 and 255 in 8-bit pictures.
        polygons: write masks as polygons, except regions to ignore and masks that polygons do not
            reproduce, such as those with holes.
        workers: number of processes that write pictures; None for one per core.
        overwrite: replace a folder that holds an ``annotations.json``.
        allow_missing: skip images whose file is missing.

    Raises:
        ValueError: the data set is not registered or empty, or has invalid images or boxes; for
            "none", slices are not separate files; for "png8", there is no window.
        FileExistsError: ``output`` exists.
        BlockingIOError: another process is writing to ``output``.
        OSError: a file cannot be written, for example because the disk is full.
    """
    _check_options(images, window)
    output = Path(output).absolute()
    recover_folder(output)
    _check_output(output, overwrite)
    records = load_records(dataset, DatasetOptions(allow_missing=allow_missing))
    entries = [_image_entry(number, record) for number, record in enumerate(records, 1)]
    jobs, image_root = [], output
    if images == "none":
        image_root = _name_own_files(dataset, records, entries)
    else:
        jobs = _name_pictures(records, entries, window)
    annotations = list(_annotation_entries(dataset, records, polygons))
    with atomic_folder(output) as working:
        _check_output(output, overwrite)  # another call may have been faster
        _fill_folder(working, _content(dataset, entries, annotations), jobs, window, workers)
    masks = [a["segmentation"] for a in annotations if a["segmentation"]]
    num_rles = sum(isinstance(mask, dict) for mask in masks)
    counts = len(entries), len(annotations), len(masks), num_rles
    return WrittenCoco(output / FILE_NAME, image_root, *counts)


def _content(dataset: str, images: list[dict], annotations: list[dict]) -> dict:
    """The content of the file."""
    return {
        "info": {"description": f"{dataset}, by lesion_d2.tools.export_coco"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": _categories(dataset),
    }


def _check_options(images: str, window: tuple[float, float] | None) -> None:
    if images not in IMAGES:
        raise ValueError(f"images: found {images!r}, expected one of {', '.join(IMAGES)}")
    if (window is None) == (images == "png8"):
        raise ValueError(
            f"window: found {window} for images {images!r}, expected the HU of 0 and 255 for "
            "'png8', otherwise None"
        )


# --- entries --------------------------------------------------------------------------------------


def _categories(dataset: str) -> list[dict]:
    classes = MetadataCatalog.get(dataset).get("thing_classes")
    if not classes:
        raise ValueError(f"data set {dataset!r}: found no thing_classes, expected its classes")
    return [{"id": number, "name": str(name)} for number, name in enumerate(classes, 1)]


def _image_entry(number: int, record: Mapping[str, Any]) -> dict:
    """An image entry without the file name."""
    entry = {
        "id": number,
        "file_name": "",
        "width": int(record["width"]),
        "height": int(record["height"]),
        "source_id": record["image_id"],
    }
    for key in ("spacing", "window"):
        if record.get(key) is not None:
            entry[key] = [float(value) for value in record[key]]
    if "patient" in record:
        entry["patient"] = str(record["patient"])
    if "volume" in record and not is_picture(os.path.dirname(record["file_name"])):
        entry |= {"volume": str(record["volume"]), "slice": int(record["slice_index"])}
    return entry


def _name_own_files(dataset: str, records: Sequence[Mapping], entries: Sequence[dict]) -> Path:
    """Name the images by the data set's files; returns their common folder."""
    files = []
    for record, entry in zip(records, entries, strict=True):
        path, number = os.path.abspath(record["file_name"]), None
        if is_picture(os.path.dirname(path)):
            entry |= picture_coding(path)
            path, number = picture_source(path)
        else:
            entry["hu_offset"] = HU_OFFSET
        if not os.path.isfile(path):
            raise ValueError(
                f"data set {dataset!r}, image {record['image_id']}: found the slice {path} "
                "inside a volume file, expected images png8 or png16 for such data sets"
            )
        files.append((path, number))
    root = os.path.commonpath({os.path.dirname(path) for path, _ in files})
    for (path, number), entry in zip(files, entries, strict=True):
        name = os.path.relpath(path, root).replace(os.sep, "/")
        entry["file_name"] = name if number is None else f"{name}#{number}"
    return Path(root)


def _name_pictures(
    records: Sequence[Mapping], entries: Sequence[dict], window: tuple[float, float] | None
) -> list[_Job]:
    """Name the images by their ``image_id``; returns the pictures to write."""
    names = unique_names(_picture_name(record["image_id"]) for record in records)
    coding = {"hu_offset": HU_OFFSET} if window is None else {"hu_window": list(window)}
    for entry, name in zip(entries, names, strict=True):
        entry |= {"file_name": f"images/{name}.png", **coding}
    return [
        (record["file_name"], (record["height"], record["width"]), entry["file_name"])
        for record, entry in zip(records, entries, strict=True)
    ]


def _picture_name(image_id: object) -> str:
    return f"{image_id:06d}" if isinstance(image_id, int) else safe_name(str(image_id))


def _annotation_entries(dataset: str, records: Sequence[Mapping], polygons: bool) -> Iterator[dict]:
    number = 0
    for image_id, record in enumerate(records, 1):
        where = f"data set {dataset!r}, image {record['image_id']}"
        for annotation in record.get("annotations", ()):
            number += 1
            try:
                entry = _annotation_entry(annotation, polygons)
            except KeyError as error:
                raise ValueError(f"{where}: found no {error} in an annotation") from None
            except (ValueError, TypeError) as error:
                raise ValueError(f"{where}, an annotation: {error}") from None
            yield {"id": number, "image_id": image_id, **entry}


def _annotation_entry(annotation: Mapping[str, Any], polygons: bool) -> dict:
    x1, y1, x2, y2 = xyxy_box(annotation)
    box = moved_xywh([x1, y1, x2 - x1, y2 - y1], FIRST_PIXEL)
    box = [round(float(value), _DIGITS) for value in box]
    is_crowd = int(annotation.get("iscrowd", 0))
    entry = {
        "category_id": int(annotation["category_id"]) + 1,
        "bbox": box,
        "area": round(box[2] * box[3], _DIGITS),
        "iscrowd": is_crowd,
        "segmentation": [],  # some programs require the key
    }
    mask = annotation.get("segmentation")
    if isinstance(mask, Mapping):
        entry |= _mask_entry(mask, polygons and not is_crowd)
    elif mask:
        raise ValueError(f"found segmentation {short_repr(mask)}, expected RLE")
    if annotation.get("lesion_id") is not None:
        entry["lesion_id"] = annotation["lesion_id"]
    if "recist" in annotation:
        entry["recist"] = [round(float(v) + FIRST_PIXEL, _DIGITS) for v in annotation["recist"]]
    long, short_one = annotation.get("diameters_mm") or (0, 0)
    if long >= short_one > 0:
        entry["diameters_mm"] = [round(float(value), _DIGITS) for value in (long, short_one)]
    return entry


def _mask_entry(mask: Mapping[str, Any], polygons: bool) -> dict:
    counts = mask["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    rle = {"size": [int(side) for side in mask["size"]], "counts": counts}
    pixels = decode_mask(rle)
    entry = {"area": int(pixels.sum()), "segmentation": rle}
    if polygons:
        outlines = [(line[:-1] + FIRST_PIXEL).ravel().tolist() for line in mask_outlines(pixels)]
        if outlines:
            again = coco_mask.merge(coco_mask.frPyObjects(outlines, *rle["size"]))
            if (coco_mask.decode(again) == pixels).all():
                entry["segmentation"] = outlines
    return entry


# --- files ----------------------------------------------------------------------------------------


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    is_export = (output / FILE_NAME).is_file()
    if not is_export or not overwrite:
        found = f"an {FILE_NAME} in it" if is_export else "another file or folder"
        hint = ", or --overwrite (overwrite=True)" if is_export else ""
        raise FileExistsError(f"{output}: found {found}, expected another path{hint}")


def _fill_folder(
    working: Path,
    content: dict,
    jobs: Sequence[_Job],
    window: tuple[float, float] | None,
    workers: int | None,
) -> None:
    if jobs:
        (working / "images").mkdir()
    work, bar = partial(_write_picture, working, window), {"unit": "image", "disable": not jobs}
    with map_with_progress(work, jobs, workers, **bar) as results:
        for _ in results:
            pass
    write_json(working / FILE_NAME, content)
    os.sync()


def _write_picture(root: Path, window: tuple[float, float] | None, job: _Job) -> None:
    file, size, name = job
    hu = read_slice(file, size)
    if window is None:
        pixels = (hu.astype(np.int32) + HU_OFFSET).astype(np.uint16)
    else:
        pixels = np.rint(hu_to_pixels(hu, window)).astype(np.uint8)
    write_png(root / name, pixels, flush=False)
