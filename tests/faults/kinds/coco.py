"""Data sets in COCO's format."""

import copy
from pathlib import Path

from lesion_d2.data.coco import load_ct_coco
from lesion_d2.data.slices.ct import read_slice
from lesion_d2.structures.rle import decode_mask, encode_mask

import numpy as np

from ..case import ANY, Case, Kind
from ..damage import NO_JSON, as_json, change_tree, replaced
from .csv_rows import HEIGHT, WIDTH, lesion_mask, pixels, png_bytes


def _tree() -> dict:
    image = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [6, 5, 6, 4],
        "area": 24,
        "iscrowd": 0,
        "segmentation": encode_mask(lesion_mask()),
    }
    polygon = {**annotation, "id": 2, "segmentation": [[6, 5, 12, 5, 12, 9, 6, 9]]}
    return {
        "images": [image, {**image, "id": 2, "file_name": "b.png"}],
        "annotations": [annotation, polygon, {**annotation, "id": 3, "image_id": 2}],
        "categories": [{"id": 1, "name": "lesion"}],
    }


def read(folder: Path) -> list:
    """All that a training takes: voxels, boxes, masks."""
    images = load_ct_coco(folder / "coco.json", folder / "images", hu_offset=32768)
    return [
        [
            image["image_id"],
            read_slice(image["file_name"]),
            [
                [
                    [round(float(x), 4) for x in a["bbox"]],
                    a["category_id"],
                    a.get("iscrowd", 0),
                    decode_mask(a["segmentation"]) if "segmentation" in a else None,
                ]
                for a in image["annotations"]
            ],
        ]
        for image in images
    ]


def _value() -> list:
    hu = (pixels().astype(np.int32) - 32768).astype(np.int16)
    annotation = [[5.5, 4.5, 11.5, 8.5], 0, 0, lesion_mask()]
    return [[1, hu, [annotation] * 2], [2, hu, [annotation]]]


def _case(name: str, content: bytes, more: dict | None = None, **options) -> Case:
    files = {"coco.json": content, "images/a.png": png_bytes(), "images/b.png": png_bytes()}
    files |= {"outside/c.png": png_bytes(), **(more or {})}
    return Case(name, files, read, **options)


_SEGMENTATIONS = (
    {"size": [100000, 100000], "counts": "1"},
    {"size": [100000, 100000], "counts": [5, 9_999_999_995]},
    {"size": [HEIGHT, WIDTH], "counts": ""},
    {"size": [HEIGHT, WIDTH], "counts": "oooooooooooo"},
    {"size": [HEIGHT, WIDTH], "counts": [5, -5, 480]},
    {"size": [HEIGHT, WIDTH], "counts": [2**40]},
    {"size": [HEIGHT, WIDTH], "counts": [0.5, 479.5]},
    {"size": "x", "counts": "1"},
    {"size": None, "counts": None},
    [[1, 2]],
    [[1, 2, 3, 4]],
    [[float("nan")] * 6],
    [[1e29] * 6],
    [[1, 2, 3, 4, 5, "x"]],
    [[[]]],
    [5],
    5,
    "x",
)


def known() -> list[Case]:
    """What was found."""
    tree = _tree()
    path = ("annotations", 0, "segmentation")
    cases = [_case("as it should be", as_json(tree), expected=_value())]
    cases += [
        _case(
            f"segmentation {str(value)[:40]}",
            as_json(replaced(tree, path, value)),
            place="annotation 1",
        )
        for value in _SEGMENTATIONS
    ]
    cases += [_case(name, data) for name, data in NO_JSON]
    names = (
        "../outside/c.png",
        "/etc/passwd",
        "a.png/../../outside/c.png",
        "",
        ".",
        "absent.png",
        "x\x00y",
        "https://127.0.0.1/a.png",
    )
    for name in names:
        changed = replaced(tree, ("images", 0, "file_name"), name)
        cases.append(_case(f"file_name {name!r}", as_json(changed)))
    sizes = ((HEIGHT + 1, WIDTH), (10**9, 10**9), (0, 0), (-1, WIDTH))
    for height, width in sizes:
        changed = copy.deepcopy(tree)
        changed["images"][0] |= {"height": height, "width": width}
        cases.append(_case(f"an image of {width} x {height}", as_json(changed)))
    for box in (
        [0, 0, 0, 0],
        [1, 2, 3],
        [-50, -50, 5, 5],
        [1, 1, -2, 5],
        ["a"] * 4,
        [float("nan")] * 4,
        [1e29] * 4,
    ):
        changed = replaced(tree, ("annotations", 0, "bbox"), box)
        cases.append(_case(f"bbox {box}", as_json(changed)))
    return cases


def draw(rng: np.random.Generator) -> Case:
    """An item that is removed or strange."""
    tree, path, name = change_tree(rng, _tree())
    return _case(name, as_json(tree), expected=_after(tree, path), may_refuse=True)


def _after(tree: dict, path: tuple) -> object:
    """The value of a changed tree: what is removed, or not looked at."""
    if path[2:4] == ("segmentation", 0) and len(path) > 4:  # a corner of the polygon elsewhere
        return ANY
    if path[2:3] == ("bbox",) and len(path) == 4 and -1 in tree["annotations"][path[1]]["bbox"]:
        return ANY  # a box that ends a pixel outside is cut to its image
    if path[2:] == ("iscrowd",) and tree["annotations"][path[1]].get("iscrowd") is True:
        return ANY  # as 1
    value = _value()
    if path in (("annotations", 0), ("annotations", 1)):
        value[0][2] = value[0][2][1:]
    elif path == ("annotations", 2):
        value[1][2] = []
    elif path == ("annotations",) and tree.get("annotations") == []:
        value[0][2] = value[1][2] = []
    elif path[2:3] == ("segmentation",) and not tree["annotations"][path[1]].get("segmentation"):
        image, number = ((0, 0), (0, 1), (1, 0))[path[1]]
        value[image][2] = [list(a) for a in value[image][2]]
        value[image][2][number][3] = None
    return value


KIND = Kind("COCO", known, draw)
