"""The toy data sets of Retina U-Net (Jaeger et al., arXiv:1811.08661, section 4.6).

Images of 320 x 320 pixels are zero except for one object, which is 0.2 brighter; then uniform noise
in [0, 1) is added to every pixel. The object's class, 0 or 1, is determined by its shape
(``donuts_shape``: a filled circle, or one with a hole in its center, which the mask has too), its
pattern (``donuts_pattern``: the same images, but masks without holes), or its size
(``circles_scale``: two filled circles).

The paper gives diameters of 20 (circle), 4 (hole), and 19 and 20 pixels (two circles). The
published generator uses these numbers as radii, in agreement with figure 6, and so do we: objects
are about 40 pixels wide. Our choices where the paper is open: a pixel belongs to a circle if the
distance of its center from the circle's center, itself the center of a pixel, is at most the radius
(the published code uses "<" instead of "<="); objects of both classes are at least 4 pixels from
the border (published: up to half a radius outside); and classes alternate (published: random), so
that the first n images of a data set are balanced.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as coco_mask

from ...scans.png import write_png
from ...utils.files import one_line, write_json
from ...utils.parallel import count_cores, map_with_progress
from ..coco.loading import annotation_dict
from ..coco.reading import read_coco
from ..coco.records import CocoImage
from ..generated import check_options, write_data_set
from ..roots import resolve_root

FORMAT_VERSION = 1
SIZE = 320  # height and width in pixels
CONTRAST = 0.2
#: Minimum distance in pixels between an object and the image's border.
MARGIN = 4
#: HU on disk for an intensity of 1.
HU_SCALE = 10_000
#: HU of the darkest and the brightest possible pixel.
HU_WINDOW = (0.0, HU_SCALE * (1 + CONTRAST))
SPLITS = ("train", "val", "test")
_CHUNK = 16  # images per task of a process
# Noise is hardly compressible: a higher level only costs time.
_PNG = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY),
)


@dataclass(frozen=True)
class Task:
    """The two classes of a task."""

    folder: str  # of the images; tasks may share it
    radii: tuple[int, int]  # of class 0 and 1, pixels
    classes: tuple[str, str]
    hole_radius: int | None = None  # of class 1
    hole_in_mask: bool = False


TASKS = {
    "donuts_shape": Task("donuts", (20, 20), ("circle", "donut"), 4, hole_in_mask=True),
    "donuts_pattern": Task("donuts", (20, 20), ("circle", "donut"), 4),
    "circles_scale": Task("circles", (19, 20), ("radius 19", "radius 20")),
}
FOLDERS = tuple(dict.fromkeys(task.folder for task in TASKS.values()))


@dataclass(frozen=True)
class ToyOptions:
    """Options that determine the toy data sets' content; stored in their ``toy.json``."""

    num_train: int = 1000
    num_val: int = 500
    num_test: int = 1000
    seed: int = 0
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        limits = {name: (1, 99_999) for name in ("num_train", "num_val", "num_test")}
        check_options("toy", self, {**limits, "seed": (0, 2**32 - 1)})

    def count(self, split: str) -> int:
        """Number of images in a split."""
        return getattr(self, f"num_{split}")


# --- images ---------------------------------------------------------------------------------------


def make_toy(task: str, split: str, index: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Generate image ``index`` of a split and the mask of its object, of class ``index % 2``.

    Args:
        task: a key of :data:`TASKS`. Tasks that share a folder have the same images.
        split: "train", "val" or "test".
        index: index of the image in its split, from 0.
        seed: random seed of the data set.

    Returns:
        (320, 320) float64, intensities in [0, 1.2), and (320, 320) bool.
    """
    options = TASKS[task]
    # One generator per image: its pixels do not depend on how images are spread over processes.
    rng = np.random.default_rng([seed, FOLDERS.index(options.folder), SPLITS.index(split), index])
    reach = MARGIN + max(options.radii)
    x, y = rng.integers(reach, SIZE - reach, 2)
    image = rng.random((SIZE, SIZE))
    mask = _disk(x, y, options.radii[index % 2])
    bright = mask
    if options.hole_radius is not None and index % 2 == 1:
        bright = mask & ~_disk(x, y, options.hole_radius)
    image[bright] += CONTRAST
    return image, bright if options.hole_in_mask else mask


def _disk(x: int, y: int, radius: int) -> np.ndarray:
    rows, columns = np.ogrid[:SIZE, :SIZE]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


# --- files ----------------------------------------------------------------------------------------


def write_toys(
    root: str | Path,
    *,
    num_train: int = 1000,
    num_val: int = 500,
    num_test: int = 1000,
    seed: int = 0,
    workers: int | None = None,
    overwrite: bool = False,
) -> bool:
    """Write the three toy data sets, atomically.

    ``root`` then holds ``donuts/000000.png ...``, ``circles/000000.png ...`` (16-bit, value - 32768
    is HU, as in DeepLesion; an intensity of 1 is 10,000 HU), training, validation and test images
    in this order, an annotation file in COCO's format for each task and split
    (``donuts_shape_train.json``), and ``toy.json`` (these options). The same options give the same
    bytes for any number of workers.

    Args:
        root: the data sets' folder; a temporary folder beside it is renamed at the end.
        num_train, num_val, num_test: number of images per task. A larger split begins with the
            images of a smaller one.
        seed: random seed.
        workers: number of processes; by default one per core, up to 16.
        overwrite: replace data sets that were written with other options.

    Returns:
        True if the data sets were written, False if they existed with the same options.

    Raises:
        ValueError: an option is out of range.
        FileExistsError: if ``root`` holds toy data sets with other options and ``overwrite`` is
            not set, or anything other than toy data sets.
    """
    options = ToyOptions(num_train, num_val, num_test, seed)
    if workers is not None and workers < 1:
        raise ValueError(f"toy option workers: found {workers}, expected 1 or more")
    workers = workers or min(16, count_cores())
    write = partial(_write_all, options=options, workers=workers)
    return write_data_set(root, "toy", options, write, overwrite=overwrite)


def _write_all(root: Path, options: ToyOptions, workers: int) -> None:
    for folder in FOLDERS:
        (root / folder).mkdir()
    jobs = [
        (folder, split, i)
        for folder in FOLDERS
        for split in SPLITS
        for i in range(options.count(split))
    ]
    work = partial(_write_images, root, options)
    chunks = [jobs[start : start + _CHUNK] for start in range(0, len(jobs), _CHUNK)]
    found, bar = {}, {"total": len(jobs), "desc": "Toy images", "unit": "image"}
    with map_with_progress(work, chunks, workers, size=len, **bar) as results:
        for chunk in results:
            found.update(chunk)
    files: dict[tuple[str, str], list[tuple[dict, dict]]] = {}
    for job in jobs:
        (image, annotations), split = found[job], job[1]
        for task, annotation in annotations.items():
            files.setdefault((task, split), []).append((image, annotation))
    for (task, split), entries in files.items():
        write_json(root / f"{task}_{split}.json", _coco(task, split, entries), flush=False)


def _write_images(
    root: Path, options: ToyOptions, jobs: list[tuple[str, str, int]]
) -> dict[tuple[str, str, int], tuple[dict, dict[str, dict]]]:
    """Write several images with :func:`_write_image`."""
    return {job: _write_image(root, options, job) for job in jobs}


def _write_image(
    root: Path, options: ToyOptions, job: tuple[str, str, int]
) -> tuple[dict, dict[str, dict]]:
    """Write one image; returns its COCO entry, and its object's entry for each task."""
    folder, split, index = job
    number = index + sum(options.count(s) for s in SPLITS[: SPLITS.index(split)])
    name = f"{folder}/{number:06d}.png"
    tasks = [name for name, task in TASKS.items() if task.folder == folder]
    annotations = {}
    for task in tasks:
        image, mask = make_toy(task, split, index, options.seed)
        rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        annotations[task] = {
            "id": number + 1,  # pycocotools treats 0 as missing
            "image_id": number,
            "category_id": index % 2,
            "bbox": coco_mask.toBbox(rle).tolist(),
            "area": int(mask.sum()),
            "iscrowd": 0,
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        }
    pixels = (np.rint(HU_SCALE * image) + 32768).astype(np.uint16)
    write_png(root / name, pixels, _PNG, flush=False)
    return {"id": number, "file_name": name, "height": SIZE, "width": SIZE}, annotations


def _coco(task: str, split: str, entries: list[tuple[dict, dict]]) -> dict:
    images, annotations = zip(*entries, strict=True)
    return {
        "info": {"description": f"Toy data set {task}, {split} (Jaeger et al., section 4.6)"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(TASKS[task].classes)],
    }


# --- Detectron2's catalog -------------------------------------------------------------------------


def load_toys(
    json_file: str | os.PathLike, image_root: str | os.PathLike, num_images: int | None = None
) -> list[dict]:
    """Read an annotation file of :func:`write_toys` into Detectron2's dicts, one per image.

    The dicts have the keys of :func:`~lesion_d2.data.deeplesion.load_deeplesion` except patient,
    study and series: each image is its own patient, and a series of one slice. ``bbox`` is tight
    around the object's pixels, in coordinates where integers are pixel CENTERS (in the file, as in
    COCO, they are pixel edges). ``segmentation`` is COCO's RLE.

    Args:
        json_file: such as ``donuts_shape_train.json``.
        image_root: the folder that the file's image names are relative to.
        num_images: use only the first ``num_images`` images; all by default.

    Raises:
        FileNotFoundError: the file or an image does not exist.
        ValueError: it is not an annotation file, or has fewer than ``num_images`` images.
    """
    if num_images is not None and num_images < 1:
        raise ValueError(f"{json_file}: found num_images {num_images}, expected 1 or more")
    dicts = _read_toys(json_file, os.fspath(image_root))
    if num_images is not None and num_images > len(dicts):
        raise ValueError(f"{json_file}: found {len(dicts)} images, expected {num_images} or more")
    dicts = dicts[:num_images]
    missing = [d["file_name"] for d in dicts if not os.path.isfile(d["file_name"])]
    if missing:
        raise FileNotFoundError(
            f"{json_file}: {len(missing)} of {len(dicts)} images are missing (the first: "
            f"{missing[0]}); {_hint()}"
        )
    return dicts


def _read_toys(json_file: str | os.PathLike, image_root: str) -> list[dict]:
    if not os.path.isfile(json_file):
        raise FileNotFoundError(f"{json_file}: no such annotation file; {_hint()}")
    try:
        return [_image_dict(image, image_root) for image in read_coco(json_file).images]
    except ValueError as error:
        raise ValueError(
            f"{json_file}: found no toy annotations ({one_line(error)}), expected a file of "
            "datasets/prepare_toys.py"
        ) from None


def _hint() -> str:
    return (
        "python datasets/prepare_toys.py writes it to the folder toys of DETECTRON2_DATASETS "
        f"(currently {os.getenv('DETECTRON2_DATASETS', 'not set: datasets')})"
    )


def _image_dict(image: CocoImage, image_root: str) -> dict:
    folder, name = os.path.split(image.file_name)
    number = int(os.path.splitext(name)[0])
    size = (image.height, image.width)
    return {
        "file_name": os.path.join(image_root, image.file_name),
        "image_id": f"{folder}_{number:06d}",
        "height": image.height,
        "width": image.width,
        "spacing": (1.0, 1.0, 1.0),
        "slice_range": (number, number),  # files in the same folder are not neighboring slices
        "slice_index": number,
        "window": HU_WINDOW,
        "annotations": [annotation_dict(a, size) for a in image.annotations],
    }


def register_toys(
    name: str, root: str, task: str, split: str, num_images: int | None = None
) -> None:
    """Register a toy data set with Detectron2; it is read on first use.

    Those in ``$DETECTRON2_DATASETS/toys`` are registered on first use of their names
    (:func:`dataset_name`), see :mod:`lesion_d2.data.toys.on_demand`.

    Args:
        name: its name in ``DatasetCatalog``.
        root: the folder that :func:`write_toys` wrote. ``$DETECTRON2_DATASETS`` in it is expanded
            when the data set is read; it defaults to "datasets".
        task: "donuts_shape", "donuts_pattern" or "circles_scale".
        split: "train", "val" or "test".
        num_images: use only the split's first images, half of them of each class; all by default.

    Raises:
        ValueError: the task or the split is unknown, or the number is below 1.
        AssertionError: the name is already registered (Detectron2's check).
    """
    for kind, found, known in (("task", task, TASKS), ("split", split, SPLITS)):
        if found not in known:
            raise ValueError(f"{name}: found {kind} {found!r}, expected one of {list(known)}")
    if num_images is not None and num_images < 1:
        raise ValueError(f"{name}: found num_images {num_images}, expected 1 or more")
    DatasetCatalog.register(name, partial(_load_registered, root, task, split, num_images))
    MetadataCatalog.get(name).set(
        thing_classes=list(TASKS[task].classes),
        thing_colors=[(0, 130, 200), (245, 130, 48)],
        evaluator_type="lesion",
    )


def _load_registered(root: str, task: str, split: str, num_images: int | None) -> list[dict]:
    root = resolve_root(root)
    return load_toys(os.path.join(root, f"{task}_{split}.json"), root, num_images)


def dataset_name(task: str, split: str, num_images: int | None = None) -> str:
    """The name of a task's split, or of its first ``num_images`` images, in the catalog."""
    return f"toy_{task}_{split}" + ("" if num_images is None else f"_{num_images}")
